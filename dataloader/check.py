"""What ``prepare.py check`` finds in the files of a data set, in one pass at constant memory, and what it says about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataloader.contact_sheet import contact_sheet
from dataloader.pairs import paired_names
from dataloader.recommend import Measured, Recommendation, recommend
from utils.errors import UserError
from utils.files import write_json
from utils.geometry import Geometry
from utils.pictures import save_png
from utils.spectra import Anisotropy, anisotropy
from volumes.open import open_volume
from volumes.volume import Triple, Volume

SATURATED = 1e-3  # share of voxels at the largest value that is reported
HOT = 2.0  # times the 99.9 percentile's distance from the lowest value: a maximum beyond it is an outlier
_READ = 2**31  # voxels of a file that are looked at; of larger files every n-th block
_SAMPLE = 2**20  # values from which percentiles are taken
_BOX = 256  # side of the central box whose spectra are taken
_SHOWN = 12  # files on a page, and lines


@dataclass(frozen=True)
class Surveyed:
    """One file.

    Attributes:
        direction: its folder.
        split: train or val.
        path: the file.
        shape: (Z, Y, X).
        dtype: name of the type of its values.
        voxel_um: (z, y, x) in µm, or None.
        low, high: smallest and largest finite value.
        percentiles: 0.1, 50 and 99.9.
        saturated: share of voxels that have the largest value.
        bad: voxels that are NaN or infinite.
        looked_at: share of the file that was read.
        spectra: of the central box; None where it is too thin or constant.
        planes: middle XY, XZ and YZ plane of the central box.
    """

    direction: str
    split: str
    path: Path
    shape: tuple[int, int, int]
    dtype: str
    voxel_um: Triple | None
    low: float
    high: float
    percentiles: Triple
    saturated: float
    bad: int
    looked_at: float
    spectra: Anisotropy | None
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.split}/{self.direction}/{self.path.name}"

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def facts(self) -> str:
        """Sizes and values in a line."""
        voxel = "voxel size not stated" if self.voxel_um is None else " × ".join(f"{side:.4g}" for side in self.voxel_um) + " µm"
        part = "" if self.looked_at == 1 else f", {100 * self.looked_at:.3g} % looked at"
        return f"{' × '.join(map(str, self.shape))} (Z, Y, X), {voxel}, {self.dtype}, {self.low:.6g} to {self.high:.6g}{part}"

    def faults(self) -> list[str]:
        """What is wrong with the file, or may be."""
        found = []
        if self.bad:
            found.append(f"{self.bad} NaN or infinite voxels; replace them, for example by the minimum")
        if self.low == self.high:
            return [*found, f"empty: every voxel is {self.low:g}; remove the file"]
        if self.saturated > SATURATED:
            found.append(f"{100 * self.saturated:.2g} % of the voxels have the largest value {self.high:g}: saturated or clipped")
        low, _, high = self.percentiles
        if self.high - self.low > HOT * (high - low):
            found.append(
                f"values reach from {self.low:g} to {self.high:g}, but 99.8 % lie within {low:g} to {high:g}; under nm 01 and 11 "
                "such outliers squeeze the rest: use --nm_clip 0.1 99.9"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain JSON without pictures and curves."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "voxel_um": self.voxel_um and list(self.voxel_um),
            "low": self.low,
            "high": self.high,
            "percentiles_0.1_50_99.9": list(self.percentiles),
            "saturated": self.saturated,
            "not_finite": self.bad,
            "looked_at": self.looked_at,
            "cutoff_zyx_per_voxel": self.spectra and list(self.spectra.cutoff),
            "faults": self.faults(),
        }


def survey(folder: Path, directions: Sequence[str]) -> tuple[list[Surveyed], list[str]]:
    """Looks at every file of a data set.

    Args:
        folder: holds train/ and optionally val/.
        directions: folders in these.

    Returns:
        The files that could be read, and one line for each that could not or that holds voxels that are no numbers.

    Raises:
        UserError: folders are missing, empty or unpaired.
    """
    files, volumes, problems = [], [], []
    for split in ("train", "val"):
        if split == "val" and not any((folder / split / direction).is_dir() for direction in directions):
            continue
        names = paired_names(folder / split, directions)
        for direction, name in ((direction, name) for direction in directions for name in names):
            try:
                volumes.append((split, direction, open_volume(folder / split / direction / name)))
            except UserError as error:
                problems.append(str(error))
    total = sum(min(math.prod(volume.shape), _READ) for *_, volume in volumes)
    with tqdm(total=total, desc="looking at the data", unit="voxel", unit_scale=True, delay=1) as bar:
        for split, direction, volume in volumes:
            try:
                files.append(_look(volume, split, direction, bar.update))
            except UserError as error:
                problems.append(str(error))
    problems += [f"{file.path}: {file.faults()[0]}" for file in files if file.bad]
    return files, problems


def _look(volume: Volume, split: str, direction: str, advance: Callable[[int], object]) -> Surveyed:
    size = math.prod(volume.shape)
    thin = max(1, min(size, _READ) // _SAMPLE)
    low, high, at_high, bad, seen = np.inf, -np.inf, 0, 0, 0
    sample = []
    for part in islice(volume.blocks(), 0, None, -(-size // _READ)):
        values = volume[part].ravel()
        seen += values.size
        advance(values.size)
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            bad += int(values.size - np.count_nonzero(finite))
            values = values[finite]
        if values.size:
            top = float(values.max())
            at_high = (at_high if top <= high else 0) + (int(np.count_nonzero(values == top)) if top >= high else 0)
            low, high = min(low, float(values.min())), max(high, top)
            sample.append(values[::thin])
    if not sample:
        low, high, sample = 0.0, 0.0, [np.zeros(1)]
    z, y, x = (slice((side - min(side, _BOX)) // 2, (side + min(side, _BOX)) // 2) for side in volume.shape)
    box = volume[z, y, x]
    depth, height, width = box.shape
    return Surveyed(
        direction,
        split,
        volume.path,
        volume.shape,
        volume.dtype.name,
        volume.voxel_um,
        low,
        high,
        tuple(np.percentile(np.concatenate(sample), (0.1, 50, 99.9)).tolist()),
        at_high / max(seen - bad, 1),
        bad,
        seen / size,
        anisotropy(box) if np.isfinite(box).all() else None,
        (box[depth // 2].copy(), box[:, height // 2].copy(), box[:, :, width // 2].copy()),
    )


def summarised(files: Sequence[Surveyed]) -> Measured:
    """The numbers that a recommendation needs: smallest extents, and medians over the files."""

    def median(values: Sequence[float]) -> float | None:
        return float(np.median(values)) if values else None

    spectra = [(file.spectra, file.voxel_um) for file in files if file.spectra]
    places = [(mid - low) / (high - low) if high > low else 0.0 for low, mid, high in (file.percentiles for file in files)]
    z, y, x = (min(file.shape[axis] for file in files) for axis in range(3))
    return Measured(
        shape=(z, y, x),
        sampling=median([f.voxel_um[0] / ((f.voxel_um[1] + f.voxel_um[2]) / 2) for f in files if f.voxel_um]),
        resolution=median([found.ratio(voxel_um) for found, voxel_um in spectra]),
        axial_cutoff=median([found.cutoff[0] for found, _ in spectra]),
        undersampled=sum(found.undersampled for found, _ in spectra) * 2 > len(spectra),
        median=float(np.median(places)),
    )


def report(
    files: Sequence[Surveyed], problems: Sequence[str], settings: Mapping[str, Any], needs: Sequence[str], folder: Path
) -> Iterator[str]:
    """What there is to say about the files, line by line; a page per direction and check.json are written on the way.

    Args:
        files: at least one.
        problems: what would stop a training.
        settings: of the training.
        needs: lines about what that training takes.
        folder: for the pages and check.json.
    """
    measured = summarised(files)
    found = recommend(measured)
    yield _anisotropy_line(measured)
    yield from _recommendation_lines(found, measured, settings)
    yield from needs
    for path in write_sheets(files, folder, settings["dataset"]):
        yield f"contact sheet: {path}"
    content = {
        "problems": list(problems),
        "recommended": found.settings,
        "factor": found.factor,
        "reasons": found.reasons,
        "files": [file.as_json() for file in files],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "check.json", content)
    yield f"as data: {folder / 'check.json'}"


def file_lines(files: Sequence[Surveyed]) -> Iterator[str]:
    """One line per file, of a few files, and all that have faults."""
    spread = {id(file) for file in _evenly(files)}
    shown = [file for file in files if id(file) in spread or file.faults()]
    for file in shown:
        yield f"  {file.name}: {file.facts}"
        yield from (f"    ! {fault}" for fault in file.faults())
    if len(shown) < len(files):
        yield f"  and {len(files) - len(shown)} more files without faults"


def _evenly(files: Sequence[Surveyed]) -> list[Surveyed]:
    """At most so many files, spread over all."""
    count = min(_SHOWN, len(files))
    return [files[k * len(files) // count] for k in range(count)]


def _anisotropy_line(found: Measured) -> str:
    """What the spectra say."""
    if found.resolution is None:
        return "anisotropy: not measured (volumes of fewer than 8 planes or rows, or constant)"
    sampling = "voxel sizes not stated" if found.sampling is None else f"voxels {found.sampling:.3g} times as long along z"
    more = "at least " if found.undersampled else ""
    why = "; signal reaches the axial Nyquist frequency (undersampled)" if found.undersampled else ""
    unit = "voxels" if found.sampling is None else "µm"
    return f"anisotropy: axial over lateral resolution length {more}{found.resolution:.2f} (in {unit}; {sampling}){why}"


def _recommendation_lines(found: Recommendation, data: Measured, settings: Mapping[str, Any]) -> Iterator[str]:
    """What would suit, as options to paste, with the reasons; how the settings differ, and whether they make cubes."""
    known = {name: value for name, value in found.settings.items() if name in settings}
    if known:
        different = [name for name, value in known.items() if settings[name] != value]
        options = " ".join(f"--{name} {value}" for name, value in known.items())
        note = "as the settings say" if not different else f"the settings differ in {', '.join(different)}"
        yield f"recommended: {options} ({note})"
    else:
        yield "no recommendation"
    yield from (f"  because: {reason}" for reason in found.reasons)
    try:
        factor = Geometry.from_settings(settings).factor
    except UserError:  # told among the problems
        return
    shape = (data.sampling or 0) * settings["dsp"] / settings["usp"] / factor
    if shape and abs(shape - 1) > 0.05:
        yield f"note: with these settings (factor {factor}) output voxels are {shape:.3g} times as long along z as in-plane"


def write_sheets(files: Sequence[Surveyed], folder: Path, dataset: str) -> list[Path]:
    """One page per direction, of at most twelve files."""
    written = []
    for direction in dict.fromkeys(file.direction for file in files):
        members = [file for file in files if file.direction == direction]
        shown = _evenly(members)
        counted = f"{len(shown)} of {len(members)} files, planes through the centre (at most 256 voxels wide)"
        written.append(folder / f"contact_sheet_{direction}.png")
        save_png(written[-1], contact_sheet(f"{dataset} / {direction}: {counted}", shown))
    return written
