"""Held-out loss per domain."""
