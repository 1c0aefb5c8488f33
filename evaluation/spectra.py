"""What spectra say: of two volumes agreement by size; of one isotropy per octave, and resolution by decorrelation analysis.

FSC(q) = Σ Re(A·conj(B)) / sqrt(Σ|A|² · Σ|B|²) over the Fourier coefficients of the shell |k| ≈ q (Harauz & van Heel 1986).
Within a double cone of 20° about an axis it tells the resolution along that axis (Tan et al. 2017). The transform is that of a
real volume: half of the coefficients are computed, and those that stand for their complex conjugate as well are counted twice.

Decorrelation (Descloux, Grußmayer & Radenovic 2019, Nature Methods 16:918) compares the spectrum F with its own phases F/|F| up
to a radius r: d(r) = Σ_{|k|≤r} |F| / sqrt(Σ_all |F|² · #{|k|≤r}). The curve rises while structure is added and falls once only
noise is: its peak is a resolution estimate. Repeated after high-pass filters of growing strength, the highest peak is the
cut-off. All sums are radial: filters act on shell totals, not on the volume, and a cone about an axis gives its own cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, signal

from utils.axes import lines_along
from utils.spectra import power_spectrum
from volumes.volume import Triple

AXES = {"z": 0, "y": 1, "x": 2}
THRESHOLDS = (0.5, 0.333, 0.143)  # of a Fourier shell correlation
OCTAVES = ((32, 16), (16, 8), (8, 4), (4, 2))  # periods in voxels
FILTERS = 20
WEAKEST, STRONGEST = 0.25, 0.15  # Gaussian high-pass sigma: a share of the shortest side, and voxels
PROMINENCE = 5e-4  # a peak has to stand above the rest of the curve by this much
CONE_DEGREES = 20.0  # half the opening angle of the double cones about the axes
DETAIL = 8  # voxels: standard deviation of the Gaussian that takes the coarse structure away
TAPER = 0.25  # share of every side, half at each end, that falls to zero before a transform
INDEPENDENT = ((1 - 5 * TAPER / 8) ** 2 / (1 - 93 * TAPER / 128)) ** 3  # of the coefficients: mean(w²)²/mean(w⁴) of three tapers


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

    def crossing(self, threshold: float) -> tuple[float | None, float]:
        """Where a correlation, smoothed over neighbouring shells, first falls below threshold, and the standard error of that.

        Shells are averaged with weights ``count·exp(-d²/2)``, d in shells. A shell's standard error is (1 - r²)/√n (Fisher 1915),
        n its coefficients as far as the taper leaves them independent, or the scatter of its neighbours about the smoothed curve
        where that is larger. The crossings of the curve minus and plus its error bound the crossing; the width of a shell, evenly
        distributed, is added. A curve that never falls (None) is taken to end at its last shell.
        """
        known = np.isfinite(self.value)
        frequency, value, count = self.frequency[known], self.value[known], self.count[known]
        kernel = np.exp(-((np.arange(len(value))[:, None] - np.arange(len(value))) ** 2) / 2)
        share = kernel * count / (kernel @ count)[:, None]
        smooth = share @ value
        scatter = kernel @ (value - smooth) ** 2 / np.maximum(kernel @ (1 - np.diag(share)), np.finfo(float).eps)
        variance = np.maximum((1 - np.minimum(smooth**2, 1)) ** 2 / np.maximum(count * INDEPENDENT, 1), scatter)
        error = np.sqrt(share**2 @ variance)
        curves = (ShellCurve(frequency, smooth + sign * error, count) for sign in (-1, 0, 1))
        low, middle, high = (curve.falls_below(threshold) for curve in curves)
        last, width = frequency[-1], np.min(np.diff(frequency), initial=frequency[0])
        spread = ((last if high is None else high) - (last if low is None else low)) / 2
        return middle, float(np.hypot(spread, width / np.sqrt(12)))


class FourierShells:
    """The shells of one box shape; made once, used for every volume of that shape.

    Args:
        shape: (Z, Y, X), odd or even, at least 2.
        spacing: voxel size along each axis in any unit; frequencies are cycles per that unit.

    Shells are one frequency step of the coarsest axis wide and centred on its multiples. They end at the smallest Nyquist
    frequency for the whole, at its own Nyquist frequency for an axis.
    """

    def __init__(self, shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1, 1, 1)) -> None:
        self.shape, self.spacing = shape, spacing
        self.width = max(1 / (size * step) for size, step in zip(shape, spacing, strict=True))
        self._weight = np.full(shape[2] // 2 + 1, 2.0)  # of coefficients that stand for their conjugate as well, by column
        self._weight[[0, -1] if shape[2] % 2 == 0 else [0]] = 1
        (z, y, x), (dz, dy, dx) = shape, spacing
        axes = [fft.fftfreq(z, dz)[:, None, None], fft.fftfreq(y, dy)[None, :, None], fft.rfftfreq(x, dx)[None, None, :]]
        radius = np.sqrt(axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2)
        # of the whole and of every cone the shell of each coefficient, and the number of shells, which stands for "outside"
        self._labels: dict[int | None, tuple[NDArray[np.int32], int]] = {}
        for axis in (None, 0, 1, 2):
            nyquist = 0.5 / (max(spacing) if axis is None else spacing[axis])
            shells = int(np.floor(nyquist / self.width + 1e-6)) + 1
            labels = np.minimum(np.floor(radius / self.width + 0.5), shells).astype(np.int32)
            if axis is not None:
                labels[np.abs(axes[axis]) < np.cos(np.deg2rad(CONE_DEGREES)) * radius - 1e-9] = shells
            self._labels[axis] = labels, shells

    @property
    def fewest(self) -> int:
        """Shells of the whole or of the cone that has fewest; of one shell, which is the mean, nothing is known."""
        return min(shells for _, shells in self._labels.values())

    def transform(self, volume: NDArray[np.generic]) -> NDArray[np.complex64]:
        """Half-spectrum (Z, Y, X // 2 + 1) of a volume of the shells' shape, without its mean."""
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
        return self.total(np.ones(self._labels[axis][0].shape), axis)

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


class Spectra:
    """The spectra of one volume's box (Z, Y, X); the shells' spacing is in units of the shortest side of ``voxel_um``."""

    def __init__(self, voxels: NDArray[np.float32], shells: FourierShells, voxel_um: Triple | None) -> None:
        self.voxels, self.shells, self.voxel_um = voxels, shells, voxel_um
        self.spectrum = shells.transform(tapered(voxels))
        self.lines = {name: power_spectrum(voxels, axis) for name, axis in AXES.items()}

    def numbers(self) -> dict[str, Any]:
        """What needs no second volume, as in metrics.json."""
        excess = axial_excess(self.shells, self.spectrum)
        cutoffs = {name: decorrelation_cutoff(self.shells, self.spectrum, axis) for name, axis in AXES.items()}
        return {
            "decorrelation": {name: self._in_units(value, AXES[name]) for name, value in cutoffs.items()},
            "axial_power_db": excess,
            "anisotropy_db": float(np.mean(np.abs(list(excess.values())))) if excess else None,
            "power": {name: {"frequency": f.tolist(), "power": power.tolist()} for name, (f, power) in self.lines.items()},
        }

    def against(self, truth: Spectra) -> dict[str, Any]:
        """Agreement with the truth by the size of detail, as in metrics.json."""
        curves, ratio = {}, {}
        for name, axis in ({"whole": None} | AXES).items():
            curve = self.shells.correlation(self.spectrum, truth.spectrum, axis)
            limits = {f"at_{threshold}": self._limit(*curve.crossing(threshold), axis) for threshold in THRESHOLDS}
            curves[name] = {
                **limits,
                "cycles_per_voxel": (curve.frequency * (1.0 if axis is None else self.shells.spacing[axis])).tolist(),
                "correlation": curve.value.tolist(),
                "coefficients": curve.count.tolist(),
            }
        for name in AXES:
            own, other = octave_power(*self.lines[name]), octave_power(*truth.lines[name])
            ratio[name] = {band: own[band] / other[band] for band in own if other[band] > 0}
        return {"fsc": curves, "power_over_truth": ratio}

    def _limit(self, value: float | None, error: float, axis: int | None) -> dict[str, float | None]:
        """A frequency with its standard error, which is in cycles per voxel."""
        return self._in_units(value, axis) | {"standard_error": error * (1.0 if axis is None else self.shells.spacing[axis])}

    def _in_units(self, value: float | None, axis: int | None) -> dict[str, float | None]:
        """A frequency in cycles per shortest voxel side, in the units that people use; all None for None."""
        value, spacing = value or None, 1.0 if axis is None else self.shells.spacing[axis]  # 0 is no frequency
        per_voxel = value and value * spacing
        per_um = value / min(self.voxel_um) if value and self.voxel_um else None
        return {
            "cycles_per_voxel": per_voxel,
            "cycles_per_um": per_um,
            "period_voxels": per_voxel and 1 / per_voxel,
            "period_um": per_um and 1 / per_um,
        }


def detail_shape(volume: NDArray[np.generic], spacing: Triple = (1.0, 1.0, 1.0)) -> dict[str, dict[str, float | None]]:
    """How long detail is along each axis, and whether rings lie beside it.

    Detail is what is left without structures of more than DETAIL voxels (a Gaussian high-pass). Its autocorrelation along an axis
    falls to half at the half-width of detail; where an axis was sharpened by too wide a profile, a negative lobe follows.

    Args:
        volume: (Z, Y, X).
        spacing: voxel sides in units of the shortest.

    Returns:
        Per axis ``half_width`` in units of the shortest voxel side (None: never below half) and ``lobe``, the lowest correlation
        up to twice DETAIL.
    """
    values = np.asarray(volume, np.float32)
    values = values - ndimage.gaussian_filter(values, [DETAIL / side for side in spacing])
    found: dict[str, dict[str, float | None]] = {}
    for name, axis in AXES.items():
        lines = lines_along(values - values.mean(dtype=np.float64), axis)
        lags = min(round(2 * DETAIL / spacing[axis]), lines.shape[-1] // 2)
        products = [float(np.mean(lines[..., : lines.shape[-1] - k] * lines[..., k:], dtype=np.float64)) for k in range(lags + 1)]
        correlation = np.array(products) / max(products[0], np.finfo(np.float32).tiny)
        curve = ShellCurve(np.arange(lags + 1.0), correlation, np.ones(lags + 1))
        half = curve.falls_below(0.5)
        found[name] = {"half_width": None if half is None else half * spacing[axis], "lobe": float(curve.value.min())}
    return found


def octave_power(frequency: NDArray[np.float64], power: NDArray[np.float64]) -> dict[str, float]:
    """Mean power in each of OCTAVES that the spectrum reaches, by its ends in cycles per voxel (``1/16-1/8``)."""
    result = {}
    for longest, shortest in OCTAVES:
        inside = (frequency > 1 / longest) & (frequency <= 1 / shortest + 1e-9)
        if inside.any():
            result[f"1/{longest}-1/{shortest}"] = float(power[inside].mean())
    return result


def axial_excess(shells: FourierShells, spectrum: NDArray[np.complexfloating]) -> dict[str, float]:
    """Power along z over power in-plane, in dB, per octave: 0 for an isotropic volume, negative where z is blurred.

    Only coefficients in the cones about the axes count: the spectrum of lines along y would also hold what z has lost. The
    spectrum is ``shells.transform`` of the tapered volume.
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
    """Highest frequency that holds structure, in cycles per unit of the shells' spacing; axis: in the cone about it alone.

    The spectrum is ``shells.transform`` of the tapered volume. None where no curve has a peak: everything up to the Nyquist
    frequency looks like structure, or nothing does.
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
