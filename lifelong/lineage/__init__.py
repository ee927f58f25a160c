"""Models of one run as one lineage: maps between their sizes, interpolation, the front of old and new."""
