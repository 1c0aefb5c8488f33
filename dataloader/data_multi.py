"""Paired folders of volumes → training crops → batches."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dataloader.batches import Batches
from dataloader.crops import Crop, CropSettings, box_under, centre_crop, neighbourhood, places, random_crop, read_crop
from dataloader.dataset_folders import paired_names
from dataloader.sampler import APART, CropSampler, done_so_far
from dataloader.steady import DataLost, LeftOut, SteadyVolume
from intensity.statistics import Normalisation, pooled, scan, transform_of
from intensity.transform import IntensityTransform, check_finite, share_outside
from utils.boxes import Box, corner, voxels_of
from utils.errors import UserError
from utils.files import read_mapping
from utils.machine import total_memory
from utils.units import as_size
from volumes.open import open_volume
from volumes.volume import ArrayVolume, Region, Volume

logger = logging.getLogger(__name__)

_SETTINGS = (
    *("cropsize", "cropz", "dsp", "dsp_how", "usp", "precrop", "resize", "rotate", "nm", "nm_clip", "seed"),
    *("crops_per_volume", "neighbours", "preload", "draw", "batch_size", "workers", "unreadable_files"),
)
_DRAWN_AGAIN, _TRIED = 8, 64  # places in search of content; crops that say how strong a file's content is
_SAMPLED_FILES = 16  # files whose values are tried under nm 00 before a training starts
_BAR: dict[str, Any] = {"delay": 3, "leave": False}  # seconds before a progress bar appears


class PairedImageDataset(Dataset[dict[str, Any]]):
    """Crops of volumes that lie under equal names in the folders of all directions.

    Sample ``index`` is crop ``index // files`` of file ``index % files``; its label is the file's place among the sorted
    names. ``dataset[epoch, index]`` draws position and angle from ``numpy.random.default_rng([seed, epoch, index])``
    and from nothing else: the same in every process and for any number of workers. ``dataset[index]`` is epoch 0.
    All directions of a sample share the position, the angle and the planes picked.

    A sample is ``{"img": [one (1, X, Y, Z) float32 tensor per direction], "labels": int, "filenames": str}`` with
    X = Y = cropsize and Z = int(cropz * usp / dsp). Memory X is the file's row axis, Y its column axis. Values: nm 00
    those of the file, 01 in [0, 1], 11 in [-1, 1].

    Args:
        root: the folder ``train`` or ``val`` of a data set.
        directions: folders within it, one image each.
        train: False: one crop per file from its centre, not rotated, the same in every epoch.
        nm, nm_clip, seed, crops_per_volume: options of train.py.
        neighbours: so many crops of a file and epoch, or one less, are cut out of one region, which is read once.
        regions: how many of these are kept at the most.
        draw: ``uniform``, all places are equally likely; ``content``: a place that shows little but background is drawn again,
            up to 8 times, so that sparse volumes train as well.
        preload: ``check`` decodes the volumes into memory (worker processes that are forked share them).
        unreadable_files: how many files may become unreadable; crops of the files after them, at the places that the same draw
            gives there, then stand in for theirs.
        **crop: size and sampling of a crop, see ``dataloader.crops.CropSettings``.

    Raises:
        UserError: folders are missing, empty or unpaired, or the options contradict each other.
    """

    def __init__(
        self,
        root: Path | str,
        directions: Sequence[str],
        *,
        train: bool = True,
        nm: str = "00",
        nm_clip: Sequence[float] | None = None,
        seed: int = 123,
        crops_per_volume: int = 1,
        neighbours: int = 1,
        regions: int = APART,
        preload: bool = False,
        draw: str = "uniform",
        unreadable_files: int = 0,
        **crop: Any,
    ):
        self.root, self.directions, self.train = Path(root), tuple(directions), train
        self.settings = CropSettings(**crop)
        self.nm, self.nm_clip = nm, None if nm_clip is None else (float(nm_clip[0]), float(nm_clip[1]))
        self.wanted = Normalisation(nm, percentile=self.nm_clip)
        if nm == "00" and nm_clip:
            raise UserError(f"nm_clip={nm_clip[0]:g} {nm_clip[1]:g} has no effect with nm=00; set nm to 11, or leave it out")
        self.seed, self.crops_per_volume, self.preload = seed, crops_per_volume if train else 1, preload
        self.names = paired_names(self.root, self.directions)
        self.groups = len(self.names) * -(-self.crops_per_volume // neighbours)
        self.regions, self._regions = regions, dict[tuple[Any, ...], Region]()
        self._volumes: dict[tuple[str, str], Volume] = {}
        self._transforms: dict[tuple[str, str], IntensityTransform] = {}
        self.draw, self._contrasts = draw, dict[int, float]()
        self._left_out = LeftOut(len(self.names), unreadable_files)

    def __len__(self) -> int:
        return len(self.names) * self.crops_per_volume

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        while True:
            label = self._left_out.stand_in(index % len(self.names))
            try:
                return self._sample(label, epoch, index) if self.train else self.centre(label)
            except DataLost as error:
                self._left_out.add(label, error)

    def _sample(self, label: int, epoch: int, index: int) -> dict[str, Any]:
        rng, near = np.random.default_rng([self.seed, epoch, index]), None
        if self.groups < len(self):  # the same neighbourhoods for all crops of a group
            near = np.random.default_rng([self.seed, epoch, index % self.groups, 1])
        sample = self._drawn(label, rng, near)
        if self.draw == "content":
            if label not in self._contrasts:  # less than a quarter of the strongest contrast among some crops is background
                tried = np.random.default_rng([self.seed, label])
                self._contrasts[label] = max(_contrast(self._drawn(label, tried)) for _ in range(_TRIED)) / 4
            for _ in range(_DRAWN_AGAIN):
                if _contrast(sample) >= self._contrasts[label]:
                    break
                sample = self._drawn(label, rng, near)
        return sample

    def _drawn(self, label: int, rng: np.random.Generator, near: np.random.Generator | None = None) -> dict[str, Any]:
        everywhere = places(self._volume(self.directions[0], self.names[label]).shape, self.settings)
        within = neighbourhood(everywhere, self.settings, near) if near else None
        return self._cut(label, random_crop(within or everywhere, self.settings, rng), within)

    def centre(self, label: int) -> dict[str, Any]:
        """The sample in the middle of a file, not rotated."""
        return self._cut(label, centre_crop(self._volume(self.directions[0], self.names[label]).shape, self.settings))

    def _cut(self, label: int, crop: Crop, within: Box | None = None) -> dict[str, Any]:
        name = self.names[label]
        images = []
        for direction in self.directions:
            volume = self._region(direction, name, within) if within else self._volume(direction, name)
            values = read_crop(volume, crop, self.settings)
            if self.nm == "00":
                check_unit_range(values, str(volume.path))
            else:
                values = self._transform(direction, name).apply(values)
            images.append(torch.from_numpy(values)[None])
        return {"img": images, "labels": label, "filenames": name}

    def truth_of(self, label: int, direction: str | None = None) -> Path | None:
        """The file of that name in the folder ``truth`` beside ``train`` and ``val``; where ``dsp`` thins it, the file itself."""
        place = Path(direction or self.directions[0]) / self.names[label]
        path = self.root.parent / "truth" / place
        return path if path.is_file() else self.root / place if self.settings.dsp > 1 else None

    def truth(self, label: int) -> list[torch.Tensor]:
        """What the volume of :meth:`centre` looks like with every plane, (1, X, Y, planes) per direction; nothing where unknown.

        From the folder ``truth`` beside ``train`` and ``val``, whose files are whole times as deep; else, where ``dsp`` thins the
        files themselves, from them.
        """
        found = []
        for direction in self.directions:
            volume = self._volume(direction, self.names[label])
            path = self.truth_of(label, direction)
            whole = open_volume(path) if path else volume
            times, rest = divmod(whole.shape[0], volume.shape[0])
            if rest or whole.shape[1:] != volume.shape[1:] or times * self.settings.dsp == 1:
                return []
            crop = centre_crop(volume.shape, self.settings)
            depth = replace(self.settings, cropz=self.settings.kept * self.settings.dsp * times, dsp=1, usp=1)
            values = read_crop(whole, replace(crop, z=crop.z * times), depth)
            values = values if self.nm == "00" else self._transform(direction, self.names[label]).apply(values)
            found.append(torch.from_numpy(values)[None])
        return found

    def check(self, ends: Mapping[Path, tuple[float, float]] = MappingProxyType({})) -> None:
        """Open every file and raise what would stop a training later; afterwards the ranges for nm 01 and 11 are known.

        Args:
            ends: of files that have been scanned already, the values that nm 01 and 11 make the ends of the interval.

        Raises:
            UserError: a file is unreadable, truncated, 2-D, RGB or of an unsupported dtype; the shapes of a pair differ;
                a volume is smaller than a crop; voxels are NaN or infinite; under nm 00, sampled crops leave [-1, 1].
        """
        for name in tqdm(self.names, desc=f"opening {self.root.name}", unit="file", **_BAR):
            first, *others = (self._volume(direction, name) for direction in self.directions)
            self.settings.check(first)
            for volume in others:
                if volume.shape != first.shape:
                    raise UserError(
                        f"{first.path} is {first.shape} (Z, Y, X) but {volume.path} is {volume.shape}; "
                        "the files of a pair must show the same volume on the same grid"
                    )
        if self.groups < len(self):
            near = neighbourhood(places(first.shape, self.settings), self.settings, np.random.default_rng(self.seed))
            size = voxels_of(box_under(near, first.shape, self.settings)) * first.dtype.itemsize * len(self.directions)
            logger.info("neighbours: every process that reads keeps up to %d regions of about %s", self.regions, as_size(size))
        if self.preload:
            total = sum(math.prod(volume.shape) * volume.dtype.itemsize for volume in self._volumes.values())
            require_memory(total, self.root)
            logger.info("loading %s into memory: %s", self.root, as_size(total))
            with tqdm(total=total, desc=f"loading {self.root.name}", unit="B", unit_scale=True, **_BAR) as bar:
                for key, volume in self._volumes.items():
                    values = volume[:]
                    self._volumes[key] = ArrayVolume(values, volume.path, volume.voxel_um)
                    bar.update(values.nbytes)
        if self.nm == "00":
            for index in range(0, len(self.names), -(-len(self.names) // _SAMPLED_FILES)):
                self[index]
        unknown = {}  # under nm 00 there is no range to find, but a file of floats is read once in search of NaN
        for key, volume in self._volumes.items():
            if volume.path in ends and self.nm != "00":
                self._transforms[key] = IntensityTransform(self.nm, *ends[volume.path])
            elif volume.path not in ends and key not in self._transforms and (self.nm != "00" or volume.dtype.kind == "f"):
                unknown[key] = volume
        total = sum(math.prod(volume.shape) * (self.wanted.passes(volume) or 1) for volume in unknown.values())
        with tqdm(total=total, desc=f"ranges of {self.root.name}", unit="voxel", unit_scale=True, **_BAR) as bar:
            for key, volume in unknown.items():
                if self.nm == "00":
                    scan(volume, advance=bar.update)
                self._transform(*key, bar.update)

    def intensity_record(self) -> dict[str, Any]:
        """What a trained model must know about its data, as plain JSON.

        ``{"nm", "nm_clip", "directions": {direction: {"dtype", "pooled": {"low", "high"}, "files": {name: {"low", "high"}},
        "voxel_um": {name: [z, y, x] | null}}}, "dataset": contents of dataset.json beside train/ | null}``. ``low`` and
        ``high`` are the file values that become the ends of the interval; pooled = lowest low, highest high; under nm 00
        they are -1 and 1 and ``files`` is empty.
        """
        directions = {}
        for direction in self.directions:
            volumes = {name: self._volume(direction, name) for name in self.names}
            found = {} if self.nm == "00" else {name: self._transform(direction, name) for name in self.names}
            ends = pooled(list(found.values()), [1] * len(found)) if found else IntensityTransform("11", -1.0, 1.0)
            directions[direction] = {
                "dtype": np.result_type(*(volume.dtype for volume in volumes.values())).name,
                "pooled": {"low": ends.low, "high": ends.high},
                "files": {name: {"low": t.low, "high": t.high} for name, t in found.items()},
                "voxel_um": {name: volume.voxel_um and list(volume.voxel_um) for name, volume in volumes.items()},
            }
        path = self.root.parent / "dataset.json"
        dataset = read_mapping(path, "record that prepare.py writes") if path.is_file() else None
        return {"nm": self.nm, "nm_clip": self.nm_clip and list(self.nm_clip), "directions": directions, "dataset": dataset}

    def _volume(self, direction: str, name: str) -> Volume:
        """A volume; kept, since one without its values is small and holds no file open."""
        key = direction, name
        if key not in self._volumes:
            self._volumes[key] = SteadyVolume(open_volume(self.root / direction / name))
        return self._volumes[key]

    def _region(self, direction: str, name: str, within: Box) -> Volume:
        """What crops that begin at these places need of a volume; the last ones are kept."""
        key = direction, name, *corner(within)
        if key not in self._regions:
            volume = self._volume(direction, name)
            self._regions[key] = Region(volume, box_under(within, volume.shape, self.settings))
            if len(self._regions) > self.regions * len(self.directions):
                del self._regions[next(iter(self._regions))]
        return self._regions[key]

    def _transform(self, direction: str, name: str, advance: Callable[[int], object] = int) -> IntensityTransform:
        """The way of a file's values to the range of nm; found once."""
        key = direction, name
        if key not in self._transforms:
            self._transforms[key] = transform_of(self._volume(*key), self.wanted, advance)
        return self._transforms[key]


