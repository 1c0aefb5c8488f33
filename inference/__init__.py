"""From a trained run to whole volumes."""
