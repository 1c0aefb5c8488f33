"""How lack of memory is recognised, and what to say of it where a training lacks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.utilities.memory import is_oom_error

from utils.errors import UserError


def lacks_memory(error: Exception) -> bool:
    """Whether it says that a GPU or this machine has no memory left: PyTorch has no type of its own for some of these."""
    of_onednn = "could not create a primitive" in str(error)  # all that a convolution on a CPU says then
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error) or of_onednn


@contextmanager
def explained(settings: Mapping[str, Any]) -> Iterator[None]:
    """Says what a training can do about it.

    Raises:
        UserError: in place of an error that says that memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        size = {name: settings[name] for name in ("batch_size", "cropsize", "ngf", "adv_planes")}
        smaller = [f"--batch_size {settings['batch_size'] // 2}"] if settings["batch_size"] > 1 else []
        smaller += ["--adv_planes 16"] if settings["adv"] and not 0 < settings["adv_planes"] <= 16 else []
        smaller += ["--precision bf16-mixed"] if settings["precision"] == "32" else []
        raise UserError(
            f"memory does not suffice for a step with {', '.join(f'{name} {value}' for name, value in size.items())}; "
            f"use {' or '.join([*smaller, 'a smaller --cropsize and --cropz'])} (prepare.py check says what a step needs). "
            "What was saved before is as it was"
        ) from error
