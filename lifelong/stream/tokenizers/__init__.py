"""Tokenizers: loading, training, and several vocabularies in one run."""
