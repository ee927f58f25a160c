"""One table per architecture family; the folder is the registry."""
