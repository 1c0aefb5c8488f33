"""What ``prepare.py check`` says about a data set: lines, a page per direction, check.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.contact_sheet import Row, contact_sheet
from dataloader.recommend import Recommendation, recommend
from dataloader.survey import Surveyed, summarised
from utils.errors import UserError
from utils.files import write_json
from utils.pictures import save_png
from utils.settings.check_settings import geometry_of

_SHOWN = 12  # files on a page, and lines


def evenly(files: Sequence[Surveyed], most: int = _SHOWN) -> list[Surveyed]:
    """At most so many files, spread over all."""
    count = min(most, len(files))
    return [files[k * len(files) // count] for k in range(count)]


def file_lines(files: Sequence[Surveyed]) -> list[str]:
    """One line per file, of a few files, and all that have faults."""
    shown = [file for file in files if file in evenly(files) or file.faults()]
    lines = []
    for file in shown:
        lines.append(f"  {file.name}: {_facts(file)}")
        lines += [f"    ! {fault}" for fault in file.faults()]
    if len(shown) < len(files):
        lines.append(f"  and {len(files) - len(shown)} more files without faults")
    return lines


def anisotropy_line(files: Sequence[Surveyed]) -> str:
    """What the spectra say, in one line."""
    found = summarised(files)
    if found.resolution is None:
        return "anisotropy: not measured (volumes of fewer than 8 planes or rows, or constant)"
    sampling = "voxel sizes not stated" if found.sampling is None else f"voxels {found.sampling:.3g} times as long along z"
    more = "at least " if found.undersampled else ""
    why = "; signal reaches the axial Nyquist frequency (undersampled)" if found.undersampled else ""
    unit = "voxels" if found.sampling is None else "µm"
    return f"anisotropy: axial over lateral resolution length {more}{found.resolution:.2f} (in {unit}; {sampling}){why}"


def recommendation_lines(files: Sequence[Surveyed], settings: Mapping[str, Any]) -> tuple[Recommendation, list[str]]:
    """What would suit, as options to paste, with the reasons; and how the settings differ."""
    found = recommend(summarised(files))
    known = {name: value for name, value in found.settings.items() if name in settings}
    lines = [f"  because: {reason}" for reason in found.reasons]
    if known:
        different = {name: value for name, value in known.items() if settings[name] != value}
        options = " ".join(f"--{name} {value}" for name, value in known.items())
        note = "as the settings say" if not different else f"the settings differ in {', '.join(different)}"
        lines.insert(0, f"recommended: {options} ({note})")
    else:
        lines.insert(0, "no recommendation")
    return found, lines + _output_voxel(files, settings)


def _output_voxel(files: Sequence[Surveyed], settings: Mapping[str, Any]) -> list[str]:
    """The voxels that the settings make, where they are not cubes."""
    sampling = summarised(files).sampling
    try:
        factor = geometry_of(settings).factor
    except UserError:
        return []
    if sampling is None:
        return []
    shape = sampling * settings["dsp"] / settings["usp"] / factor
    if abs(shape - 1) <= 0.05:
        return []
    return [f"note: with these settings (factor {factor}) output voxels are {shape:.3g} times as long along z as in-plane"]


def needs_lines(
    files: Sequence[Surveyed], settings: Mapping[str, Any], *, memory: int, component_files: int, last_checkpoint: int
) -> list[str]:
    """Disc and memory that a training takes; bytes as training.requirements measures them."""
    saves = math.ceil(settings["n_epochs"] / settings["epoch_save"])
    disc = saves * component_files + 2 * last_checkpoint  # last and best
    data = sum(math.prod(file.shape) * np.dtype(file.dtype).itemsize for file in files)
    lines = [
        f"disc: about {_size(disc)} in the run folder ({saves} saves of {_size(component_files)}, last.ckpt and best.ckpt of "
        f"{_size(last_checkpoint)} each); the data have {_size(data)}",
        f"memory: at least {_size(memory)} on the GPU (or CPU) for a step in 32 bits, about half of it in bf16-mixed",
    ]
    if settings["preload"]:
        lines.append(f"main memory: preload keeps {_size(data)} of decoded volumes")
    return lines


def write_sheets(files: Sequence[Surveyed], folder: Path, dataset: str) -> list[Path]:
    """One page per direction, of at most twelve files."""
    written = []
    for direction in dict.fromkeys(file.direction for file in files):
        members = [file for file in files if file.direction == direction]
        shown = evenly(members)
        title = (
            f"{dataset} / {direction}: {len(shown)} of {len(members)} files, planes through the centre (at most 256 voxels wide)"
        )
        written.append(folder / f"contact_sheet_{direction}.png")
        save_png(written[-1], contact_sheet(title, [_row(file) for file in shown]))
    return written


def write_report(path: Path, files: Sequence[Surveyed], found: Recommendation, problems: Sequence[str]) -> None:
    """check.json: everything that was said, as data."""
    content = {
        "problems": list(problems),
        "recommended": found.settings,
        "factor": found.factor,
        "reasons": found.reasons,
        "files": [file.as_json() for file in files],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _row(file: Surveyed) -> Row:
    stretch = file.voxel_um[0] / file.voxel_um[2] if file.voxel_um else 1.0
    low, _, high = file.percentiles
    return Row(
        f"{file.name}   {_facts(file)}", file.planes, stretch, low, high if high > low else low + 1, file.spectra, file.faults()
    )


def _facts(file: Surveyed) -> str:
    voxel = "voxel size not stated" if file.voxel_um is None else " × ".join(f"{side:.4g}" for side in file.voxel_um) + " µm"
    part = "" if file.looked_at == 1 else f", {100 * file.looked_at:.3g} % looked at"
    return f"{' × '.join(map(str, file.shape))} (Z, Y, X), {voxel}, {file.dtype}, {file.low:.6g} to {file.high:.6g}{part}"


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"
