"""Networks, views and losses that know nothing of training."""
