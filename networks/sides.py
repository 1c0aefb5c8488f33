"""One volume of what XZ and YZ planes have given, by what each can know.

An XZ plane shows how the volume varies along X and nothing of how it varies along Y; a wave across it looks like a constant
there, and what it does along Z has to be guessed. Of every in-plane frequency each side therefore counts by the square of its own
component of it; the lowest frequencies count alike.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REACH = 16  # pixels, along X and Y, that a voxel depends on
_ALIKE = 0.02  # cycles per pixel below which both sides count alike


def mean_of_sides(across_y: Tensor, across_x: Tensor) -> Tensor:
    """The mean of both sides, weighted by in-plane frequency.

    Args:
        across_y: what XZ planes gave, (B, C, X, Y, Z).
        across_x: what YZ planes gave.

    Returns:
        Of the same shape, in float32. Beyond the borders both sides count as equal.
    """
    one, other = across_y.float(), across_x.float()
    sides = one.shape[2:4]
    padded = [size + REACH + -(size + REACH) % 16 for size in sides]  # what leaves at one border must not enter at the other
    taps = torch.from_numpy(_surplus()).to(one.device, non_blocking=True)
    plane = {"s": padded, "dim": (2, 3)}
    more = torch.fft.irfft2(torch.fft.rfft2(one - other, **plane) * torch.fft.rfft2(taps, s=padded)[..., None], **plane)
    x, y = (slice(REACH, REACH + size) for size in sides)
    return (one + other) / 2 + more[:, :, x, y]


@lru_cache
def _surplus() -> NDArray[np.float32]:
    """(2·REACH + 1, the same): the filter kx²/(kx² + ky²) - ½, cut off smoothly."""
    size = 16 * REACH
    k = np.square(np.fft.fftfreq(size))
    x, y = k[:, None], k[None, :]
    gain = (x - y) / (2 * (x + y + 2 * _ALIKE**2))
    taps = np.fft.fftshift(np.fft.ifft2(gain).real)
    middle = slice(size // 2 - REACH, size // 2 + REACH + 1)
    window = np.hanning(2 * REACH + 3)[1:-1]
    return (taps[middle, middle] * window[:, None] * window).astype(np.float32)
