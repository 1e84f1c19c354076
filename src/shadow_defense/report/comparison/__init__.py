"""The report of a comparison of defenses."""
