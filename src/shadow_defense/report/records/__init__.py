"""What pages, tables and sentences are made from: one typed record for each plan."""
