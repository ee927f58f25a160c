"""Domain cards: where a corpus is, how it is read, what it holds."""
