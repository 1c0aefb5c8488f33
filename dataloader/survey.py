"""What is in the files of a data set: grey values, faults, spectra; one pass at constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataloader.pairs import paired_names
from dataloader.recommend import Measured
from utils.errors import UserError
from utils.spectra import Anisotropy, anisotropy
from volumes.open import open_volume
from volumes.volume import Box, Volume

SATURATED = 1e-3  # share of voxels at the largest value that is reported
HOT = 2.0  # times the 99.9 percentile's distance from the lowest value: a maximum beyond it is an outlier
_READ = 2**31  # voxels of a file that are looked at; of larger files every n-th block
_SAMPLE = 2**20  # values from which percentiles are taken
_BOX = 256  # side of the central box whose spectra are taken


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
    voxel_um: tuple[float, float, float] | None
    low: float
    high: float
    percentiles: tuple[float, float, float]
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
    def median(self) -> float:
        """Place of the median between the outer percentiles, 0 to 1."""
        low, median, high = self.percentiles
        return (median - low) / (high - low) if high > low else 0.0

    def faults(self) -> list[str]:
        """What is wrong with the file, or may be."""
        found = []
        if self.bad:
            found.append(f"{self.bad} NaN or infinite voxels; replace them, for example by the minimum")
        if self.low == self.high:
            found.append(f"empty: every voxel is {self.low:g}; remove the file")
            return found
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
    paths = []
    for split in ("train", "val"):
        if split == "train" or any((folder / split / direction).is_dir() for direction in directions):
            names = paired_names(folder / split, directions)
            paths += [(split, direction, folder / split / direction / name) for direction in directions for name in names]
    files, volumes, problems = [], [], []
    for split, direction, path in paths:
        try:
            volumes.append((split, direction, open_volume(path)))
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


def summarised(files: Sequence[Surveyed]) -> Measured:
    """The numbers that a recommendation needs: smallest extents, and medians over the files."""
    sampled = [f.voxel_um[0] / ((f.voxel_um[1] + f.voxel_um[2]) / 2) for f in files if f.voxel_um]
    spectra = [(f.spectra, f.voxel_um) for f in files if f.spectra]
    z, y, x = (min(f.shape[axis] for f in files) for axis in range(3))
    return Measured(
        shape=(z, y, x),
        sampling=float(np.median(sampled)) if sampled else None,
        resolution=_median(s.ratio(voxel_um) for s, voxel_um in spectra),
        axial_cutoff=_median(s.cutoff[0] for s, _ in spectra),
        undersampled=sum(s.undersampled for s, _ in spectra) * 2 > len(spectra),
        median=float(np.median([f.median for f in files])),
    )


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None


def _look(volume: Volume, split: str, direction: str, advance: Callable[[int], object]) -> Surveyed:
    low, high, at_high, bad, seen, sample = _grey_values(volume, advance)
    box = volume[_central(volume.shape)]
    finite = np.isfinite(box).all()
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
        tuple(np.percentile(sample, (0.1, 50, 99.9)).tolist()),
        at_high / max(seen - bad, 1),
        bad,
        seen / math.prod(volume.shape),
        anisotropy(box) if finite else None,
        (box[depth // 2].copy(), box[:, height // 2].copy(), box[:, :, width // 2].copy()),
    )


def _grey_values(volume: Volume, advance: Callable[[int], object]) -> tuple[float, float, int, int, int, np.ndarray]:
    """Lowest and highest finite value, voxels with the highest, voxels that are not finite, voxels read, and a sample."""
    size = math.prod(volume.shape)
    thin = max(1, min(size, _READ) // _SAMPLE)
    low, high, at_high, bad, seen = np.inf, -np.inf, 0, 0, 0
    sample = []
    for box in islice(volume.blocks(), 0, None, -(-size // _READ)):
        values = volume[box].ravel()
        seen += values.size
        advance(values.size)
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            bad += int(values.size - np.count_nonzero(finite))
            values = values[finite]
        if not values.size:
            continue
        top = float(values.max())
        at_high = (at_high if top <= high else 0) + (int(np.count_nonzero(values == top)) if top >= high else 0)
        low, high = min(low, float(values.min())), max(high, top)
        sample.append(values[::thin])
    if not sample:
        return 0.0, 0.0, 0, bad, seen, np.zeros(1)
    return low, high, at_high, bad, seen, np.concatenate(sample)


def _central(shape: tuple[int, int, int]) -> Box:
    z, y, x = (slice((size - min(size, _BOX)) // 2, (size + min(size, _BOX)) // 2) for size in shape)
    return z, y, x
