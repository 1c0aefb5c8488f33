"""A volume as a run reads it: opened, checked and measured once, and handed on to whatever needs it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.options import Options
from inference.run import Run
from intensity.statistics import Normalisation, looked_at, transform_of
from intensity.transform import Intensity, IntensityTransform
from utils.axes import SEEN_ALONG, exchanged
from utils.boxes import Box, reflected, sample
from utils.errors import UserError
from utils.recent import Recent
from volumes.open import open_channels, open_volume
from volumes.recent_blocks import RecentBlocks
from volumes.volume import READABLE, ArrayVolume, Triple, Volume, seen_along

log = logging.getLogger("isoscope")

One = NDArray[Any] | Volume | Path | str
Given = One | Sequence[One]

_MODES = ("run", "volume", "percentile")
_PERCENTILES = (0.1, 99.9)
_FINEST = 1000  # denominators of usp
_VOXEL_TOLERANCE = 0.01  # relative difference of voxel sizes that counts as none
_FACTOR_TOLERANCE = 0.05
_OUTSIDE = 0.05  # share of voxels outside the training's grey values, beyond what its preparation clips, that stops a command
_SAID = 1e-4  # share that is remarked upon
_OUTSIDE_THRESHOLD = 0.95  # likewise where the training data were clipped at a threshold: any share may be background
_NARROW = 0.05  # share of the training's range; an input that uses less of it is remarked upon
_FLAT = 0.01  # likewise; less is one grey value to a network: of other kinds of values than the training's it stops a command
_MARGIN = 1e-3  # of the range, for values that were rounded


class Source(AbstractContextManager["Source"]):
    """The input of a run, as the slices that its network reads: thinned, interpolated, padded, in the network's range.

    Every ``dsp``-th plane is kept (or every ``dsp`` averaged), then planes are interpolated to ``usp`` times as many (``spread
    codes``: between their codes); rows and columns are padded by reflection at their ends to whole codes. The first plane kept
    is the one that lets the output begin where the volume begins, as near as whole planes allow: F // 2 of F, earlier only where
    the last one would lie beyond the end. Used as a context, it ends its thread and forgets its tiles.

    Args:
        run: says how it reads.
        given: (Z, Y, X), or (2, Z, Y, X) for a run of two channels; an array, a Volume, a path, or one of these per channel.
        options: what the user wants otherwise. For ``volume`` and ``percentile`` the volume is scanned here, and never again.

    Attributes:
        thick: the axis of the given volume that is z here.
        volumes: one per channel, all of one shape, seen so.
        intensities: one per channel.
        floors: (C, 1, 1) float32, what background is in the network's range.
        count: encoded slices, ceil(Z·usp/dsp).
        kept: planes that thinning leaves.
        first_kept: plane of the volume (fractional) that the first of them is centred on.
        spacing: planes of the volume from one encoded slice to the next.
        first: plane of the volume (fractional) that encoded slice 0 is centred on.
        inner: rows and columns of the volume.
        dtype: of outputs, unless the user wants another: the input's, or that of the folder whose grey values are shown.
        shape: slices, padded rows and columns.
        voxel_um, translation_um: size and position of the encoded slices' voxels (z, y, x), or None where nobody knows.
        recent: tiles that networks made of it lately.
        reader: the thread that reads ahead.

    Raises:
        UserError: channels, shapes or voxel sizes do not fit each other or the run; it cannot be opened or normalised.
    """

    def __init__(self, run: Run, given: Given, options: Options) -> None:
        settings = run.settings
        self.thick, self.volumes = _thick_axis(run, options), _opened(run, given)
        if self.thick != "z":
            self.volumes = tuple(seen_along(volume, self.thick) for volume in self.volumes)
        self.dsp, self.mean = options.dsp or settings["dsp"], settings["dsp_how"] == "mean"
        self.usp = Fraction(settings["usp"]).limit_denominator(_FINEST) / run.spread
        depth, height, width = self.volumes[0].shape
        self.count, self.kept = math.ceil(depth * self.usp / self.dsp), math.ceil(Fraction(depth, self.dsp))
        self.inner = (height, width)
        self.shape = (self.count, height + -height % run.stride, width + -width % run.stride)
        self.spacing = float(self.dsp / self.usp)
        lag = self.dsp * float(Fraction(1, 2) / self.usp - Fraction(1, 2))  # from the first plane kept to the first slice
        nearest = math.floor(self.spacing * run.centre / run.factor - lag + 0.5)
        picked = min(max(nearest, 0), (depth - 1) % self.dsp)
        self.first_kept = (self.dsp - 1) / 2 if self.mean else float(picked)
        self.first = self.first_kept + lag
        self._place(run, options)
        if settings.get("resize"):
            log.info(
                "the training resized its planes to %d pixels; the input is taken to be sampled like them", settings["resize"]
            )
        foreign = run.record if run.translates and options.normalise == "run" else None
        shown = foreign["directions"][run.directions[-1]]["dtype"] if foreign else None
        self.dtype = checked_dtype(options.dtype or shown or np.result_type(*(v.dtype for v in self.volumes)).name)
        self.intensities = intensities(run, self.volumes, options.normalise, prepared=options.prepared)
        if options.normalise == "run" and not options.force_range:
            for direction, volume, intensity in zip(run.directions, self.volumes, self.intensities, strict=False):
                _check_range(run, direction, volume, intensity)
        self.floors = np.array([intensity.floor for intensity in self.intensities], np.float32)[:, None, None]
        self.recent, self.reader = Recent(), ThreadPoolExecutor(1, "read")
        self._blocks = {v: RecentBlocks(v) if v.block_columns > 1 else v for v in self.volumes}

    def __exit__(self, *_: object) -> None:
        self.reader.shutdown(cancel_futures=True)
        self.recent = Recent()

    @property
    def places(self) -> dict[str, Any]:
        """Where the slices lie, in voxels of the volume, as outputs and code stores record it.

        Slice k lies at plane ``first + k * spacing``; of every ``thinned`` planes from ``first_kept`` on one was picked, or
        ``mean`` taken of them.
        """
        thinning = {"thinned": self.dsp, "how": "mean" if self.mean else "pick", "first_kept": self.first_kept}
        return {"first": self.first, "spacing": self.spacing, **thinning}

    @property
    def record(self) -> dict[str, Any]:
        """What an interrupted command must find again to be continued."""
        first = self.volumes[0]
        files = {"files": [volume.path.name for volume in self.volumes], "shape": list(first.shape), "dtype": first.dtype.name}
        changed = [volume.path.stat().st_mtime for volume in self.volumes if volume.path.exists()]
        space = first.space or dict(first.attributes.get("input") or {}).get("space")
        channels = {"channels": [[v.channel_name, v.colour] for v in self.volumes]} if len(self.volumes) > 1 else {}
        return {**files, **channels, **({"modified": changed} if changed else {}), **({"space": space} if space else {})}

    def _place(self, run: Run, options: Options) -> None:
        """Voxel size and position of the encoded slices, in agreement with files, run and ``--voxel``."""
        self.voxel_um: Triple | None = None
        self.translation_um: Triple | None = None
        stated = {v.path: v.voxel_um for v in self.volumes if v.voxel_um is not None}
        said = options.voxel_um and exchanged(options.voxel_um, self.thick)
        voxel = next(iter(stated.values()), said)
        for volume in self.volumes:
            if volume.doubt and voxel is None:
                raise UserError(f"{volume.path}: {volume.doubt}, or give the voxel size with --voxel Z,Y,X (µm)")
        for path, other in stated.items():
            for reference, whose in ((voxel, "the other channel"), (said, "--voxel")):
                if reference is not None and _differ(other, reference):
                    raise UserError(f"{path} has voxels of {_um(other)} µm, {whose} says {_um(reference)}; correct one of them")
        if voxel is None:
            return
        files = (run.record or {}).get("directions", {}).get(run.directions[0], {}).get("voxel_um", {})
        trained = [tuple(size) for size in files.values() if size]
        if trained and not any(_differ(size, trained[0]) for size in trained) and not options.ignore_voxels:
            thinned = (trained[0][0] * run.settings["dsp"] / self.dsp, *trained[0][1:])
            if _differ(voxel, thinned):
                own = exchanged(voxel, self.thick)  # of the file
                fitting = [axis for axis in SEEN_ALONG if not _differ(exchanged(own, axis), thinned)]
                remedy = f"its thick axis is {fitting[0]}: say --thick {fitting[0]}" if fitting else "resample the input"
                taken = "" if self.thick == "z" else f", which --thick {self.thick} reads as {_um(voxel)}"
                raise UserError(
                    f"the input has voxels of {_um(own)} µm (z, y, x){taken}, but {run.name} was trained on {_um(thinned)}; "
                    f"{remedy}, use another run, or go on with --ignore-voxels if you know that it fits"
                )
        z, y, x = self.volumes[0].translation_um or (0.0, 0.0, 0.0)
        self.voxel_um = (voxel[0] * self.dsp / float(self.usp), voxel[1], voxel[2])
        self.translation_um = (z + voxel[0] * self.first, y, x)
        factor, ratio = run.factor, self.voxel_um[0] / voxel[1]
        if abs(ratio / factor - 1) > _FACTOR_TOLERANCE:
            log.warning(
                "slices are %.4g times as far apart as pixels, but this run makes %d planes of each: output voxels are %.4g µm "
                "along z and %.4g in-plane, and are recorded so",
                ratio,
                factor,
                self.voxel_um[0] / factor,
                voxel[1],
            )

    def prefetch(self, box: Box) -> Future[NDArray[np.float32]]:
        """Begins to :meth:`read` a box in another thread."""
        return self.reader.submit(self.read, box)

    def read(self, box: Box) -> NDArray[np.float32]:
        """A box of slices and padded rows and columns, (k, C, rows, columns) float32, contiguous.

        Raises:
            UserError: the volume cannot be read, or holds NaN or infinite values there.
        """
        return self._read(*box, Intensity.to_network, channels=1)

    def grey(self, k: slice, rows: slice, columns: slice) -> NDArray[np.float32]:
        """The grey values of the file, not clipped to what the network knows, (C, k, rows, columns) float32."""
        return self._read(k, rows, columns, lambda _, values, where: values.astype(np.float32), channels=0)

    def _read(
        self, k: slice, rows: slice, columns: slice, convert: Callable[..., NDArray[np.float32]], channels: int
    ) -> NDArray[np.float32]:
        y, x = (reflected((s.start, s.stop), size) for s, size in zip((rows, columns), self.inner, strict=True))
        box = slice(int(y.min()), int(y.max()) + 1), slice(int(x.min()), int(x.max()) + 1)
        positions = np.clip((np.arange(k.start, k.stop) + 0.5) / float(self.usp) - 0.5, 0, self.kept - 1)
        span, found = between(positions, self.kept), []
        for volume, intensity in zip(self.volumes, self.intensities, strict=True):
            if self.usp == 1:
                values = self.kept_planes(volume, k, box)
            else:
                planes = self.kept_planes(volume, span, box)
                values = sample(np.asarray(planes, np.float32), positions - span.start, axis=0)
            where = f"{volume.path}, slices {k.start} to {k.stop - 1}, rows {box[0].start} to {box[0].stop - 1}"
            found.append(convert(intensity, values, where))
        window = np.stack(found, axis=channels)
        if len(y) != window.shape[2] or len(x) != window.shape[3]:
            window = window[:, :, y - box[0].start][:, :, :, x - box[1].start]
        return np.ascontiguousarray(window)

    def kept_planes(self, volume: Volume, kept: slice, box: tuple[slice, slice]) -> NDArray[Any]:
        """Some of the planes that thinning leaves, in grey values; means of several planes are float32."""
        start, stop = kept.start * self.dsp, min(kept.stop * self.dsp, volume.shape[0])
        if not self.mean or self.dsp == 1:
            return self._blocks[volume][start + int(self.first_kept) : stop : self.dsp, box[0], box[1]]
        planes = self._blocks[volume][start:stop, box[0], box[1]]
        groups = [planes[n : n + self.dsp].mean(axis=0, dtype=np.float32) for n in range(0, len(planes), self.dsp)]
        return np.stack(groups)


def between(positions: NDArray[np.float64], size: int) -> slice:
    """Those of ``size`` planes that linear interpolation at fractional positions, each in [0, size - 1], reads."""
    return slice(int(positions.min()), min(int(positions.max()) + 2, size))


def _thick_axis(run: Run, options: Options) -> str:
    """The axis that is z within the run: as the user says, else as prepare.py made the training data of theirs."""
    if options.thick is not None:
        return options.thick
    entry = ((run.record or {}).get("dataset") or {}).get("directions", {}).get(run.directions[0], {})
    prepared = "z" if options.prepared else entry.get("settings", {}).get("thick", "z")
    if prepared != "z":
        log.info("the training data were prepared with --thick %s, and so is the input read; say --thick z where not", prepared)
    return prepared


def _opened(run: Run, given: Given) -> tuple[Volume, ...]:
    """One volume per channel of the run, all of one shape."""
    several = isinstance(given, (list, tuple)) or getattr(given, "ndim", 3) == 4
    channels: Sequence[Any] = list(given) if several else [given]  # type: ignore[arg-type]
    if len(channels) == 1 and isinstance(channels[0], (str, Path)):
        channels = open_channels(channels[0], run.channels)
    opened = (open_volume(one) if isinstance(one, (str, Path)) else one for one in channels)
    volumes = tuple(one if isinstance(one, Volume) else ArrayVolume(one) for one in opened)
    if len(volumes) != run.channels:
        raise UserError(
            f"{run.name} reads {run.channels} channel(s), the input has {len(volumes)}; "
            + ("give a two-channel file or two files" if run.channels == 2 else "choose one with --channel")
        )
    for volume in volumes[1:]:
        if volume.shape != volumes[0].shape:
            raise UserError(
                f"{volumes[0].path} is {volumes[0].shape} (Z, Y, X) but {volume.path} is {volume.shape}; channels share one grid"
            )
    return volumes


def _check_range(run: Run, direction: str, volume: Volume, intensity: Intensity) -> None:
    """Looks at parts of an input: its grey values must be those of the training, as by the same detector.

    Raises:
        UserError: a larger share lies outside the training's range than its own preparation clips; that would become constant.
    """
    values = looked_at(volume)
    first, last = intensity.reach
    if not first < last < math.inf:
        return  # values are taken as they are, or the training had one value only
    width = last - first
    telling = values[(values > values.min()) & (values < values.max())]  # the ends may be padding, or saturated
    telling = telling if telling.size else values
    share = np.mean((telling < first - _MARGIN * width) | (telling > last + _MARGIN * width))
    record = run.record or {}
    settings = (record.get("dataset") or {}).get("directions", {}).get(direction, {}).get("settings", {})
    clips = [clip for clip in (record.get("nm_clip"), settings.get("percentile")) if clip]
    most = _OUTSIDE_THRESHOLD if settings.get("threshold") else _OUTSIDE + sum(1 - (high - low) / 100 for low, high in clips)
    low, high = np.percentile(values.astype(np.float64), _PERCENTILES)
    place, order = f"{volume.path}", ""
    if run.channels > 1:
        place, order = f"{place}, as channel {direction},", "give the channels in the order of the training (--channel 1 0), "
    what = f"{place} has grey values from {low:.6g} to {high:.6g}, {run.name} was trained on {first:.6g} to {last:.6g}"
    used = (high - low) / width
    if _SAID < share <= most and not settings.get("threshold"):
        log.warning(
            "%s: %.1g%% of its voxels lie outside and are cut off; a training on a wider range keeps them", what, 100 * share
        )
    dtype = record.get("directions", {}).get(direction, {}).get("dtype")
    flat = 0 < used < _FLAT and (volume.dtype.kind == "f" or dtype not in (None, volume.dtype.name))
    if share > most or flat:
        wrong = f"{share:.1%} of its voxels lie outside" if share > most else f"they use {used:.2g} of that range"
        remedy = order + "map its own range with --normalise volume or percentile, or go on with --force-range"
        raise UserError(f"{what}: {wrong} and would become constant; {remedy}")
    if used < _NARROW:
        log.warning("%s: it uses little of that range; if another detector made it, --normalise volume or percentile fits", what)


def checked_dtype(name: str) -> np.dtype:
    """The dtype that ``--dtype`` names.

    Raises:
        UserError: it cannot be written.
    """
    if name not in READABLE[1:]:
        raise UserError(f"--dtype {name} cannot be written; choose one of {', '.join(READABLE[1:])}")
    return np.dtype(name)


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    return any(abs(a - b) > _VOXEL_TOLERANCE * max(a, b) for a, b in zip(one, other, strict=True))


def _um(voxel: Sequence[float]) -> str:
    return " x ".join(f"{size:.6g}" for size in voxel)


def intensities(run: Run, volumes: Sequence[Volume], mode: str, *, prepared: bool = False) -> list[Intensity]:
    """Which grey values an input and its output have, by the record of a run (DECISIONS §4): one :class:`Intensity` per channel.

    Args:
        run: the run. Where it translates, its last folder is what the output shows: ``run`` then inverts that one's constants.
        volumes: the input, one per channel; ``volume`` and ``percentile`` scan them.
        mode: ``run`` (the run's constants), ``volume`` (the run's rule, constants of these volumes), ``percentile``.
        prepared: the input went through prepare.py as the training data did.

    Raises:
        UserError: an unknown mode, or the run does not know what the mode needs.
    """
    if mode not in _MODES:
        raise UserError(f"--normalise {mode} is unknown; choose one of {', '.join(_MODES)}")
    if mode == "run" and run.record is None:
        lacks = f"{run.name} has no dataset.json, so the grey values of its training are not known"
        raise UserError(f"{lacks}; use --normalise volume or percentile")
    record = run.record or {"nm": "11"}
    entries = (record.get("dataset") or {}).get("directions", {})  # of prepare.py
    raw = {d: IntensityTransform.from_json(entry["transform"], f"{run.name}: dataset.json") for d, entry in entries.items()}

    def of_run(direction: str) -> tuple[IntensityTransform, ...]:
        maps = [raw[direction]] if direction in raw and not prepared else []
        if record["nm"] != "00":
            pooled = record["directions"][direction]["pooled"]
            maps.append(IntensityTransform(record["nm"], pooled["low"], pooled["high"]))
        return tuple(maps)

    def of_volume(direction: str, volume: Volume) -> tuple[IntensityTransform, ...]:
        before = raw[direction].normalisation if direction in raw else "11"
        if mode == "volume" and before == "zrescale":
            raise UserError(f"{run.name}: --normalise volume is not possible with zrescale; use --normalise run or percentile")
        kind = record["nm"] if record["nm"] != "00" else "01" if before == "01" else "11"
        clip = _PERCENTILES if mode == "percentile" else record.get("nm_clip")
        return (transform_of(volume, Normalisation(kind, percentile=(float(clip[0]), float(clip[1])) if clip else None)),)

    inputs = list(zip(run.directions, volumes, strict=False))
    into = [of_run(direction) if mode == "run" else of_volume(direction, volume) for direction, volume in inputs]
    out = [of_run(run.directions[-1])] if mode == "run" and run.translates else into
    return [Intensity(*both) for both in zip(into, out, strict=True)]
