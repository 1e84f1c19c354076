"""What numbers say, in words: one file a verdict, pure functions from typed records to sentences."""
