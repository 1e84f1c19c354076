"""The kit that every page is made from: base template, blocks, formats, charts, pictures, tables."""
