"""What ``prepare.py check`` says about a data set: which crop, factor and projection suit it, and why.

Rules on numbers that a survey has measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataloader.axial_profile import AxialProfile, estimated_profile
from dataloader.survey import Surveyed, evenly, write_sheets
from dataloader.thick_axis import thick_axis
from utils.errors import UserError
from utils.files import write_json
from utils.geometry import Geometry

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
_THICK = (
    "the thick axis is {axis}, not z: {reason}. A training takes z for it, so what would suit it cannot be told: make the "
    "files again with prepare.py volumes --input … --thick {axis} (--overwrite), which exchanges {axis} and z, and check them; "
    "infer.py enhance --thick {axis} does the same to its input, and gives its output the axes of the input"
)
_SIDES = (128, 96, 64, 32)  # multiples of the encoder's stride and of every factor


@dataclass(frozen=True)
class Measured:
    """A data set in four numbers and its smallest volume.

    Attributes:
        shape: smallest extent along (Z, Y, X) of any volume.
        sampling: axial over lateral voxel size, None where neither files nor ``uprate`` say.
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


def summarised(files: Sequence[Surveyed]) -> Measured:
    """The numbers that a recommendation needs: smallest extents, and medians over the files."""

    def median(values: Sequence[float]) -> float | None:
        return float(np.median(values)) if values else None

    voxels = [file.voxel for file in files if file.voxel]
    spectra = [(file.spectra, file.voxel) for file in files if file.spectra]
    places = [(mid - low) / (high - low) if high > low else 0.0 for low, mid, high in (file.percentiles for file in files)]
    depth, height, width = (min(file.volume.shape[axis] for file in files) for axis in range(3))
    return Measured(
        shape=(depth, height, width),
        sampling=median([2 * z / (y + x) for z, y, x in voxels]),
        resolution=median([found.ratio(voxel) for found, voxel in spectra]),
        axial_cutoff=median([found.cutoff[0] for found, _ in spectra]),
        undersampled=sum(found.undersampled for found, _ in spectra) * 2 > len(spectra),
        median=float(np.median(places)),
    )


def report(
    files: Sequence[Surveyed], problems: Sequence[str], settings: Mapping[str, Any], needs: Sequence[str], folder: Path
) -> Iterator[str]:
    """What there is to say about the files, line by line; a page per direction and check.json are written on the way.

    Args:
        files: at least one; told are a few, spread over all, and those that have faults.
        problems: what would stop a training.
        settings: of the training.
        needs: lines about what that training takes.
        folder: for the pages and check.json.
    """
    spread = {id(file) for file in evenly(files)}
    shown = [file for file in files if id(file) in spread or file.faults()]
    for file in shown:
        yield f"  {file.name}: {file.facts}"
        yield from (f"    ! {fault}" for fault in file.faults())
    if len(shown) < len(files):
        yield f"  and {len(files) - len(shown)} more files without faults"
    measured = summarised(files)
    thick = thick_axis([file.volume.voxel_um for file in files], [file.along for file in files])
    yield _anisotropy_line(measured)
    if thick:
        found, profile = Recommendation({}, None, [_THICK.format(axis=thick[0], reason=thick[1])]), None
        yield f"! {found.reasons[0]}"
    else:
        found, profile = recommend(measured), _profile(files, measured, settings)
        if "axial_sampling" not in settings:  # the lateral model has no such geometry
            yield from _recommendation_lines(found, measured, settings)
        yield from _profile_lines(profile, settings)
    yield from needs
    for path in write_sheets(files, folder, settings["dataset"]):
        yield f"contact sheet: {path}"
    content = {
        "problems": list(problems),
        "recommended": found.settings,
        "factor": found.factor,
        "thick_axis": thick[0] if thick else "z",
        "reasons": found.reasons,
        "axial_profile": profile and profile.as_json(),
        "files": [file.as_json() for file in files],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "check.json", content)
    yield f"as data: {folder / 'check.json'}"


def _anisotropy_line(found: Measured) -> str:
    if found.resolution is None:
        return "anisotropy: not measured (volumes of fewer than 8 planes or rows, or constant)"
    sampling = "voxel sizes not stated" if found.sampling is None else f"voxels {found.sampling:.3g} times as long along z"
    more = "at least " if found.undersampled else ""
    why = "; signal reaches the axial Nyquist frequency (undersampled)" if found.undersampled else ""
    unit = "in voxels; " if found.sampling is None else ""
    return f"anisotropy: axial over lateral resolution length {more}{found.resolution:.2f} ({unit}{sampling}){why}"


def _recommendation_lines(found: Recommendation, data: Measured, settings: Mapping[str, Any]) -> Iterator[str]:
    """What would suit, as options to paste, with the reasons; how the settings differ, and whether they make cubes."""
    known = {name: value for name, value in found.settings.items() if name in settings}
    different = [name for name, value in known.items() if settings[name] != value]
    options = " ".join(f"--{name} {value}" for name, value in known.items())
    note = f"the settings differ in {', '.join(different)}" if different else "as the settings say"
    yield f"recommended: {options} ({note})" if known else "no recommendation"
    yield from (f"  because: {reason}" for reason in found.reasons)
    try:
        factor = Geometry.from_settings(settings).factor
    except UserError:  # told among the problems
        return
    shape = (data.sampling or 0) * settings["dsp"] / settings["usp"] / factor
    if shape and abs(shape - 1) > 0.05:
        yield f"note: with these settings (factor {factor}) output voxels are {shape:.3g} times as long along z as in-plane"


