"""A study of one data set: what defenses cost, what they leave, and which setting do: ``shadow-defense evidence``."""
