"""The files of an evaluation on one grid: the truth, the reconstruction, and what interpolation makes of the input.

Positions are known as the user states them, by voxel size and translation, as a reconstruction records them, or by equal
shapes; of an input thinned from the truth, by the planes that it equals. Nothing is guessed: 3.5 planes of misregistration cost
2.7 dB at 8×, more than most methods gain.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.codecs import coded_sections
from evaluation.record import Recorded, as_seen, picked_of
from evaluation.sections import METHODS, Candidate, Degraded, Sections
from utils.axes import exchanged
from utils.boxes import Box, region_within
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import Triple, Volume, seen_along

SIZE_TOLERANCE = 1e-3  # relative, of two voxel sizes that are taken to be equal
PLACE_TOLERANCE = 0.05  # voxels, of an in-plane offset that is taken to be whole


@dataclass(frozen=True)
class Request:
    """What is to be evaluated; the options of evaluate.py.

    Attributes:
        reconstruction, truth, input: files; at least a reconstruction or a truth.
        degrade: (``pick`` or ``average``, factor): the input is simulated from the truth.
        input_position, factor: how the input's sections relate to the planes, where the files do not say.
        thick: axis of the files that is z here (None: as the reconstruction records); region and voxel_um are of the files.
        region: box of the truth (without it of the reconstruction) to evaluate; None for all.
        voxel_um: voxel size (z, y, x) of truth and reconstruction where the files have none.
        channel: channel of multi-channel files; beside them a file of one channel is taken as it is.
        data_range: ``auto``, ``dtype``, ``reference`` or a number.
        codec: ``jpeg2000`` adds the baselines of sections sent through it at bpp bits per pixel.
        planes: planes of each orientation that SSIM and MS-SSIM average.
        sample: longest side of the central box for the metrics that need one box in memory.
    """

    reconstruction: Path | None = None
    truth: Path | None = None
    input: Path | None = None
    degrade: tuple[str, int] | None = None
    input_position: str | None = None
    factor: int | None = None
    thick: str | None = None
    region: Box | None = None
    voxel_um: Triple | None = None
    channel: int | None = None
    data_range: str = "auto"
    codec: str | None = None
    bpp: float = 0.125
    planes: slice = field(default_factory=lambda: slice(None))
    sample: int = 256


@dataclass
class Comparison:
    """Everything on one grid.

    Attributes:
        region: the box that is compared, in voxels of the reference (the truth, else the reconstruction).
        voxel_um: voxel size of the grid (z, y, x), None where unknown.
        dtype: dtype of the reference.
        truth: the truth, or None.
        candidates: the reconstruction (if any) first, then the baselines, by name.
        sections: the input's sections, or None.
        taps: profile along z, by which the reconstruction says that its planes were blurred before they were seen as sections.
        files, alignment: what was read, and how it was laid together; plain values for the report.
        notes: what was left out and why.
    """

    region: Box
    voxel_um: Triple | None
    dtype: np.dtype[Any]
    truth: Candidate | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    sections: Sections | None = None
    taps: tuple[float, ...] = (1.0,)
    files: dict[str, Any] = field(default_factory=dict)
    alignment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def spacing(self) -> Triple:
        """Voxel sides in units of the shortest side."""
        z, y, x = self.voxel_um or (1.0, 1.0, 1.0)
        shortest = min(z, y, x)
        return z / shortest, y / shortest, x / shortest


def open_comparison(request: Request, folder: Path) -> Comparison:
    """Open the files, lay them on the grid of the truth (else of the reconstruction) and add the baselines.

    The folder, for temporary files, must outlive the comparison. Files, positions or options that do not go together are a
    UserError with the remedy.
    """
    files, thick = _opened(request)
    truth, restored, given = (files.get(name) for name in ("truth", "reconstruction", "input"))
    reference = truth or files["reconstruction"]
    placed = None if restored is None else place_reconstruction(restored, reference)
    known = None
    if given is not None:
        known = place_input(given, reference, request.input_position, request.factor, placed)
    notes: list[str] = []
    if truth and placed and known and not request.input_position and _missing(truth):
        placed, known, notes = as_seen(placed, known, truth)
    region = _compared(request.region and exchanged(request.region, thick), reference, placed)
    found = Comparison(region, reference.voxel_um, reference.dtype, notes=notes)
    if thick != "z":
        found.notes.append(f"The thick axis of the files is {thick}: here it is called z, and z is called {thick}.")
    found.alignment["grid"] = f"voxels of {reference.path.name}"
    for name, file in files.items():
        about = {"path": str(file.path), "shape": list(file.shape), "dtype": str(file.dtype)}
        about |= {key: file.attributes[key] for key in ("run", "weights") if key in file.attributes}
        found.files[name] = about | {"voxel_um": file.voxel_um, "translation_um": file.translation_um}
    if truth is not None:
        found.truth = Candidate(Sections(truth, 0, 1))
    if placed is not None:
        found.candidates["reconstruction"] = restored_candidate(placed, reference.dtype, found.notes)
        found.taps = tuple(placed.source.attributes.get("axial_taps", found.taps))
        if truth is not None:
            found.alignment["reconstruction"] = placed.placed
        if placed.source.dtype != reference.dtype:
            found.notes.append(
                f"The reconstruction is stored as {placed.source.dtype}, the truth as {reference.dtype}; grey values "
                f"were compared as they are, without rescaling."
            )
    if request.degrade is not None and found.truth is not None:
        how, factor = request.degrade
        degraded = Degraded(found.truth.sections, region, factor, how, picked_of(factor, placed))
        first = factor * degraded.start + degraded.centre
        words = f"plane f·k + {degraded.centre:g}" if how == "pick" else "mean of planes f·k … f·k + f − 1"
        words = f"simulated from the truth: {words}, f = {factor}"
        found.sections = Sections(degraded, first, float(factor), region[1].start, region[2].start, words)
    elif known is not None:
        found.sections = known
        _check_cover(known, region)
    recorded = Recorded.of(restored)
    if recorded and placed and found.sections and (request.degrade or request.input_position):
        note = recorded.contradicts(placed, found.sections.first % found.sections.step, found.sections.step)
        found.notes += [note] if note else []
    _add_baselines(found, request, folder)
    return found


def _opened(request: Request) -> tuple[dict[str, Volume], str]:
    """The files by their role, once the request makes sense, and which of their axes is z here."""
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
    files: dict[str, Volume] = {}
    paths = {"reconstruction": request.reconstruction, "truth": request.truth, "input": request.input}
    given = {name: path for name, path in paths.items() if path is not None}
    if empty := [path for path in given.values() if path.is_dir() and not any(path.iterdir())]:
        raise UserError(f"{empty[0]} is an empty folder; name a volume, stored as (Z, Y, X)")
    counts = {path: open_volume(path, channel=0).channels for path in given.values() if request.channel}
    for name, path in given.items():
        files[name] = open_volume(path, channel=None if counts.get(path) == 1 < max(counts.values()) else request.channel)
        if name != "input":
            files[name].voxel_um = files[name].voxel_um or request.voxel_um
            if files[name].doubt and not request.voxel_um:
                raise UserError(f"{path}: {files[name].doubt}, or give the voxel size with --voxel")
    restored = files.get("reconstruction")
    recorded = str(restored.attributes.get("thick", "z")) if restored and "run" in restored.attributes else None
    if recorded and request.thick not in (None, recorded):
        raise UserError(
            f"--thick {request.thick}: {request.reconstruction} records {recorded} as its thick axis; leave --thick out"
        )
    thick = request.thick or recorded or "z"
    return files if thick == "z" else {name: seen_along(file, thick) for name, file in files.items()}, thick


def _compared(wanted: Box | None, reference: Volume, placed: Sections | None) -> Box:
    """What of the reference is compared: where the reconstruction has voxels, and the user's region of that."""
    reach = [(0, size) for size in reference.shape]
    if placed is not None:
        _, height, width = placed.source.shape
        own = [
            (math.ceil(placed.first - 1e-6), math.floor(placed.last + 1e-6) + 1),
            (placed.row, placed.row + height),
            (placed.column, placed.column + width),
        ]
        both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(reach, own, strict=True)]
        if any(b - a < 1 for a, b in both):
            raise UserError(
                f"{placed.source.path} and the truth do not overlap: by their translations it covers {own}, the truth {reach} "
                f"(z, y, x voxels); correct the translations"
            )
        reach = both
    return region_within(wanted, reach, f"{reference.path.name} and the reconstruction have voxels")


