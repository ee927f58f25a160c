"""Bridges to other libraries; each is the only file that imports its library, lazily."""
