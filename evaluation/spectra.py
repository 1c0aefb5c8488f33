"""Power spectra along the axes and what they say about isotropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.fsc import FourierShells

OCTAVES = ((32, 16), (16, 8), (8, 4), (4, 2))  # periods in voxels


def octave_name(octave: tuple[int, int]) -> str:
    """Name of a band from its longest and shortest period, ``1/16-1/8`` (cycles per voxel)."""
    return f"1/{octave[0]}-1/{octave[1]}"


def octave_power(frequency: NDArray[np.float64], power: NDArray[np.float64]) -> dict[str, float]:
    """Mean power in each of OCTAVES that the spectrum reaches, by name."""
    result = {}
    for octave in OCTAVES:
        inside = (frequency > 1 / octave[0]) & (frequency <= 1 / octave[1] + 1e-9)
        if inside.any():
            result[octave_name(octave)] = float(power[inside].mean())
    return result


def axial_excess(shells: FourierShells, spectrum: NDArray[np.complexfloating]) -> dict[str, float]:
    """Power along z over power in-plane, in dB, per octave: 0 for an isotropic volume, negative where z is blurred.

    Only coefficients in the cones about the axes count: the spectrum of lines along y would also hold what z has lost.

    Args:
        shells: the shells of the volume's box.
        spectrum: ``shells.transform`` of the tapered volume.
    """
    squares = np.abs(spectrum) ** 2
    bands = []
    for axis in range(3):
        count = shells.count(axis)
        filled = count > 0
        frequency = shells.frequency(axis) * max(shells.spacing)  # cycles per largest voxel side
        bands.append(octave_power(frequency[filled], shells.total(squares, axis)[filled] / count[filled]))
    result = {}
    for name in bands[0]:
        lateral = [band[name] for band in bands[1:] if name in band]
        if lateral and min(lateral) > 0 and bands[0][name] > 0:
            result[name] = float(10 * np.log10(bands[0][name] / np.mean(lateral)))
    return result
