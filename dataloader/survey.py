"""What ``prepare.py check`` sees in the files of a data set, in one pass at constant memory, and draws on contact sheets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from dataloader.axial_profile import SideSpectra, side_spectra
from dataloader.dataset_folders import SPLITS, VAL, paired_names
from dataloader.thick_axis import Spectra, spectra_along
from intensity.statistics import scan
from utils.boxes import Box, extent, overlap, relative
from utils.errors import UserError, printable
from utils.files import replaced
from utils.spectra import SIGNAL, Anisotropy, anisotropy
from volumes.open import open_volume
from volumes.volume import Triple, Volume

SATURATED = 2e-3  # share of voxels at the largest value that is reported; prepare.py --percentile 0.1 99.9 makes half of it
HOT = 4.0  # times the 99.9 percentile's distance from the lowest value: a maximum beyond it is an outlier
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
        ends: values that become the ends of the interval under nm 01 and 11.
        percentiles: 0.1, 50 and 99.9.
        saturated: share of voxels that have the largest value.
        bad: voxels that are NaN or infinite.
        looked_at: share of the file that was read.
        spectra: of the central box; None where it is too thin or constant.
        side: of its XZ, YZ and XY planes, likewise.
        along: of such planes with each axis in the place of z, where voxel sizes do not say which is thick.
        planes: middle XY, XZ and YZ plane of the central box.
        uprate: distance of two planes in pixels, as the training's settings say.
    """

    split: str
    direction: str
    volume: Volume
    low: float
    high: float
    ends: tuple[float, float]
    percentiles: Triple
    saturated: float
    bad: int
    looked_at: float
    spectra: Anisotropy | None
    side: SideSpectra | None
    along: Spectra
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]
    uprate: float | None = None

    @property
    def voxel(self) -> Triple | None:
        """Sides (z, y, x) of a voxel: in µm, or where the file does not say, in pixels by ``uprate``."""
        return self.volume.voxel_um or ((self.uprate, 1.0, 1.0) if self.uprate else None)

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
            mapped = -1 <= self.low and self.high <= 1
            remedy = (
                "make the files again with prepare.py volumes … --percentile 0.01 99.99 --overwrite"
                if mapped
                else "add --nm_clip 0.01 99.99"
            )
            found.append(
                f"a few voxels squeeze all others: values reach from {self.low:g} to {self.high:g}, 99.8 % of them from "
                f"{low:g} to {high:g}; where those few are no specimen, {remedy}, which cuts them off"
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


def survey(folder: Path, settings: Mapping[str, Any]) -> tuple[list[Surveyed], list[str]]:
    """Looks at every file of a data set, once: what a training would scan it for is found as well.

    Args:
        folder: holds train/ and optionally val/.
        settings: of the training; the ranges that nm 01 and 11 ask for are those of all voxels, however many. Without ``uprate``
            sections lie apart as the files' voxel sizes say, else one pixel.

    Returns:
        The files that could be read, and one line for each that could not or that holds voxels that are no numbers.

    Raises:
        UserError: folders are missing, empty or unpaired.
    """
    directions, nm = settings["direction"].split("_"), settings["nm"]
    files, volumes, problems = [], [], []
    for split in SPLITS:
        if split == VAL and not any((folder / split / direction).is_dir() for direction in directions):
            continue
        names = paired_names(folder / split, directions)
        for direction, name in ((direction, name) for direction in directions for name in names):
            try:
                volume = open_volume(folder / split / direction / name)
                whole = nm != "00" or volume.dtype.kind == "f"  # of floats any voxel may be NaN
                step = 1 if whole else -(-math.prod(volume.shape) // _READ)
                volumes.append((split, direction, _Watched(volume, step)))
            except UserError as error:
                problems.append(str(error))
    total = sum(math.prod(watched.shape) // watched.step for *_, watched in volumes)
    with tqdm(total=total, desc="looking at the data", unit="voxel", unit_scale=True, delay=1) as bar:
        for split, direction, watched in volumes:
            try:
                ends = scan(watched, None if nm == "00" else settings["nm_clip"], bar.update)
                files.append(watched.surveyed(split, direction, ends, settings.get("uprate")))
            except UserError as error:
                problems.append(str(error))
    problems += [f"{file.volume.path}: {file.faults()[0]}" for file in files if file.bad]
    return files, problems


class _Watched(Volume):
    """A volume that keeps statistics of what a scan reads of it, and the box in its middle.

    The scan sees finite values only: others are counted, and stand as the smallest of their block.
    """

    def __init__(self, volume: Volume, step: int) -> None:
        self.volume, self.step = volume, step
        self.path, self.shape, self.dtype = volume.path, volume.shape, volume.dtype
        self.low, self.high, self.at_high, self.bad, self.seen = np.inf, -np.inf, 0, 0, 0
        z, y, x = (slice((side - min(side, _BOX)) // 2, (side + min(side, _BOX)) // 2) for side in self.shape)
        self.middle: Box = (z, y, x)
        self.box = np.zeros(extent(self.middle), self.dtype)
        self.sample: list[np.ndarray] = []
        self._thin = max(1, math.prod(self.shape) // step // _SAMPLE)

    def blocks(self, voxels: int = 2**22) -> list[Box]:
        """Every step-th block, and those that meet the box in the middle."""
        parts = enumerate(self.volume.blocks(voxels))
        return [part for k, part in parts if k % self.step == 0 or min(extent(overlap(part, self.middle))) > 0]

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        part = slice(planes.start, planes.stop), rows, columns
        values = self.volume[part]
        shared = overlap(part, self.middle)
        if min(extent(shared)) > 0:
            self.box[relative(shared, self.middle)] = values[relative(shared, part)]
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
        low, top = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if self.seen < math.prod(self.shape):  # percentiles of floats may take a second pass
            self.seen += values.size
            self.bad += values.size - finite.size
            if finite.size:
                self.at_high = (self.at_high if top <= self.high else 0) + (
                    np.count_nonzero(finite == top) if top >= self.high else 0
                )
                self.low, self.high = min(self.low, low), max(self.high, top)
                self.sample.append(finite[:: self._thin].copy())
        return values if finite.size == values.size else np.where(np.isfinite(values), values, values.dtype.type(low))

    def surveyed(self, split: str, direction: str, ends: tuple[float, float], uprate: float | None) -> Surveyed:
        """What the scan, which found these ends, has left."""
        z, y, x = self.volume.voxel_um or (1, 1, 1)
        sound = np.isfinite(self.box).all()
        depth, height, width = self.box.shape
        sample = np.concatenate(self.sample or [np.zeros(1)])
        return Surveyed(
            split,
            direction,
            self.volume,
            self.low if self.sample else 0.0,
            self.high if self.sample else 0.0,
            ends,
            tuple(np.percentile(sample, (0.1, 50, 99.9)).tolist()),
            self.at_high / max(self.seen - self.bad, 1),
            self.bad,
            self.seen / math.prod(self.shape),
            anisotropy(self.box) if sound else None,
            side_spectra(self.box, max(1.0, uprate or 2 * z / (y + x))) if sound else None,
            spectra_along(self.box, self.volume.voxel_um) if sound else {},
            (self.box[depth // 2].copy(), self.box[:, height // 2].copy(), self.box[:, :, width // 2].copy()),
            uprate,
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
    """Draws one row per file: three planes at their true proportions, histogram of these planes, spectra of the three axes."""
    height = 3.1 * len(files) + 0.5  # inches
    figure = Figure(figsize=(15, height), dpi=100, facecolor="white")
    figure.suptitle(printable(title), x=0.01, y=1 - 0.12 / height, ha="left", va="top", fontsize=12, parse_math=False)
    margins = {"left": 0.03, "right": 0.99, "top": 1 - 0.75 / height, "bottom": 0.45 / height, "hspace": 0.55, "wspace": 0.22}
    grid = figure.add_gridspec(len(files), 5, width_ratios=(1, 1, 1, 0.9, 1.2), **margins)
    for k, file in enumerate(files):
        axes = [figure.add_subplot(grid[k, column]) for column in range(5)]
        _draw_values(axes[:4], file)
        _draw_spectra(axes[4], file.spectra)
        left, top = axes[0].get_position().x0, grid[k, 0].get_position(figure).y1
        facts, faults = printable(f"{file.name}   {file.facts}"), "; ".join(file.faults())
        figure.text(left, top + 0.22 / height, facts, fontsize=9, weight="bold", va="bottom", parse_math=False)
        figure.text(left, top + 0.05 / height, faults, fontsize=8, color="tab:red", va="bottom", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        figure.savefig(partial, format="png")


def _draw_values(axes: Sequence[Axes], file: Surveyed) -> None:
    """Three planes, and the histogram of their values."""
    low, _, high = file.percentiles
    grey = low, high if high > low else low + 1
    stretch = file.voxel[0] / file.voxel[2] if file.voxel else 1.0
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
