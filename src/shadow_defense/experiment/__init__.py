"""The stages of a run, each of which reads and writes one run directory and resumes where it stopped."""
