"""The files of one evaluation, opened, laid on one grid and checked, with the baselines they allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.baselines import METHODS, Candidate, Degraded, Sections, Sliceable
from evaluation.codecs import coded_sections
from evaluation.comparison import Comparison, Request
from evaluation.grids import Placement, average_position, pick_position, place_input, place_reconstruction
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import Box, Triple, Volume


def open_comparison(request: Request, folder: Path) -> Comparison:
    """Open the files, lay them on the grid of the truth (else of the reconstruction) and add the baselines.

    Args:
        request: what to compare.
        folder: for temporary files; it must outlive the comparison.

    Raises:
        UserError: files, positions or options that do not go together; the message gives the remedy.
    """
    _check_request(request)
    opened = {
        name: _opened(path, request.channel, None if name == "input" else request.voxel_um)
        for name, path in (("reconstruction", request.reconstruction), ("truth", request.truth), ("input", request.input))
        if path is not None
    }
    reference = opened.get("truth") or opened["reconstruction"]
    reach = [(0, size) for size in reference.shape]
    alignment: dict[str, Any] = {"grid": f"voxels of {reference.path.name}"}
    placement = None
    if "truth" in opened and "reconstruction" in opened:
        placement = place_reconstruction(opened["reconstruction"], reference)
        alignment["reconstruction"] = _described(placement)
        reach = _overlap(reach, opened["reconstruction"], placement)
    region = _region(request.region, reach, reference)
    sections = _sections(request, opened, reference, region, alignment)
    limits = _limits(reference.dtype)
    comparison = Comparison(
        region=region,
        voxel_um=reference.voxel_um,
        truth=None,
        candidates={},
        sections=sections,
        dtype=reference.dtype,
        files={name: _facts(volume) for name, volume in opened.items()},
        alignment=alignment,
        notes=[],
    )
    if "truth" in opened:
        comparison.truth = Candidate(Sections(reference, 0, 1), "exact")
    if "reconstruction" in opened:
        comparison.candidates["reconstruction"] = reconstruction_candidate(
            opened["reconstruction"], placement, limits, comparison.notes
        )
        if "truth" in opened and opened["reconstruction"].dtype != reference.dtype:
            comparison.notes.append(
                f"The reconstruction is stored as {opened['reconstruction'].dtype}, the truth as {reference.dtype}; grey values "
                f"were compared as they are, without rescaling."
            )
    _add_baselines(comparison, request, limits, folder)
    return comparison


def _opened(path: Path, channel: int | None, voxel_um: Triple | None) -> Volume:
    """A volume, with a voxel size for one that states none."""
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(f"{path} is an empty folder; name a volume, stored as (Z, Y, X)")
    volume = open_volume(path, channel=channel)
    volume.voxel_um = volume.voxel_um or voxel_um
    return volume


def _facts(volume: Volume) -> dict[str, Any]:
    """What the report says of a file."""
    return {
        "path": str(volume.path),
        "shape": list(volume.shape),
        "dtype": str(volume.dtype),
        "voxel_um": volume.voxel_um,
        "translation_um": volume.translation_um,
    }


def _check_request(request: Request) -> None:
    if request.reconstruction is None and request.truth is None:
        raise UserError("nothing to evaluate: name --reconstruction R, or --truth T for the baselines alone")
    if request.degrade is not None and request.truth is None:
        raise UserError("--thin and --average simulate the input from the truth; name --truth T")
    if request.degrade is not None and request.input is not None:
        raise UserError("--input and --thin/--average both define the input; drop one")
    if request.reconstruction is None and request.input is None and request.degrade is None:
        raise UserError("without --reconstruction the baselines are evaluated; they need --input I, --thin F or --average F")
    if request.input is None and (request.input_position is not None or request.factor is not None):
        raise UserError("--input-position and --factor describe --input; name it, or use --thin F or --average F with a truth")
    if request.factor is not None and request.input_position is None:
        raise UserError("--factor alone does not say where the sections lie; add --input-position pick or average")
    factor = request.factor if request.degrade is None else request.degrade[1]
    if factor is not None and factor < 1:
        raise UserError(f"a factor of {factor} planes per section must be at least 1")


def _described(placement: Placement) -> dict[str, Any]:
    return {
        "first_plane": placement.first,
        "planes_per_section": placement.step,
        "row": placement.row,
        "column": placement.column,
        "how": placement.how,
    }


def _overlap(reach: list[tuple[int, int]], volume: Volume, placement: Placement) -> list[tuple[int, int]]:
    last = placement.position(volume.shape[0] - 1)
    own = [
        (int(np.ceil(placement.first - 1e-6)), int(np.floor(last + 1e-6)) + 1),
        (placement.row, placement.row + volume.shape[1]),
        (placement.column, placement.column + volume.shape[2]),
    ]
    both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(reach, own, strict=True)]
    if any(b - a < 1 for a, b in both):
        raise UserError(
            f"{volume.path} and the truth do not overlap: by their translations it covers {own}, the truth {reach} "
            f"(z, y, x voxels); correct the translations"
        )
    return both


def _region(wanted: Box | None, reach: list[tuple[int, int]], reference: Volume) -> Box:
    parts = []
    for k, (low, high) in enumerate(reach):
        part = slice(None) if wanted is None else wanted[k]
        start = low if part.start is None else part.start
        stop = high if part.stop is None else part.stop
        if not low <= start < stop <= high:
            raise UserError(
                f"--region {start}:{stop} along {'ZYX'[k]} must lie within {low}:{high}, where {reference.path.name} and the "
                "reconstruction have voxels"
            )
        parts.append(slice(start, stop))
    return parts[0], parts[1], parts[2]


def _limits(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    if not np.issubdtype(dtype, np.integer):
        return None
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def _sections(
    request: Request, opened: dict[str, Volume], reference: Volume, region: Box, alignment: dict[str, Any]
) -> Sections | None:
    if request.degrade is not None:
        how, factor = request.degrade
        degraded = Degraded(reference, region, factor, how)
        offset = pick_position(factor) if how == "pick" else average_position(factor)
        placement = Placement(
            factor * degraded.start + offset,
            float(factor),
            region[1].start,
            region[2].start,
            f"simulated from the truth: {'plane f·k + f//2' if how == 'pick' else 'mean of planes f·k … f·k + f − 1'}, f = "
            f"{factor}",
        )
        alignment["input"] = _described(placement)
        return Sections(degraded, placement.first, placement.step, placement.row, placement.column)
    if "input" not in opened:
        return None
    volume = opened["input"]
    placement = place_input(volume, reference, request.input_position, request.factor)
    alignment["input"] = _described(placement)
    for part, start, size, name in zip(region[1:], (placement.row, placement.column), volume.shape[1:], "YX", strict=True):
        if part.start < start or part.stop > start + size:
            raise UserError(
                f"{volume.path} covers {start}:{start + size} along {name} and the compared region is "
                f"{part.start}:{part.stop}; restrict it with --region"
            )
    if placement.first > region[0].stop - 1 or placement.position(volume.shape[0] - 1) < region[0].start:
        raise UserError(
            f"no section of {volume.path} lies near the compared planes {region[0].start}:{region[0].stop}: by {placement.how} "
            f"they begin at {placement.first:g}; correct the translation"
        )
    return Sections(volume, placement.first, placement.step, placement.row, placement.column)


def reconstruction_candidate(
    volume: Sliceable, placement: Placement | None, limits: tuple[float, float] | None, notes: list[str]
) -> Candidate:
    """A restored volume on the grid it is compared on.

    Args:
        volume: the volume.
        placement: on that grid; None: it is the grid.
        limits: of its grey values, where it has to be interpolated.
        notes: gets a sentence where it has to be interpolated.
    """
    if placement is None:
        return Candidate(Sections(volume, 0, 1), "exact")
    sections = Sections(volume, placement.first, placement.step, placement.row, placement.column)
    if placement.step == 1 and placement.first == round(placement.first):
        return Candidate(sections, "exact")
    notes.append(
        f"The planes of the reconstruction lie at {placement.first:g} + k·{placement.step:g} of the truth's grid; they were "
        "brought onto it by a cubic spline along z."
    )
    return Candidate(sections, "cubic", limits)


def _add_baselines(comparison: Comparison, request: Request, limits: tuple[float, float] | None, folder: Path) -> None:
    sections = comparison.sections
    if sections is None:
        comparison.notes.append(
            "No interpolation to compare with, because the input is not known: add --input I"
            + (", --thin F or --average F." if comparison.truth is not None else ".")
        )
        return
    if sections.step == 1 and sections.first == round(sections.first):
        comparison.candidates["input"] = Candidate(sections, "exact")
        comparison.notes.append("The input is sampled like the output, so there is nothing to interpolate; it is shown as it is.")
    else:
        for method in METHODS:
            comparison.candidates[method] = Candidate(sections, method, limits)
    if request.codec is not None:
        coded, rate = coded_sections(sections, comparison.region, comparison.dtype, request.bpp, folder)
        comparison.alignment["codec"] = {"name": request.codec, "bits_per_pixel": rate, "limit": request.bpp}
        for method in METHODS[1:]:
            comparison.candidates[f"{request.codec} + {method}"] = Candidate(coded, method, limits)
