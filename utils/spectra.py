"""Power spectra along the axes of a volume, and where they fall to the noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from utils.axes import lines_along

Triple = tuple[float, float, float]

SIGNAL = 3.0  # times the noise floor: power that counts as signal
NYQUIST = 0.5  # cycles per voxel
_TAIL = 0.45  # cycles per voxel; at the end of the spectrum beyond it, power is lowest


def power_spectrum(volume: NDArray[np.generic], axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean power spectrum of all lines of a volume (Z, Y, X) along one axis.

    Every line is taken minus its mean and under a Hann window, so that its two ends do not have to fit each other.

    Returns:
        Frequency in cycles per voxel (above 0, up to 1/2) and power per voxel in squared grey values.
    """
    lines = lines_along(np.asarray(volume, np.float32), axis)
    window = signal.windows.hann(lines.shape[-1], sym=False).astype(np.float32)
    spectrum = fft.rfft((lines - lines.mean(-1, keepdims=True)) * window)
    power = np.mean(np.abs(spectrum) ** 2, axis=(0, 1), dtype=np.float64) / np.sum(window.astype(np.float64) ** 2)
    return fft.rfftfreq(lines.shape[-1])[1:], power[1:]


@dataclass(frozen=True)
class Anisotropy:
    """How far the spectra of one box reach.

    Attributes:
        frequency: per axis (z, y, x) the frequencies in cycles per voxel.
        power: per axis the mean power of its lines.
        floor: power of the noise, the same for all axes.
        cutoff: per axis the highest frequency with more than three times that power.
    """

    frequency: tuple[NDArray[np.float64], ...]
    power: tuple[NDArray[np.float64], ...]
    floor: float
    cutoff: Triple

    @property
    def per_voxel(self) -> float:
        """Lateral (mean of y and x) over axial cut-off, in cycles per voxel: above 1 where z is blurrier than its voxels."""
        return (self.cutoff[1] + self.cutoff[2]) / 2 / self.cutoff[0]

    @property
    def undersampled(self) -> bool:
        """Whether signal reaches the axial Nyquist frequency, so that finer planes would show more."""
        tail = self.frequency[0] >= _TAIL
        return bool(self.power[0][tail].mean() > SIGNAL * self.floor)

    def ratio(self, voxel_um: Triple | None) -> float:
        """Axial over lateral resolution length; without voxel sizes voxels count as cubes. Undersampled: at least that."""
        if voxel_um is None:
            return self.per_voxel
        return self.per_voxel * voxel_um[0] / ((voxel_um[1] + voxel_um[2]) / 2)


def anisotropy(volume: NDArray[np.generic]) -> Anisotropy | None:
    """Compares how far the power spectra along z and in-plane rise above the noise.

    White noise has the same power on all axes and at all frequencies, so the noise floor is the lowest mean power at the end of
    any axis' spectrum. Values are first limited to their 0.05 to 99.95 percentiles, against single hot pixels. None for a box
    (Z, Y, X) that is too thin (< 8 voxels along an axis; it should have some dozen) or constant.
    """
    values = np.asarray(volume, np.float32)
    low, high = np.percentile(values, (0.05, 99.95))
    if min(volume.shape) < 8 or not low < high:
        return None
    clipped = np.clip(values, low, high)
    spectra = [power_spectrum(clipped, axis) for axis in range(3)]
    floor = min(float(power[frequency >= _TAIL].mean()) for frequency, power in spectra)
    if floor <= 0:
        floor = float(np.finfo(np.float32).tiny)
    z, y, x = (float(frequency[power > SIGNAL * floor].max(initial=frequency[0])) for frequency, power in spectra)
    return Anisotropy(tuple(f for f, _ in spectra), tuple(p for _, p in spectra), floor, (z, y, x))
