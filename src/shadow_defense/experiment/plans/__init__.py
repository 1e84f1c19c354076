"""Plans: each yields tasks, gathers their results, and writes its pages."""
