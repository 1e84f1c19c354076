"""Images: their sources, their preparation, and how they are dealt to clients."""
