"""Defenses against attacks over models and seeds, cell by cell: ``shadow-defense compare``."""
