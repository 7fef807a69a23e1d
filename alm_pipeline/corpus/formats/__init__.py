"""What rows are: the layouts that people have, recognized and read, and datasets that are objects in Python."""
