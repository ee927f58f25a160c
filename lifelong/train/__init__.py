"""One stage of training."""