def _profile(files: Sequence[Surveyed], data: Measured, settings: Mapping[str, Any]) -> AxialProfile | None:
    """What the files tell together; None where the distance of their sections is not known, or nothing was measured."""
    if data.sampling is None and data.undersampled and not settings.get("uprate"):
        return None
    return estimated_profile([file.side for file in files if file.side], settings.get("axial_sampling", "pick"))


def _profile_lines(found: AxialProfile | None, settings: Mapping[str, Any]) -> Iterator[str]:
    """The blur along z, as options of the lateral model to paste, and how far they can be trusted."""
    if found is None:
        yield "axial profile: not measured (fewer than 8 sections or pixels, constant, or neither voxel sizes nor --uprate known)"
        return
    if found.no_blur:
        yield (
            f"axial profile: down to periods of {1 / found.seen_to:.2g} pixels, z is blurred no more than y and x: leave "
            "axial_sigma and axial_taps of the lateral model out"
        )
        return
    sampling = settings.get("axial_sampling", "pick")
    half = f"half at periods of {found.half_contrast:.3g} pixels, " if found.half_contrast else ""
    yield (
        f"axial profile: beside the sampling ({sampling}), z shows less contrast than y and x: {half}{found.seen_share:.0%} at "
        f"{1 / found.seen_to:.2g}, the finest measured; width at half maximum {found.width:.3g} ± {found.width_error:.2g} pixels"
    )
    taps = " ".join(f"{round(tap, 4):g}" for tap in found.taps)
    yield f"  for the lateral model: --uprate {found.step:.4g} --axial_sampling {sampling} --axial_taps {taps}"
    for doubt in found.doubts():
        yield f"  ! not to be trusted: {doubt}; a wrong profile makes dark rings beside bright bodies, so train without it first"


# Rules --------------------------------------------------------------------------------------------------------------


class Recommendation(NamedTuple):
    """Settings, planes per slice, and the reasons for them, one line each."""

    settings: dict[str, Any]
    factor: int | None
    reasons: list[str]


def recommend(data: Measured) -> Recommendation:
    """The settings that suit a data set; no ``settings`` where nothing can be said, with the reason."""
    if data.sampling is None and data.undersampled:
        reason = (
            "signal reaches the axial Nyquist frequency, so planes are missing along z, but the files state no voxel size: "
            "the factor cannot be told; write voxel sizes into the files (prepare.py volumes --voxel z,y,x)"
        )
        return Recommendation({}, None, [reason])
    sampling = data.sampling or 1.0
    rule = _coarse if sampling >= COARSE else _blurred if (data.resolution or 0) >= BLURRED and data.axial_cutoff else _isotropic
    dsp, how, factor, reasons = rule(data, sampling)
    if data.sampling is None:
        reasons.insert(0, "the files state no voxel size; voxels are taken as cubes")
    usp = dsp * sampling / factor
    if abs(usp - 1) <= TOLERANCE:
        usp = 1
    else:
        usp = max(round(usp, 3), 1e-3)
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
    reasons = [
        f"planes are {sampling:.3g} times as far apart as pixels, so {factor} planes per slice{seen}",
        f"l1how {how}: a slice gathers the light of its planes and {structure}; take dsp where a slice shows one thin plane "
        "(serial sections, a milled block face)",
    ]
    return 1, how, factor, reasons


def _blurred(data: Measured, sampling: float) -> Rule:
    """Planes are there but show little of their own: keep one per axial resolution length."""
    assert data.axial_cutoff is not None
    length = sampling / data.axial_cutoff
    factor = _nearest(length)
    reasons = [
        f"z is sampled like y and x but resolves {data.resolution:.3g} times less (blurred, or interpolated before): structure "
        f"ends at {data.axial_cutoff:.2g} cycles per plane, one resolution length is {length:.2g} voxels; dsp {factor} keeps "
        f"about one plane per length and leaves {factor - 1} of {factor} recorded planes out; the output has the input's shape",
        f"l1how mean: blur averages, so a plane holds the mean light of about one resolution length, which are the {factor} "
        "planes that it stands for (max bounds no dark voxel, and leaves dark spots)",
    ]
    return factor, "mean", factor, reasons


def _isotropic(data: Measured, sampling: float) -> Rule:
    reason = (
        "the axial spectrum could not be compared with the lateral ones (volumes too thin or constant)"
        if data.resolution is None
        else f"z resolves as well as y and x (ratio {data.resolution:.2g}), so there is nothing to restore"
    )
    thinned = "dsp 8 trains on every 8th plane, to compress or to simulate an anisotropic volume with known truth"
    return 8, "dsp", 8, [f"{reason}; {thinned} (7 of every 8 recorded planes are left out)"]


def _nearest(value: float) -> int:
    return min(FACTORS, key=lambda factor: abs(math.log(factor / value)))
