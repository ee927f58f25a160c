"""One learning-rate policy per file; the folder is the registry."""
