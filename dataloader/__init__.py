"""Training volumes to crops."""
