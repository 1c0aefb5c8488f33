"""From a trained run to whole volumes: the commands of infer.py as functions on arrays."""

from inference.api import decode, encode, enhance
from inference.jobs import Options
from inference.run import Engine, Run

__all__ = ["Engine", "Options", "Run", "decode", "encode", "enhance"]
