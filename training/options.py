"""The options of the models, torch-free: what the scripts hand to utils/settings."""

from models.options import MODEL_OPTIONS

__all__ = ["MODEL_OPTIONS"]
