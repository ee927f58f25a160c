"""Which documents of a corpus a stage trains on."""
