"""Continual pre-training of language models: streams, exact growth, inheritance, forgetting reports."""

__version__ = "0.1.0"
