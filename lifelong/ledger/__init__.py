"""The run folder: its paths, its hash chain, its lock, what a disk can do to it."""
