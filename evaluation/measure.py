"""All numbers of one comparison, as plain values (see metrics_schema)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation import metrics
from evaluation.baselines import Candidate
from evaluation.comparison import Comparison, Request
from evaluation.consistency import consistency
from evaluation.fsc import CONE_DEGREES, FourierShells, ShellCurve, tapered
from evaluation.metrics import DataRange, Moments
from evaluation.spectra import axial_excess, decorrelation_cutoff, octave_power
from utils.errors import UserError
from utils.spectra import power_spectrum
from volumes.volume import Box, extent

AXES = {"z": 0, "y": 1, "x": 2}
THRESHOLDS = (0.5, 0.143)
REFERENCE = "truth"  # name under which the truth's own numbers stand beside the candidates'


def measure(comparison: Comparison, request: Request) -> dict[str, Any]:
    """Measure every candidate, and the truth itself where a metric needs no second volume.

    Returns:
        ``data_range``, ``sampling``, ``volumes`` (per name) and ``curves`` (what the figures draw) as in metrics.json.

    Raises:
        UserError: NaN, infinite values, or a volume that holds one value only.
    """
    moments = _sweep(comparison)
    data_range = choose_range(request.data_range, comparison, moments)
    box = comparison.central_box(request.sample)
    whole = box == comparison.region
    shells = FourierShells(_shape(box), comparison.spacing)
    truth = None if comparison.truth is None else _Sampled(comparison.truth, box, shells)
    volumes: dict[str, Any] = {}
    named = dict(comparison.candidates)
    if comparison.truth is not None:
        named[REFERENCE] = comparison.truth
    for name, candidate in tqdm(named.items(), desc="similarity and spectra", leave=False):
        sampled = truth if name == REFERENCE and truth is not None else _Sampled(candidate, box, shells)
        result: dict[str, Any] = {"gradient_ratio_z_xy": moments[name].gradient_ratio(comparison.spacing)}
        result |= _own_numbers(sampled, comparison)
        if truth is not None and name != REFERENCE:
            result |= moments[name].fidelity(data_range.width)
            result |= _against_truth(sampled, truth, data_range, request, comparison)
        if comparison.sections is not None and name != REFERENCE:
            result["consistency"] = consistency(candidate, comparison.sections, comparison, data_range.width)
        volumes[name] = result
    return {
        "data_range": {"low": data_range.low, "high": data_range.high, "width": data_range.width, "rule": data_range.rule},
        "sampling": _sampling(comparison, request, box, whole),
        "volumes": volumes,
    }


class _Sampled:
    """One volume's central box in memory, with its half-spectrum."""

    def __init__(self, candidate: Candidate, box: Box, shells: FourierShells) -> None:
        self.voxels, self.shells = candidate.block(box), shells
        self.spectrum = shells.transform(tapered(self.voxels))
        self.lines = [power_spectrum(self.voxels, axis) for axis in range(3)]


def _shape(box: Box) -> tuple[int, int, int]:
    z, y, x = extent(box)
    if min(z, y, x) < 2:
        raise UserError(f"the compared box is {z}×{y}×{x} voxels (z, y, x); every side needs at least 2. Widen --region")
    return z, y, x


def _sweep(comparison: Comparison) -> dict[str, Moments]:
    """One pass over all voxels, block by block."""
    moments = {name: Moments() for name in (*comparison.candidates, *([REFERENCE] if comparison.truth else []))}
    with tqdm(total=math.prod(comparison.shape), unit="voxel", unit_scale=True, desc="all voxels", leave=False) as bar:
        for core, longer in comparison.blocks():
            size = extent(core)
            truth = None
            if comparison.truth is not None:
                block = _finite(comparison.truth.block(longer), REFERENCE)
                moments[REFERENCE].add(block, size)
                truth = block[: size[0], : size[1], : size[2]]
            for name, candidate in comparison.candidates.items():
                moments[name].add(_finite(candidate.block(longer), name), size, truth)
            bar.update(math.prod(size))
    for name, own in moments.items():
        if own.low == own.high and name in (REFERENCE, "reconstruction"):
            raise UserError(
                f"the {name} holds one value only ({own.low:g}) in the compared region; check the file, its channel and --region"
            )
    return moments


