"""Quantisers, the 2-D discriminator and the perceptual loss."""
