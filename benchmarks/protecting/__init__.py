"""What the benchmarks of protecting once share."""