def _finite(block: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(block).all():
        raise UserError(f"the {name} holds NaN or infinite values; mask or replace them before evaluating")
    return block


def choose_range(wanted: str, comparison: Comparison, moments: dict[str, Moments]) -> DataRange:
    """The intensities that PSNR and SSIM refer to.

    Args:
        wanted: ``auto`` (uint8: 0–255; else the reference's own range), ``dtype``, ``reference``, or a positive number.
        comparison: tells the dtype of the reference.
        moments: sums of all volumes; the reference is the truth, else the reconstruction.

    Raises:
        UserError: the dtype has no range, or the number is none.
    """
    name = REFERENCE if REFERENCE in moments else next(iter(moments))
    dtype = comparison.dtype
    if wanted == "dtype" or (wanted == "auto" and dtype == np.uint8):
        if not np.issubdtype(dtype, np.integer):
            raise UserError(f"--data-range dtype: {dtype} has no natural range; use reference or a number")
        limits = np.iinfo(dtype)
        return DataRange(float(limits.min), float(limits.max), f"full range of {dtype}")
    if wanted in ("auto", "reference"):
        return DataRange(moments[name].low, moments[name].high, f"smallest to largest value of the {name}")
    try:
        width = float(wanted)
    except ValueError:
        width = math.nan
    if not (width > 0 and math.isfinite(width)):
        raise UserError(f"--data-range {wanted} must be auto, dtype, reference or a positive number")
    return DataRange(0.0, width, "given with --data-range")


def _own_numbers(sampled: _Sampled, comparison: Comparison) -> dict[str, Any]:
    cutoffs = {
        name: _frequency(decorrelation_cutoff(sampled.shells, sampled.spectrum, axis), axis, comparison)
        for name, axis in AXES.items()
    }
    excess = axial_excess(sampled.shells, sampled.spectrum)
    return {
        "decorrelation": cutoffs,
        "axial_power_db": excess,
        "anisotropy_db": float(np.mean(np.abs(list(excess.values())))) if excess else None,
        "power": {
            name: {"frequency": sampled.lines[axis][0].tolist(), "power": sampled.lines[axis][1].tolist()}
            for name, axis in AXES.items()
        },
    }


def _against_truth(
    sampled: _Sampled, truth: _Sampled, data_range: DataRange, request: Request, comparison: Comparison
) -> dict[str, Any]:
    precise: Callable[[Any], Any] = (lambda x: x) if comparison.dtype == np.uint8 else (lambda x: x.astype(np.float64))
    volume, reference = precise(sampled.voxels), precise(truth.voxels)
    curves = {"whole": sampled.shells.correlation(sampled.spectrum, truth.spectrum)}
    curves |= {name: sampled.shells.correlation(sampled.spectrum, truth.spectrum, axis) for name, axis in AXES.items()}
    ratio = {}
    for name, axis in AXES.items():
        own, other = octave_power(*sampled.lines[axis]), octave_power(*truth.lines[axis])
        ratio[name] = {band: own[band] / other[band] for band in own if other[band] > 0}
    return {
        "ssim": metrics.ssim(volume, reference, data_range.width, request.planes),
        "ms_ssim": metrics.ms_ssim(volume, reference, data_range.width, request.planes),
        "lpips": metrics.lpips(sampled.voxels, truth.voxels, data_range) if metrics.lpips_weights() else None,
        "fsc": {name: _curve(curve, AXES.get(name), comparison) for name, curve in curves.items()},
        "power_over_truth": ratio,
    }


def _frequency(value: float | None, axis: int | None, comparison: Comparison) -> dict[str, float | None]:
    """A frequency in cycles per shortest voxel side, in the units that people use; all None for None."""
    if value is None or value <= 0:
        return {"cycles_per_voxel": None, "cycles_per_um": None, "period_voxels": None, "period_um": None}
    per_voxel = value * (1.0 if axis is None else comparison.spacing[axis])
    per_um = None if comparison.voxel_um is None else value / min(comparison.voxel_um)
    return {
        "cycles_per_voxel": per_voxel,
        "cycles_per_um": per_um,
        "period_voxels": 1 / per_voxel,
        "period_um": None if per_um is None else 1 / per_um,
    }


def _curve(curve: ShellCurve, axis: int | None, comparison: Comparison) -> dict[str, Any]:
    scale = 1.0 if axis is None else comparison.spacing[axis]
    result: dict[str, Any] = {
        f"at_{threshold}": _frequency(curve.falls_below(threshold), axis, comparison) for threshold in THRESHOLDS
    }
    return result | {
        "cycles_per_voxel": (curve.frequency * scale).tolist(),
        "correlation": curve.value.tolist(),
        "coefficients": curve.count.tolist(),
    }


def _sampling(comparison: Comparison, request: Request, box: Box, whole: bool) -> dict[str, Any]:
    everywhere, boxed = ["gradient_ratio_z_xy", "consistency"], ["power", "axial_power_db", "decorrelation"]
    words = "Spectra, isotropy and decorrelation"
    if comparison.truth is not None:
        everywhere, boxed = ["psnr_db", "rmse", "nrmse", "pearson", *everywhere], ["ssim", "ms_ssim", "lpips", "fsc", *boxed]
        words = "SSIM, MS-SSIM, LPIPS, Fourier shell correlation, spectra, isotropy and decorrelation"
    chosen = request.planes
    every = chosen == slice(None)
    some = "" if every else f" SSIM and MS-SSIM of planes: planes {slice_text(chosen)} of each orientation only;"
    return {
        "all_voxels": everywhere,
        "central_box": [[part.start, part.stop] for part in box],
        "central_box_is_whole_region": whole,
        "central_box_metrics": boxed,
        "planes": [chosen.start or 0, chosen.stop, chosen.step or 1],
        "lpips_planes_per_orientation": metrics.LPIPS_PLANES,
        "fsc": f"mean removed, cosine taper, cones of {CONE_DEGREES:g}° about the axes",
        "statement": f"{words}: {'the whole region' if whole else 'the central box only'};{some} all other metrics: every voxel",
    }


def slice_text(part: slice) -> str:
    """``a:b:s`` as on the command line."""
    return ":".join("" if number is None else str(number) for number in (part.start, part.stop, part.step))
