"""Attacks that know which defense they face, and what of it they can undo."""
