"""What another package adds to shadow-defense."""
