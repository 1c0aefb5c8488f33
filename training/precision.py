"""Which arithmetic a device computes in."""

from __future__ import annotations

import torch

from utils.errors import UserError


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
