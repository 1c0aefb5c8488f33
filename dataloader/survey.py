"""What ``prepare.py check`` sees in the files of a data set, in one pass at constant memory, and draws on contact sheets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from dataloader.dataset_folders import SPLITS, VAL, paired_names
from utils.errors import UserError
from utils.files import replaced
from utils.spectra import SIGNAL, Anisotropy, anisotropy
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
        split: train or val.
        direction: its folder.
        volume: the file.
        low, high: smallest and largest finite value.
        percentiles: 0.1, 50 and 99.9.
        saturated: share of voxels that have the largest value.
        bad: voxels that are NaN or infinite.
        looked_at: share of the file that was read.
        spectra: of the central box; None where it is too thin or constant.
        planes: middle XY, XZ and YZ plane of the central box.
    """

    split: str
    direction: str
    volume: Volume
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
        return f"{self.split}/{self.direction}/{self.volume.path.name}"

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.volume.shape) * self.volume.dtype.itemsize

    @property
    def facts(self) -> str:
        """Sizes and values in a line."""
        size, voxel_um = " × ".join(map(str, self.volume.shape)), self.volume.voxel_um
        voxel = "voxel size not stated" if voxel_um is None else " × ".join(f"{side:.4g}" for side in voxel_um) + " µm"
        part = "" if self.looked_at == 1 else f", {100 * self.looked_at:.3g} % looked at"
        return f"{size} (Z, Y, X), {voxel}, {self.volume.dtype}, {self.low:.6g} to {self.high:.6g}{part}"

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
            "shape": list(self.volume.shape),
            "dtype": self.volume.dtype.name,
            "voxel_um": self.volume.voxel_um and list(self.volume.voxel_um),
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
    for split in SPLITS:
        if split == VAL and not any((folder / split / direction).is_dir() for direction in directions):
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
    problems += [f"{file.volume.path}: {file.faults()[0]}" for file in files if file.bad]
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
        split,
        direction,
        volume,
        low,
        high,
        tuple(np.percentile(np.concatenate(sample), (0.1, 50, 99.9)).tolist()),
        at_high / max(seen - bad, 1),
        bad,
        seen / size,
        anisotropy(box) if np.isfinite(box).all() else None,
        (box[depth // 2].copy(), box[:, height // 2].copy(), box[:, :, width // 2].copy()),
    )


def evenly(files: Sequence[Surveyed]) -> list[Surveyed]:
    """At most so many files, spread over all."""
    count = min(_SHOWN, len(files))
    return [files[k * len(files) // count] for k in range(count)]


def write_sheets(files: Sequence[Surveyed], folder: Path, dataset: str) -> list[Path]:
    """One page per direction, of at most twelve files."""
    written = []
    for direction in dict.fromkeys(file.direction for file in files):
        members = [file for file in files if file.direction == direction]
        shown = evenly(members)
        counted = f"{len(shown)} of {len(members)} files, planes through the centre (at most 256 voxels wide)"
        written.append(folder / f"contact_sheet_{direction}.png")
        contact_sheet(written[-1], f"{dataset} / {direction}: {counted}", shown)
    return written


def contact_sheet(path: Path, title: str, files: Sequence[Surveyed]) -> None:
    """Draws one row per file: three planes at their true proportions, histogram of these planes, spectra of the three axes.

    Args:
        path: PNG to write.
        title: first line.
        files: at least one.
    """
    height = 3.1 * len(files) + 0.5  # inches
    figure = Figure(figsize=(15, height), dpi=100, facecolor="white")
    figure.suptitle(title, x=0.01, y=1 - 0.12 / height, ha="left", va="top", fontsize=12, parse_math=False)
    margins = {"left": 0.03, "right": 0.99, "top": 1 - 0.75 / height, "bottom": 0.45 / height, "hspace": 0.55, "wspace": 0.22}
    grid = figure.add_gridspec(len(files), 5, width_ratios=(1, 1, 1, 0.9, 1.2), **margins)
    for k, file in enumerate(files):
        axes = [figure.add_subplot(grid[k, column]) for column in range(5)]
        _draw_values(axes[:4], file)
        _draw_spectra(axes[4], file.spectra)
        left, top = axes[0].get_position().x0, grid[k, 0].get_position(figure).y1
        facts, faults = f"{file.name}   {file.facts}", "; ".join(file.faults())
        figure.text(left, top + 0.22 / height, facts, fontsize=9, weight="bold", va="bottom", parse_math=False)
        figure.text(left, top + 0.05 / height, faults, fontsize=8, color="tab:red", va="bottom", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        figure.savefig(partial, format="png")


def _draw_values(axes: Sequence[Axes], file: Surveyed) -> None:
    """Three planes, and the histogram of their values."""
    low, _, high = file.percentiles
    grey = low, high if high > low else low + 1
    voxel_um = file.volume.voxel_um
    stretch = voxel_um[0] / voxel_um[2] if voxel_um else 1.0
    labels = (("XY", "x →", "y ↓", 1.0), ("XZ", "x →", "z ↓", stretch), ("YZ", "y →", "z ↓", stretch))
    for image, plane, (name, right, down, aspect) in zip(axes[:3], file.planes, labels, strict=True):
        image.imshow(plane, cmap="gray", vmin=grey[0], vmax=grey[1], aspect=aspect, interpolation="none")
        image.set(xticks=[], yticks=[])
        image.set_xlabel(f"{name}   {right}", fontsize=8)
        image.set_ylabel(down, fontsize=8)
    values = np.concatenate([plane.ravel() for plane in file.planes]).astype(np.float64)
    axes[3].hist(values[np.isfinite(values)], bins=80, color="0.4", log=True, histtype="stepfilled")
    axes[3].axvspan(*grey, color="tab:green", alpha=0.15)
    axes[3].locator_params(axis="x", nbins=4)
    axes[3].set_xlabel("grey value; green: 0.1 to 99.9 %", fontsize=8)
    axes[3].tick_params(labelsize=7)


def _draw_spectra(axes: Axes, spectra: Anisotropy | None) -> None:
    if spectra is None:
        axes.text(0.5, 0.5, "no spectra:\ntoo thin or constant", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    lines = ("z", "tab:red"), ("y", "tab:blue"), ("x", "tab:cyan")
    for (name, colour), frequency, power, cutoff in zip(lines, spectra.frequency, spectra.power, spectra.cutoff, strict=True):
        axes.semilogy(frequency, power, color=colour, label=f"{name}: {cutoff:.2f}")
        axes.axvline(cutoff, color=colour, linestyle=":", linewidth=1)
    axes.axhline(SIGNAL * spectra.floor, color="0.6", linewidth=1)
    axes.legend(fontsize=7, title="cut-off", title_fontsize=7)
    axes.set_xlabel("cycles per voxel; grey: three times the noise floor", fontsize=8)
    axes.tick_params(labelsize=7)
