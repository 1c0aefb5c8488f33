"""Which crop, factor and projection suit the data, and why: rules on numbers that a survey has measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

FACTORS = {  # planes per slice → branch options
    2: {"downbranch": 4, "resizebranch": 1},
    4: {"downbranch": 2, "resizebranch": 1},
    8: {"downbranch": 1, "resizebranch": 1},
    16: {"downbranch": 1, "resizebranch": 2},
}
COARSE = 1.5  # axial over lateral voxel size from which planes are missing rather than blurred
BLURRED = 1.1  # axial over lateral resolution length from which there is something to restore
TOLERANCE = 0.05  # deviation from cubic voxels that is worth an interpolation
DARK = 0.25  # median within the range of grey values, below which bright structures lie on a dark background
SKIP = 4  # slices per slab that training projects by default
_SIDES = (128, 96, 64, 32)  # multiples of the encoder's stride and of every factor


@dataclass(frozen=True)
class Measured:
    """A data set in four numbers and its smallest volume.

    Attributes:
        shape: smallest extent along (Z, Y, X) of any volume.
        sampling: axial over lateral voxel size, None where files do not say.
        resolution: axial over lateral resolution length (at least, where undersampled); None where it could not be measured.
        axial_cutoff: cycles per voxel along z at which the spectrum meets the noise.
        undersampled: signal reaches the axial Nyquist frequency.
        median: place of the median grey value between the 0.1 (0) and 99.9 (1) percentiles.
    """

    shape: tuple[int, int, int]
    sampling: float | None
    resolution: float | None
    axial_cutoff: float | None
    undersampled: bool
    median: float


@dataclass
class Recommendation:
    """Settings, and the reasons for them, one line each."""

    settings: dict[str, Any] = field(default_factory=dict)
    factor: int | None = None
    reasons: list[str] = field(default_factory=list)


def recommend(data: Measured) -> Recommendation:
    """The settings that suit a data set; no ``settings`` where nothing can be said, with the reason."""
    if data.sampling is None and data.undersampled:
        return Recommendation(
            reasons=[
                "signal reaches the axial Nyquist frequency, so planes are missing along z, but the files state no voxel size: "
                "the factor cannot be told; write voxel sizes into the files (prepare.py volumes --voxel z,y,x)"
            ]
        )
    sampling = data.sampling or 1.0
    rule = _coarse if sampling >= COARSE else _blurred if (data.resolution or 0) >= BLURRED and data.axial_cutoff else _isotropic
    dsp, how, factor, reasons = rule(data, sampling)
    if data.sampling is None:
        reasons.insert(0, "the files state no voxel size; voxels are taken as cubes")
    usp = dsp * sampling / factor
    if abs(usp - 1) <= TOLERANCE:
        usp = 1
    else:
        usp = round(usp, 3)
        reasons.append(f"usp {usp:g}: planes are interpolated along z so that the output voxels are cubes")
    for side in _SIDES:  # the largest usual crop that the smallest volume holds
        slices = side // factor
        near = math.floor(slices * dsp / usp)  # the fewest planes that make so many slices; rounding may skip that number
        cropz = next((planes for planes in (near, near + 1) if planes and int(planes * usp / dsp) == slices), None)
        if cropz and slices >= 2 and data.shape[0] >= cropz and min(data.shape[1:]) >= side:
            crop = {"cropsize": side, "cropz": cropz, "usp": usp, **FACTORS[factor], **({"skipl1": 1} if slices % SKIP else {})}
            reasons.append(f"cropsize {side}, cropz {cropz}: {slices} slices make a cube of {side}³")
            return Recommendation({"dsp": dsp, "l1how": how, **crop}, factor, reasons)
    need = math.ceil(max(2, _SIDES[-1] // factor) * dsp / usp)
    reasons.append(
        f"the smallest volume, (Z, Y, X) = {data.shape}, holds no crop of {_SIDES[-1]}² pixels and {need} planes; "
        "larger volumes are needed, or another factor"
    )
    return Recommendation({}, factor, reasons)


Rule = tuple[int, str, int, list[str]]  # dsp, l1how, planes per slice, reasons


def _coarse(data: Measured, sampling: float) -> Rule:
    """Planes are missing: every slice stands for as many planes as make cubic voxels."""
    factor = _nearest(sampling)
    dark = data.median < DARK
    how, structure = ("max", "bright structures lie on a dark background") if dark else ("mean", "grey values fill their range")
    seen = "; signal reaches the axial Nyquist frequency, so the planes between are truly missing" if data.undersampled else ""
    return (
        1,
        how,
        factor,
        [
            f"planes are {sampling:.3g} times as far apart as pixels, so {factor} planes per slice{seen}",
            f"l1how {how}: a slice gathers the light of its planes and {structure}; take dsp where a slice shows one thin "
            "plane (serial sections, a milled block face)",
        ],
    )


def _blurred(data: Measured, sampling: float) -> Rule:
    """Planes are there but show little of their own: keep one per axial resolution length."""
    assert data.axial_cutoff is not None
    length = sampling / data.axial_cutoff
    factor = _nearest(length)
    return (
        factor,
        "mean",
        factor,
        [
            f"z is sampled like y and x but resolves {data.resolution:.3g} times less (blurred, or interpolated before): "
            f"structure ends at {data.axial_cutoff:.2g} cycles per plane, one resolution length is {length:.2g} voxels; "
            f"dsp {factor} keeps about one plane per length, and the output has the input's shape",
            "l1how mean: blur averages, so a plane holds the mean light of about one resolution length, which are the "
            f"{factor} planes that it stands for (max bounds no dark voxel, and leaves dark spots)",
        ],
    )


def _isotropic(data: Measured, sampling: float) -> Rule:
    reason = (
        "the axial spectrum could not be compared with the lateral ones (volumes too thin or constant)"
        if data.resolution is None
        else f"z resolves as well as y and x (ratio {data.resolution:.2g}), so there is nothing to restore"
    )
    thinned = "dsp 8 trains on every 8th plane, to compress or to simulate an anisotropic volume with known truth"
    return 8, "dsp", 8, [f"{reason}; {thinned}"]


def _nearest(value: float) -> int:
    return min(FACTORS, key=lambda factor: abs(math.log(factor / value)))
