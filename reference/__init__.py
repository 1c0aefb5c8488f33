"""Weights of the reference → a run of ours."""
