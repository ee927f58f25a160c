"""One continual-learning method per file; the folder is the registry."""
