"""From the values of a file to the network's range, and the constants that are remembered for the way back."""

from __future__ import annotations

import numpy as np

from utils.errors import UserError
from volumes.statistics import Range, check_finite, passes, scan

__all__ = ["TARGETS", "Range", "check_finite", "check_options", "check_unit_range", "normalise", "passes", "scan"]

TARGETS = {"01": (0.0, 1.0), "11": (-1.0, 1.0)}
_TOLERANCE = 1.05  # nm 00: |value| beyond it counts as outside
_ALLOWED_OUTSIDE = 1e-3


def check_options(nm: str, nm_clip: tuple[float, float] | None) -> None:
    """Raise a UserError for an unknown normalisation or percentiles that make no interval."""
    if nm not in ("00", *TARGETS):
        raise UserError(
            f"nm={nm} is unknown; known: 00 (values already in [-1, 1]), 01, 11 (each file's range to [0, 1], [-1, 1])"
        )
    if nm_clip is None:
        return
    if nm == "00":
        raise UserError(f"nm_clip={nm_clip[0]:g} {nm_clip[1]:g} has no effect with nm=00; set nm to 11, or leave nm_clip out")
    if not 0 <= nm_clip[0] < nm_clip[1] <= 100:
        raise UserError(f"nm_clip={nm_clip[0]:g} {nm_clip[1]:g} must be percentiles LOW < HIGH within 0 to 100; try 0.1 99.9")


def normalise(values: np.ndarray, nm: str, limits: Range | None) -> np.ndarray:
    """Map the file's range linearly to [0, 1] (nm 01) or [-1, 1] (nm 11), clipped; nm 00 returns the values.

    A constant file maps to the lower end.

    Args:
        values: float32 array of any shape, in the file's units.
        nm: 00 | 01 | 11.
        limits: the file's range; needed for 01 and 11.
    """
    if nm == "00":
        return values
    if limits is None:
        raise ValueError(f"nm={nm} needs the range of the file")
    lower, upper = TARGETS[nm]
    width = limits.high - limits.low
    unit = np.clip((values - np.float32(limits.low)) / np.float32(width), 0, 1) if width > 0 else np.zeros_like(values)
    return unit * np.float32(upper - lower) + np.float32(lower)


def check_unit_range(values: np.ndarray, where: str) -> None:
    """Check a crop under nm 00.

    Raises:
        UserError: NaN or infinite values, or more than 0.1 % of the values outside [-1.05, 1.05].
    """
    check_finite(values, where)
    outside = np.count_nonzero(np.abs(values) > _TOLERANCE) / values.size
    if outside > _ALLOWED_OUTSIDE:
        raise UserError(
            f"{where}: nm=00 expects values in [-1, 1], but {100 * outside:.3g} % of a crop lie outside "
            f"({values.min():.6g} to {values.max():.6g}); use --nm 11, which maps each file's range to [-1, 1]"
        )
