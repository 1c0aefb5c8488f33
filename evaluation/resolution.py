"""Resolution of a single volume by decorrelation analysis (Descloux, Grußmayer & Radenovic 2019, Nature Methods 16:918).

The spectrum F is compared with its own phases F/|F| up to a radius r:
d(r) = Σ_{|k|≤r} |F| / sqrt(Σ_all |F|² · #{|k|≤r}). The curve rises while structure is added and falls once only noise is: its
peak is a resolution estimate. Repeated after high-pass filters of growing strength, the highest peak is the cut-off. All sums
are radial, so the filters act on shell totals instead of on the volume, and a cone about an axis gives that axis' own cut-off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.fsc import FourierShells

FILTERS = 20
WEAKEST, STRONGEST = 0.25, 0.15  # Gaussian high-pass sigma: a share of the shortest side, and voxels
PROMINENCE = 5e-4  # a peak has to stand above the rest of the curve by this much


def _peak(curve: NDArray[np.float64]) -> int | None:
    """Index of the highest point from which the curve falls again; None for a curve that keeps rising."""
    end = len(curve)
    while end > 1:
        top = int(np.argmax(curve[:end]))
        if top == end - 1:
            end -= 1
        elif curve[top] - curve[top:].min() > PROMINENCE:
            return top if top > 0 else None
        else:
            end = top
    return None


def decorrelation_cutoff(shells: FourierShells, spectrum: NDArray[np.complexfloating], axis: int | None = None) -> float | None:
    """Highest frequency that holds structure, in cycles per unit of the shells' spacing.

    Args:
        shells: the shells of the volume's box.
        spectrum: ``shells.transform`` of the tapered volume.
        axis: only the cone about this axis.

    Returns:
        None where no curve has a peak: everything up to the Nyquist frequency looks like structure, or nothing does.
    """
    magnitude = np.abs(spectrum)
    radius = shells.frequency(axis)[1:]
    amplitude, power = shells.total(magnitude, axis)[1:], shells.total(magnitude**2, axis)[1:]
    seen = np.cumsum(shells.count(axis)[1:])
    voxel = max(shells.spacing) if axis is None else shells.spacing[axis]
    widest = WEAKEST * min(size * step for size, step in zip(shells.shape, shells.spacing, strict=True))
    best = None
    for sigma in (np.inf, *np.geomspace(widest, STRONGEST * voxel, FILTERS)):
        kept = 1 - np.exp(-2 * (np.pi * np.minimum(sigma, 1e9) * radius) ** 2)
        total = np.sum(kept**2 * power)
        if total <= 0:
            continue
        curve = np.cumsum(kept * amplitude) / np.sqrt(total * np.maximum(seen, 1))
        peak = _peak(curve)
        if peak is not None:
            best = max(best or 0.0, float(radius[peak]))
    return best
