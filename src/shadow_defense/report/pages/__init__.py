"""The pages: one short file each, which lays typed records out."""
