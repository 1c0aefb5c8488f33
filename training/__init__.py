"""Training a run: the trainer, its callbacks, its needs. The options of the models are torch-free, for the scripts."""

from models.options import MODEL_OPTIONS

__all__ = ["MODEL_OPTIONS"]
