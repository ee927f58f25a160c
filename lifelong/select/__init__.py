"""Data selection: which documents of a corpus a stage trains on."""
