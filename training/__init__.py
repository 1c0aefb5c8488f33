"""How a model is trained: trainer, callbacks, precision, memory."""
