"""Domains, their sources, tokenising, packing, mixing and memory."""
