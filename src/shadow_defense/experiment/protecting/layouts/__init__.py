"""Data sets that come in and go out in the same layout, with other images in place of their own."""
