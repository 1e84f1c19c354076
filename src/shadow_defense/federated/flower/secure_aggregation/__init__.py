"""Flower's SecAgg+ with our clients: the server gets the average of the updates and no single one."""
