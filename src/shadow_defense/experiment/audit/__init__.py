"""The audit of one update: attacks on any file a user has, what they rebuilt, and why they failed where they did."""
