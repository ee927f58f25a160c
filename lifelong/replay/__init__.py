"""A bounded memory of earlier domains and its share of a stage."""
