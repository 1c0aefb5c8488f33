"""Codes of a volume on disc: the store (docs/code-store.md), the model of codes by their neighbours, and its Zarr codec."""
