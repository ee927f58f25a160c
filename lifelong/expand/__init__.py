"""Growing a model without changing its function."""
