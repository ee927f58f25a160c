"""Invented facts that are put into a stage and asked for from then on."""
