"""What a training asks of its machine: the arithmetic, how memory is kept, and what to say where it does not suffice."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.utilities.memory import is_oom_error

from utils.errors import UserError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks for the next tensor instead of returning them to the system.

    A training step frees and asks for the same gigabytes again; each time the system would have to clear every page. Where the C
    library is another one nothing changes. benchmarks/step_time.py measures the effect.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def in_bf16(device: torch.device, wanted: bool | None = None) -> bool:
    """Whether to compute in bf16: as wanted, by default on a GPU that has this arithmetic (of NVIDIA's, those since Ampere).

    Older GPUs hold bf16 numbers, but have no convolutions of them.

    Raises:
        UserError: it is wanted on such a GPU.
    """
    if device.type != "cuda":
        return bool(wanted)
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted and not native:
            raise UserError(f"{torch.cuda.get_device_name()} has no bf16 arithmetic; use --precision 32")
    return native if wanted is None else wanted


def lacks_memory(error: Exception) -> bool:
    """Whether it says that a GPU or this machine has no memory left: PyTorch has no type of its own for some of these."""
    of_onednn = "could not create a primitive" in str(error)  # all that a convolution on a CPU says then
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error) or of_onednn


@contextmanager
def explained(settings: Mapping[str, Any]) -> Iterator[None]:
    """Says what a training can do about it: a UserError in place of an error that says that memory does not suffice."""
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
