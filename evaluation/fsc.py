"""Fourier shell correlation of two volumes, whole and within cones about the axes.

FSC(q) = Σ Re(A·conj(B)) / sqrt(Σ|A|² · Σ|B|²) over the Fourier coefficients of the shell |k| ≈ q (Harauz & van Heel 1986).
Within a double cone of 20° about an axis it tells the resolution along that axis (Tan et al. 2017). The transform is that of a
real volume: half of the coefficients are computed, and those that stand for their complex conjugate as well are counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

CONE_DEGREES = 20.0  # half the opening angle of the double cones about the axes
TAPER = 0.25  # share of every side, half at each end, that falls to zero before a transform


@dataclass(frozen=True)
class ShellCurve:
    """One value per Fourier shell.

    Attributes:
        frequency: radius of the shells, cycles per unit of the spacing, increasing from 0.
        value: dimensionless; NaN where a shell holds no coefficient or one volume has no power there.
        count: coefficients per shell (conjugates counted); the correlation of independent noise has the standard error
            count**-0.5.
    """

    frequency: NDArray[np.float64]
    value: NDArray[np.float64]
    count: NDArray[np.float64]

    def falls_below(self, threshold: float) -> float | None:
        """The frequency at which the curve first falls below threshold, linear between shells; None if it never does."""
        known = np.isfinite(self.value)
        frequency, value = self.frequency[known], self.value[known]
        below = np.flatnonzero(value < threshold)
        if not below.size:
            return None
        last = int(below[0])
        if last == 0:
            return float(frequency[0])
        drop = value[last - 1] - value[last]
        return float(frequency[last - 1] + (value[last - 1] - threshold) / drop * (frequency[last] - frequency[last - 1]))


class FourierShells:
    """The shells of one box shape; made once, used for every volume of that shape.

    Args:
        shape: (Z, Y, X), odd or even.
        spacing: voxel size along each axis in any unit; frequencies are cycles per that unit.

    Shells are one frequency step of the coarsest axis wide and centred on its multiples. They end at the smallest Nyquist
    frequency for the whole, at its own Nyquist frequency for an axis.
    """

    def __init__(self, shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1, 1, 1)) -> None:
        if len(shape) != 3 or min(shape) < 2:
            raise ValueError(f"shape={shape} must be three sizes of at least 2")
        if min(spacing) <= 0:
            raise ValueError(f"spacing={spacing} must be positive")
        self.shape, self.spacing = shape, spacing
        self._cone = np.cos(np.deg2rad(CONE_DEGREES))
        self.width = max(1 / (size * step) for size, step in zip(shape, spacing, strict=True))
        self._nyquist = [0.5 / step for step in spacing]

    @cached_property
    def _axes(self) -> list[NDArray[np.float64]]:
        (z, y, x), (dz, dy, dx) = self.shape, self.spacing
        return [fft.fftfreq(z, dz)[:, None, None], fft.fftfreq(y, dy)[None, :, None], fft.rfftfreq(x, dx)[None, None, :]]

    @cached_property
    def _radius(self) -> NDArray[np.float64]:
        z, y, x = self._axes
        return np.asarray(np.sqrt(z**2 + y**2 + x**2))

    @cached_property
    def _weight(self) -> NDArray[np.float64]:
        """2 for coefficients that stand for their conjugate as well, per column of the last axis."""
        weight = np.full(self.shape[2] // 2 + 1, 2.0)
        weight[0] = 1
        if self.shape[2] % 2 == 0:
            weight[-1] = 1
        return weight

    @cached_property
    def _labels(self) -> dict[int | None, tuple[NDArray[np.int32], int]]:
        """Of the whole and of every cone the shell of each coefficient, and the number of shells, which stands for "outside"."""
        result: dict[int | None, tuple[NDArray[np.int32], int]] = {}
        for axis in (None, 0, 1, 2):
            nyquist = min(self._nyquist) if axis is None else self._nyquist[axis]
            shells = int(np.floor(nyquist / self.width + 1e-6)) + 1
            labels = np.minimum(np.floor(self._radius / self.width + 0.5), shells).astype(np.int32)
            if axis is not None:
                labels[np.abs(self._axes[axis]) < self._cone * self._radius - 1e-9] = shells
            result[axis] = labels, shells
        return result

    def transform(self, volume: NDArray[np.generic]) -> NDArray[np.complex64]:
        """Half-spectrum of a volume (Z, Y, X) whose mean was removed, (Z, Y, X // 2 + 1).

        Raises:
            ValueError: the volume has another shape than these shells.
        """
        if volume.shape != self.shape:
            raise ValueError(f"volume of shape {volume.shape} does not fit shells of shape {self.shape}")
        real = np.asarray(volume, np.float32 if volume.dtype != np.float64 else np.float64)
        return fft.rfftn(real - real.mean())

    def total(self, quantity: NDArray[np.floating], axis: int | None = None) -> NDArray[np.float64]:
        """Sum of a half-spectrum quantity over every shell, or over its part within the cone about an axis."""
        labels, shells = self._labels[axis]
        weighted = quantity * self._weight
        sums = np.bincount(labels.ravel(), weighted.ravel(), shells + 1)
        return np.asarray(sums[:shells], np.float64)

    def count(self, axis: int | None = None) -> NDArray[np.float64]:
        """Coefficients of the full spectrum per shell."""
        return self.total(np.ones_like(self._radius), axis)

    def frequency(self, axis: int | None = None) -> NDArray[np.float64]:
        """Radius of the shells, cycles per unit of the spacing."""
        return np.arange(self._labels[axis][1], dtype=np.float64) * self.width

    def correlation(self, a: NDArray[np.complexfloating], b: NDArray[np.complexfloating], axis: int | None = None) -> ShellCurve:
        """Fourier shell correlation of two half-spectra from transform()."""
        cross = self.total((a * b.conj()).real, axis)
        power = self.total(np.abs(a) ** 2, axis) * self.total(np.abs(b) ** 2, axis)
        value = np.divide(cross, np.sqrt(power), out=np.full_like(cross, np.nan), where=power > 0)
        return ShellCurve(self.frequency(axis)[1:], value[1:], self.count(axis)[1:])


def tapered(volume: NDArray[np.generic]) -> NDArray[np.float32]:
    """The volume (Z, Y, X) minus its mean, falling to zero at its faces (a cosine over TAPER / 2 of each side).

    A transform takes the volume for periodic; without the taper the jump between opposite faces puts the same bright cross into
    the spectra of both volumes and lets them look more alike than they are.
    """
    result = np.array(volume, np.float32)
    result -= result.mean(dtype=np.float64)
    for axis, size in enumerate(result.shape):
        window = signal.windows.tukey(size, TAPER).astype(np.float32)
        result *= window.reshape([-1 if k == axis else 1 for k in range(3)])
    return result
