"""Removers: what an attacker makes of a protected image who knows everything but the site's secret."""
