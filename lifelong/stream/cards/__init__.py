"""Domain cards: where a corpus lies, how it is read, what it holds."""