def restored_candidate(sections: Sections, dtype: np.dtype[Any], notes: list[str]) -> Candidate:
    """A restored volume on the grid it is compared on; a note says where it is interpolated, clipped to the reference's dtype."""
    if not sections.on_grid:
        notes.append(
            f"The planes of the reconstruction lie at {sections.first:g} + k·{sections.step:g} of the truth's grid; they were "
            "brought onto it by a cubic spline along z."
        )
    return Candidate(sections, "cubic", dtype)


def _check_cover(sections: Sections, region: Box) -> None:
    """Refuses an input that does not cover what is compared."""
    _, height, width = sections.source.shape
    for part, start, size, name in zip(region[1:], (sections.row, sections.column), (height, width), "YX", strict=True):
        if part.start < start or part.stop > start + size:
            raise UserError(
                f"{sections.source.path} covers {start}:{start + size} along {name} and the compared region is "
                f"{part.start}:{part.stop}; restrict it with --region"
            )
    if sections.first > region[0].stop - 1 or sections.last < region[0].start:
        raise UserError(
            f"no section of {sections.source.path} lies near the compared planes {region[0].start}:{region[0].stop}: by "
            f"{sections.how} they begin at {sections.first:g}; correct the translation"
        )


def _add_baselines(found: Comparison, request: Request, folder: Path) -> None:
    sections = found.sections
    if sections is None:
        found.notes.append(
            "No interpolation to compare with, because the input is not known: add --input I"
            + (", --thin F or --average F." if found.truth is not None else ".")
        )
        return
    found.alignment["input"] = sections.placed
    if request.codec is not None:
        found.sections, coded, rate = coded_sections(sections, found.region, found.dtype, request.bpp, folder)
        found.alignment["codec"] = {"name": request.codec, "bits_per_pixel": rate, "limit": request.bpp}
        sections = found.sections
    if sections.on_grid:
        found.candidates["input"] = Candidate(sections)
        found.notes.append("The input is sampled like the output, so there is nothing to interpolate; it is shown as it is.")
    else:
        found.candidates |= {method: Candidate(sections, method, found.dtype) for method in METHODS}
    if request.codec is not None:
        found.candidates |= {f"{request.codec} + {method}": Candidate(coded, method, found.dtype) for method in METHODS[1:]}