def require_memory(needed: int, where: Path) -> None:
    """Refuses, as a UserError, to preload decoded volumes of so many bytes where the machine does not have them."""
    if needed > (there := total_memory()):
        raise UserError(
            f"{where}: preload keeps {as_size(needed)} of decoded volumes in memory, of which this machine has {as_size(there)}; "
            "use --no-preload --neighbours 32, which reads regions from the files and cuts 32 crops of an epoch out of each"
        )


def check_unit_range(values: np.ndarray, where: str) -> None:
    """Refuse, as a UserError, a crop under nm 00 with NaN or infinite values, or more than 0.1 % outside [-1.05, 1.05]."""
    check_finite(values, where)
    outside = share_outside(values)
    if outside:
        raise UserError(
            f"{where}: nm=00 expects values in [-1, 1], but {100 * outside:.3g} % of a crop lie outside "
            f"({values.min():.6g} to {values.max():.6g}); use --nm 11, which maps each file's range to [-1, 1]"
        )


def _contrast(sample: dict[str, Any]) -> float:
    """Standard deviation of a sample's first image, in the network's range."""
    return float(sample["img"][0].std())


class DataModule(pl.LightningDataModule):
    """Training and, where the folder exists, validation crops of one data set, in batches of ``batch_size`` per process.

    The folder holds ``train/{direction}`` and optionally ``val/{direction}``. Results do not depend on the number of ``workers``;
    the other options are those of ``PairedImageDataset``.

    Attributes:
        train_set: the training crops.
        val_set: centre crops for validation, or None (no folder ``val`` with one of the directions).
    """

    def __init__(self, folder: Path | str, directions: Sequence[str], *, batch_size: int = 1, workers: int = 0, **options: Any):
        super().__init__()
        folder = Path(folder)
        self.batch_size, self.workers = batch_size, workers
        self.train_set = PairedImageDataset(folder / "train", directions, regions=APART * batch_size, **options)
        self.val_set: PairedImageDataset | None = None
        if any((folder / "val" / direction).is_dir() for direction in directions):
            self.val_set = PairedImageDataset(folder / "val", directions, **{**options, "train": False})

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], data_root: Path) -> Self:
        """The data of an experiment: ``data_root/{dataset}``, ``direction`` split at '_', options of the same name."""
        options = {name: settings[name] for name in _SETTINGS}
        return cls(data_root / settings["dataset"], settings["direction"].split("_"), **options)

    def files(self) -> list[Path]:
        """All files of data, without repetition."""
        sets = [one for one in (self.train_set, self.val_set) if one is not None]
        return [one.root / direction / name for one in sets for direction in dict.fromkeys(one.directions) for name in one.names]

    def nbytes(self) -> int:
        """Of all these files, as they are on disc."""
        return sum(file.stat().st_size for file in self.files())

    def sample(self, slices: int = 0) -> dict[str, Any]:
        """One sample that stays the same: the middle of the first validation file, else of the first training file.

        Of at least so many slices, as far as the file has them; with ``truth``, as of ``PairedImageDataset.truth``.
        """
        shown = copy(self.val_set or self.train_set)
        crop, depth = shown.settings, shown._volume(shown.directions[0], shown.names[0]).shape[0]
        planes = min(math.ceil(slices * crop.dsp / crop.usp), depth // crop.dsp * crop.dsp)
        shown.settings = replace(crop, cropz=max(crop.cropz, planes))
        return {**shown.centre(0), "truth": shown.truth(0)}

    def check(self, ends: Mapping[Path, tuple[float, float]] = MappingProxyType({})) -> None:
        """Raise a UserError for anything that would stop the training: see ``PairedImageDataset.check``."""
        CropSampler(len(self.train_set), self.batch_size)
        for dataset in filter(None, (self.train_set, self.val_set)):
            dataset.check(ends)

    def train_dataloader(self) -> Batches:
        """Batches of this process, in the order of the epoch that the trainer is about to run or to continue."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> Batches | list[Any]:
        """Centre crops in file order; an empty list without validation data."""
        return [] if self.val_set is None else self._loader(self.val_set, shuffle=False)

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, dataset: PairedImageDataset, shuffle: bool) -> Batches:
        rank, world = self._place()
        sampler = CropSampler(len(dataset), self.batch_size, seed=dataset.seed, rank=rank, world=world, shuffle=shuffle)
        sampler.groups = dataset.groups
        if shuffle and self.trainer is not None:  # Lightning asks before it tells a resumed run's epoch, and skips nothing
            epochs, batches = done_so_far(self.trainer)
            sampler.continue_at(epochs, batches * self.batch_size)
        return Batches(dataset, sampler, self.batch_size, self.workers)
