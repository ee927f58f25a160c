"""Invented facts that are injected into a stage and probed from then on."""
