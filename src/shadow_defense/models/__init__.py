"""Task models: what the clients train, behind one registry."""
