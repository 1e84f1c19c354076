"""Protecting a data set once: what a client trains on, drawn from its secret and kept (docs/protect.md)."""