def place_reconstruction(volume: Volume, reference: Volume) -> Sections:
    """A reconstruction on its truth's grid, or on its own.

    Raises:
        UserError: shapes differ and voxel sizes or translations are missing, or what the files state cannot be laid together.
    """
    if volume is reference:
        return Sections(volume, 0, 1)
    if not _missing(volume, reference):
        sections = _by_metadata(volume, reference)
        if not 0.5 < sections.step < 1.5:
            raise UserError(
                f"voxels of {volume.path} are {sections.step:g} times as long along z as those of {reference.path}: it is not "
                f"on the truth's grid. If it is the input, name it with --input"
            )
        return sections
    recorded = Recorded.of(volume)
    known = recorded and recorded.reconstruction_on(volume, reference)
    if known:
        return known
    if volume.shape == reference.shape:
        if volume.voxel_um and reference.voxel_um and not np.allclose(volume.voxel_um, reference.voxel_um, SIZE_TOLERANCE, 0):
            raise UserError(
                f"{volume.path} and {reference.path} have the same shape but voxel sizes of {volume.voxel_um} and "
                f"{reference.voxel_um} µm (z, y, x); correct the wrong file, or give the voxel size of both with --voxel z,y,x"
            )
        return Sections(volume, 0, 1, how="equal shapes: compared voxel by voxel")
    if sorted(volume.shape) == sorted(reference.shape):
        raise UserError(
            f"{volume.path} has shape {volume.shape}, {reference.path} has {reference.shape}: the axes look permuted. Both must "
            "be stored as (Z, Y, X); reorder the axes of one file"
        )
    raise UserError(
        f"{volume.path} has shape {volume.shape}, {reference.path} has {reference.shape}, and {_missing(volume, reference)}. "
        "Volumes of different shapes are laid together by voxel size and translation only: write both into both files (OME-TIFF "
        "or OME-Zarr), or cut them to the same grid"
    )


