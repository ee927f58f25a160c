"""One file per architecture family: tables, no logic."""
