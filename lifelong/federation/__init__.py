"""Federated training: one silo per domain, over Flower; nothing else in the package imports it."""
