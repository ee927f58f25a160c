"""One metric of a whole run per file; no torch; the folder is the registry."""
