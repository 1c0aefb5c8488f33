"""The 2-D autoencoder, its bottlenecks and losses."""