def place_input(
    volume: Volume, reference: Volume, position: str | None, factor: int | None, placed: Sections | None = None
) -> Sections:
    """An anisotropic input's sections on the grid of a reference, the truth or reconstruction.

    The user may state its position, ``pick`` or ``average``, and the factor, reference planes per section, which is needed with
    it unless both voxel sizes are known. Else the files say it, or the record of the reconstruction, which is ``placed`` already.

    Raises:
        UserError: neither metadata, equal shapes nor position tell where the sections lie, or they contradict each other.
    """
    if position is not None:
        return _as_stated(volume, reference, position, factor)
    if not _missing(volume, reference):
        return _by_metadata(volume, reference)
    recorded = None if placed is None else Recorded.of(placed.source)
    if placed and recorded and recorded.shape == volume.shape:
        return recorded.input_in(placed, volume)
    if volume.shape[1:] != reference.shape[1:] and volume.voxel_um is None:
        permuted = not Counter(reference.shape[1:]) - Counter(volume.shape)  # rows and columns occur, elsewhere
        hint = "the axes look permuted; store it" if permuted else "cut both to the same field of view, stored"
        raise UserError(
            f"{volume.path} has shape {volume.shape} and {reference.path} {reference.shape}: rows and columns (Y, X) must agree; "
            f"{hint} as (Z, Y, X)"
        )
    if volume.shape == reference.shape:
        return Sections(volume, 0, 1, how="equal shapes: the input is sampled like the reference")
    ratio = reference.shape[0] / volume.shape[0]
    raise UserError(
        f"where the sections of {volume.path} lie is not known: its shape is {volume.shape}, that of {reference.path} is "
        f"{reference.shape} ({ratio:.4g} planes per section), and {_missing(volume, reference)}. State it: --factor "
        f"{max(1, round(ratio))} with --input-position pick (every section is one plane, f·k + f//2) or --input-position "
        "average (every section is the mean of f planes, centred on f·k + (f−1)/2)"
    )


def _missing(*volumes: Volume) -> str:
    gaps = []
    for volume in volumes:
        known = {"voxel size": volume.voxel_um, "translation": volume.translation_um}
        absent = [name for name, value in known.items() if value is None]
        if absent:
            gaps.append(f"{volume.path.name} states no {' and no '.join(absent)}")
    return "; ".join(gaps)


def _by_metadata(volume: Volume, reference: Volume) -> Sections:
    """By voxel size and translation, which both files state."""
    assert volume.voxel_um and volume.translation_um and reference.voxel_um and reference.translation_um
    places = zip(volume.translation_um, reference.translation_um, reference.voxel_um, strict=True)
    offset = [(own - other) / size for own, other, size in places]
    for axis, name in ((1, "Y"), (2, "X")):
        if not math.isclose(volume.voxel_um[axis], reference.voxel_um[axis], rel_tol=SIZE_TOLERANCE):
            raise UserError(
                f"voxel sizes along {name} differ: {volume.voxel_um[axis]} µm in {volume.path}, {reference.voxel_um[axis]} µm "
                f"in {reference.path}; only z may be sampled differently. Resample one of them in-plane"
            )
        if abs(offset[axis] - round(offset[axis])) > PLACE_TOLERANCE:
            raise UserError(
                f"{volume.path} is shifted by {offset[axis]:.3f} voxels along {name} against {reference.path}; in-plane "
                "offsets must be whole voxels. Correct the translation or resample one of them"
            )
    step = volume.voxel_um[0] / reference.voxel_um[0]
    if abs(step - round(step)) * volume.shape[0] < PLACE_TOLERANCE:
        step = float(round(step))
    first = offset[0]
    if abs(2 * first - round(2 * first)) < PLACE_TOLERANCE:
        first = round(2 * first) / 2
    return Sections(volume, first, step, round(offset[1]), round(offset[2]), "voxel size and translation of the files")


def _as_stated(volume: Volume, reference: Volume, position: str, factor: int | None) -> Sections:
    """By --input-position and --factor."""
    ratio = None
    if volume.voxel_um is not None and reference.voxel_um is not None:
        ratio = volume.voxel_um[0] / reference.voxel_um[0]
    if factor is None:
        if ratio is None or not math.isclose(ratio, round(ratio), rel_tol=SIZE_TOLERANCE):
            raise UserError(
                f"--input-position {position} needs --factor F, the reference planes per section: the voxel sizes "
                f"{volume.voxel_um} and {reference.voxel_um} µm give no whole number"
            )
        factor = round(ratio)
    elif ratio is not None and not math.isclose(ratio, factor, rel_tol=0.01):
        raise UserError(
            f"--factor {factor} contradicts the files: sections of {volume.path} are {ratio:.4g} planes of {reference.path} "
            "apart by their voxel sizes; drop --factor or correct the file"
        )
    if volume.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"--input-position needs the same rows and columns: {volume.path} has {volume.shape[1:]}, {reference.path} has "
            f"{reference.shape[1:]} (Y, X)"
        )
    if abs(volume.shape[0] * factor - reference.shape[0]) >= factor:
        raise UserError(
            f"--factor {factor}: the {volume.shape[0]} sections of {volume.path} would cover {volume.shape[0] * factor} "
            f"planes, but {reference.path} has {reference.shape[0]}; the factor that fits is about "
            f"{reference.shape[0] / volume.shape[0]:.3g}"
        )
    first = factor // 2 if position == "pick" else (factor - 1) / 2
    return Sections(volume, first, float(factor), how=f"stated: --input-position {position} --factor {factor}")
