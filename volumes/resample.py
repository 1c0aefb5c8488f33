"""Places between and beyond the voxels of an axis: linear interpolation, reflection at the ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along an axis at fractional positions, clamped to the first and last value.

    Resizing to n values is ``(k + 0.5) * size / n - 0.5``, the convention of OpenCV and of ``align_corners=False``.
    Unlike a resize of the window, this puts a crop's pixels exactly where those of the resized whole plane lie.

    Returns:
        float32 for positions between values, else values of the array's own type.
    """
    last = values.shape[axis] - 1
    clamped = np.clip(positions, 0, last)
    low = np.floor(clamped).astype(np.intp)
    weight = (clamped - low).astype(np.float32)
    below = values.take(low, axis)
    if not weight.any():
        return below
    above = values.take(np.minimum(low + 1, last), axis)
    weight = weight.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    return below + (above - below) * weight


def reflected(span: tuple[int, int], size: int) -> NDArray[np.intp]:
    """Places of an axis of ``size`` under a span that may reach beyond its ends: mirrored there, the border is not repeated."""
    period = max(2 * (size - 1), 1)
    folded = np.arange(*span) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(span[1] - span[0], np.intp)
