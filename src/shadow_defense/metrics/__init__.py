"""What an attack has rebuilt (privacy) and what a model is worth (utility)."""
