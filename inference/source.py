"""The slices that a network reads, made from a volume on disc piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.tiling import reflected, round_up
from utils.geometry import LATENT_STRIDE
from volumes.intensity import Intensity
from volumes.volume import Span, Volume

_FINEST = 1000  # denominators of usp


class Slices:
    """Encoded slices of a volume (or of one volume per channel): thinned, interpolated, padded, in the network's range.

    Every ``dsp``-th plane is kept (or every ``dsp`` averaged), then planes are interpolated to ``usp`` times as many; rows and
    columns are padded by reflection at their ends to multiples of 8.

    Attributes:
        volumes: one per channel, all of one shape.
        intensities: one per channel.
        count: encoded slices, ceil(Z·usp/dsp).
        inner: rows and columns of the volume.
        shape: slices, padded rows and columns.
    """

    def __init__(
        self, volumes: Sequence[Volume], intensities: Sequence[Intensity], *, dsp: int = 1, dsp_how: str = "pick", usp: float = 1
    ) -> None:
        self.volumes, self.intensities = tuple(volumes), tuple(intensities)
        self.dsp, self.mean, self.usp = dsp, dsp_how == "mean", Fraction(usp).limit_denominator(_FINEST)
        depth, height, width = self.volumes[0].shape
        self.count = math.ceil(depth * self.usp / dsp)
        self.kept = math.ceil(Fraction(depth, dsp))
        self.inner = (height, width)
        self.shape = (self.count, round_up(height, LATENT_STRIDE), round_up(width, LATENT_STRIDE))

    @property
    def first_plane(self) -> float:
        """Plane of the volume (fractional) on which encoded slice 0 is centred."""
        centre = (self.dsp - 1) / 2 if self.mean else 0.0
        return centre + self.dsp * float(Fraction(1, 2) / self.usp - Fraction(1, 2))

    def read(self, k: Span, rows: Span, columns: Span) -> NDArray[np.float32]:
        """Slices [k) of padded rows and columns, (C, k, rows, columns) float32, contiguous.

        Raises:
            UserError: the volume cannot be read, or holds NaN or infinite values there.
        """

        def mapped(values: NDArray[Any], intensity: Intensity, where: str) -> NDArray[np.float32]:
            return intensity.to_network(values, where)

        return self._read(k, rows, columns, mapped)

    def grey(self, k: Span, rows: Span, columns: Span) -> NDArray[np.float32]:
        """As :meth:`read`, but the grey values of the file, not clipped to what the network knows."""
        return self._read(k, rows, columns, lambda values, *_: values.astype(np.float32))

    def _read(self, k: Span, rows: Span, columns: Span, convert: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
        y, x = (reflected(span, size) for span, size in zip((rows, columns), self.inner, strict=True))
        box = slice(int(y.min()), int(y.max()) + 1), slice(int(x.min()), int(x.max()) + 1)
        channels = []
        for volume, intensity in zip(self.volumes, self.intensities, strict=True):
            values = self._interpolated(volume, k, box)
            where = f"{volume.path}, slices {k[0]} to {k[1] - 1}, rows {box[0].start} to {box[0].stop - 1}"
            channels.append(convert(values, intensity, where))
        window = np.stack(channels)
        if len(y) != window.shape[2] or len(x) != window.shape[3]:
            window = window[:, :, y - box[0].start][:, :, :, x - box[1].start]
        return np.ascontiguousarray(window)

    def _interpolated(self, volume: Volume, k: Span, box: tuple[slice, slice]) -> NDArray[Any]:
        if self.usp == 1:
            return self.kept_planes(volume, k, box)
        positions = np.clip((np.arange(*k) + 0.5) / float(self.usp) - 0.5, 0, self.kept - 1)
        return interpolated(positions, self.kept, lambda span: self.kept_planes(volume, span, box))

    def kept_planes(self, volume: Volume, kept: Span, box: tuple[slice, slice]) -> NDArray[Any]:
        """Planes [kept) of those that thinning leaves, in grey values; means of several planes are float32."""
        start, stop = kept[0] * self.dsp, min(kept[1] * self.dsp, volume.shape[0])
        if not self.mean or self.dsp == 1:
            return volume[start : stop : self.dsp, box[0], box[1]]
        planes = volume[start:stop, box[0], box[1]]
        groups = [planes[n : n + self.dsp].mean(axis=0, dtype=np.float32) for n in range(0, len(planes), self.dsp)]
        return np.stack(groups)


def interpolated(positions: NDArray[np.float64], size: int, read: Any) -> NDArray[np.float32]:
    """Planes at fractional positions within [0, size), linearly between their neighbours.

    Args:
        positions: ascending or not, each in [0, size - 1].
        size: planes there are.
        read: span → planes, (n, ...).
    """
    low = np.minimum(np.floor(positions).astype(np.intp), size - 1)
    high = np.minimum(low + 1, size - 1)
    first = int(low.min())
    planes = np.asarray(read((first, int(high.max()) + 1)), np.float32)
    weight = (positions - low).astype(np.float32).reshape(-1, *[1] * (planes.ndim - 1))
    below = planes[low - first]
    return below + (planes[high - first] - below) * weight
