"""Piece after piece to an array, a file or a code store: reading, network and writing at the same time, few pieces in memory."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from inference.fields import Field, Part, TurnedField
from inference.memory import SHARD, require_memory
from inference.options import Options
from inference.run import Run
from inference.source import Source
from inference.trust import projected
from intensity.transform import Intensity
from utils.axes import SEEN_ALONG, as_planes, exchanged
from utils.boxes import Box, boxes, extent, meet, parts, region_within, relative, voxels_of
from utils.errors import printable
from utils.files import write_json
from utils.machine import peak_memory
from utils.units import as_size, as_time
from volumes.open import stem_of
from volumes.seams import said_of_place, said_of_seams, seam
from volumes.volume import Look, Triple, Volume, seen_along
from writing.outputs import Output
from writing.target import VolumeTarget
from writing.target_plan import plan_target, refuse_existing, require_room

log = logging.getLogger("isoscope")

_WAITING = 1  # pieces that are being written while the next one is computed
_COLOURS = ("FF00FF", "00FF00")  # magenta and green, as in pictures, where the input has none
_WRITERS = 4  # threads that put pieces together, compress and write them


Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Job:
    """An output volume to be computed. The thick axis is z here, wherever the file has it.

    Attributes:
        field: computes any box of the whole volume.
        region: the part wanted, whole where nothing else was asked for.
        voxel_um, translation_um: of the region's first voxel, or None.
        attributes: what is recorded in the output.
        channel_names: with an axis of channels, their names.
        channel_looks: their colours, and the grey values that are shown.
    """

    field: Field
    region: Box
    voxel_um: Triple | None
    translation_um: Triple | None
    attributes: Mapping[str, Any]
    channel_names: list[str] | None
    channel_looks: list[Look] | None

    @classmethod
    def of(
        cls,
        run: Run,
        field: Field,
        voxel: Triple | None,
        translation: Triple | None,
        record: Mapping[str, Any],
        options: Options,
    ) -> Job:
        """A job from the place of the encoded slices: that of the isotropic planes follows (DECISIONS §2)."""
        region = region_within(options.region, [(0, size) for size in field.shape], "the output has voxels")
        if options.dtype is not None:
            _warn_of_clipping(field)
        attributes = {
            **run.record_of_outputs,
            "precision": run.engine.precision,
            "intensities": [intensity.as_json() for intensity in field.intensities],
            "lattice": field.lattice,
            **record,
        }
        if options.region is not None:
            attributes["region"] = [[part.start, part.stop] for part in region]
        if record.get("slices"):
            attributes["place"] = place_of(run, record["slices"], region, raw=record["grid"] == "raw")
        if voxel is not None and translation is not None:
            if record["grid"] != "raw":
                voxel = (voxel[0] / run.factor, voxel[1], voxel[2])
                translation = (translation[0] - voxel[0] * run.centre, translation[1], translation[2])
            z, y, x = (t + v * part.start for t, v, part in zip(translation, voxel, region, strict=True))
            translation = (z, y, x)
        names, looks = (
            named_channels(run, record["input"], [i.ends for i in field.intensities]) if field.channels > 1 else (None, None)
        )
        return cls(field, region, voxel, translation, attributes, names, looks)

    @property
    def thick(self) -> str:
        """The axis of the file that is z here."""
        return str(self.attributes.get("thick", "z"))

    def as_filed(self) -> Job:
        """The same with the axes of the file."""
        thick = self.thick
        if thick == "z":
            return self
        voxel, place = (known and exchanged(known, thick) for known in (self.voxel_um, self.translation_um))
        field, region = TurnedField(self.field, thick), exchanged(self.region, thick)
        return replace(self, field=field, region=region, voxel_um=voxel, translation_um=place)


def named_channels(run: Run, given: Mapping[str, Any], shown: Sequence[tuple[float, float]]) -> tuple[list[str], list[Look]]:
    """What the channels of an output are called, and how they are shown: as in its input, where that says so.

    Args:
        given: the record of the input.
        shown: of each channel, the first and the last grey value that is shown.
    """
    stated = given.get("channels") or [["", ""]] * run.channels
    names: list[str] = [printable(name) or stem_of(Path(file)) for (name, _), file in zip(stated, given["files"], strict=False)]
    colours = [colour for _, colour in stated]
    own = len(set(names)) == run.channels
    looks: list[Look] = list(zip(colours if all(colours) else _COLOURS, shown, strict=False))
    return names if own else run.directions, looks


def differences_of(intensities: Sequence[Intensity]) -> list[tuple[float, float]]:
    """Which differences of grey values are shown, of each channel: up to a tenth of its range."""
    return [(-intensity.width / 10, intensity.width / 10) for intensity in intensities]


def _warn_of_clipping(field: Field) -> None:
    """Says that the dtype asked for does not hold all grey values of an output: they are not scaled to it."""
    limits = np.finfo(field.dtype) if field.dtype.kind == "f" else np.iinfo(field.dtype)
    least, most = float(limits.min), float(limits.max)
    for low, high in dict.fromkeys(intensity.ends for intensity in field.intensities):
        if low < least - 0.5 or high > most + 0.5:
            log.warning(
                "--dtype %s holds %g to %g, and the output has grey values from %.6g to %.6g: what lies beyond becomes constant",
                *(field.dtype.name, least, most, low, high),
            )


def place_of(run: Run, slices: Mapping[str, Any], region: Box, *, raw: bool) -> dict[str, list[float]]:
    """Where an output lies in its input, known without any voxel size: voxel i (z, y, x) at the input's origin + i·step."""
    step, before = slices["spacing"], 0.0
    if not raw:
        step, before = step / run.factor, run.centre
    z, y, x = (part.start for part in region)
    return {"origin": [slices["first"] + (z - before) * step, float(y), float(x)], "step": [step, 1.0, 1.0]}


def compute(job: Job, progress: bool) -> NDArray[Any]:
    """A job's values with the axes of the input, (Z, Y, X) or (C, Z, Y, X)."""
    job = job.as_filed()
    field = job.field
    out = np.empty((field.channels, *extent(job.region)), field.dtype)

    def put(box: Box, begun: Part) -> None:
        out[(slice(None), *relative(box, job.region))] = begun(box)

    work_through(parts(job.region, field.unit), field.prefetch, field.begin, put, title="enhance", show=progress)
    return out if job.channel_names else out[0]


def write(job: Job, output: Output) -> None:
    """Computes this process's share of an output and helps to finish it; a dry run only says what that would be."""
    refuse_existing(output.path, output.overwrite)
    if output.dry_run:
        _dry_run(job, output.path)
        return
    computing, job = job.field, job.as_filed()
    shape, field, processes = extent(job.region), job.field, output.processes
    if processes.rank == 0:
        log.info(require_room(output.path, shape, field.dtype, field.channels))
    said = require_memory(computing)
    if said and processes.rank == 0:
        log.info("computing takes %s", said)
    plan = plan_target(
        output.path,
        shape=shape,
        dtype=field.dtype,
        voxel_um=job.voxel_um,
        translation_um=job.translation_um,
        channel_names=job.channel_names,
        channel_looks=job.channel_looks,
        # whole cores up to about 256 voxels, or a part of a larger one
        shard=[SHARD if side % SHARD == 0 else side if side > SHARD else side * (SHARD // side) for side in field.unit],
        attributes=job.attributes,
        compression=None if output.compression == "none" else output.compression,
    )
    with processes.first_alone(output.overwrite):  # who may have to remove an unfinished output
        target = VolumeTarget(output.path, plan, overwrite=output.overwrite)

    def write_part(box: Box, begun: Part) -> None:
        values = begun(box)
        target.write_region(relative(box, job.region), values if target.channels else values[0])

    pieces = parts(job.region, [max(sides) for sides in zip(field.unit, plan.shard, strict=True)])  # whole shards, whole cores
    mine = [pieces[n] for n in processes.share(len(pieces))]
    own = [n for n, shard in enumerate(target.boxes) if any(meet(relative(piece, job.region), shard) for piece in mine)]
    pending = [target.boxes[n] for n in target.pending(own)]
    missing = [piece for piece in mine if any(meet(relative(piece, job.region), shard) for shard in pending)]
    started = time.monotonic()
    done = work_through(
        missing, field.prefetch, field.begin, write_part, title=output.path.name, shard=plan.shard, show=processes.rank == 0
    )
    seconds = processes.slowest(time.monotonic() - started)
    voxels, background = processes.total(done), processes.total(computing.skipped)  # of this attempt, where there were several
    counts = {"processes": processes.world, "seconds": round(seconds, 3), "voxels": voxels, "background_tiles": background}
    seams = seam(seen_along(target.volume(), job.thick), job.attributes) if processes.rank == 0 else {}
    extra = {"work": counts, "seams": seams}
    target.finish(rank=processes.rank, world=processes.world, barrier=processes.wait, extra=extra)
    if processes.rank == 0:
        rate = voxels / seconds / 1e6 if voxels else 0.0
        filled = f", {background} tiles of background filled" if background else ""
        log.info("%s: %s voxels (z, y, x), %.3g Mvoxel/s%s", output.path, shape, rate, filled)
        for line in (*said_of_place(job.attributes), *said_of_seams(seams)):
            log.info(line)


def _dry_run(job: Job, path: Path) -> None:
    field, shape, voxels = job.field, extent(job.region), voxels_of(job.region)
    filed = extent(job.as_filed().region)
    room, foreseen = require_room(path, filed, field.dtype, field.channels), require_memory(field)
    field.skip_empty = False  # background in the middle would seem to take no time
    pieces = parts(job.region, field.unit)
    middle = len(pieces) // 2
    for piece in pieces[max(0, middle - 1) : middle + 1]:  # the first one also asks for memory
        started = time.monotonic()
        field.render(piece)
        seconds = (time.monotonic() - started) * voxels / voxels_of(piece)
    tile = [size // count for size, count in zip(field.unit, field.block, strict=True)]
    size = as_size(voxels * field.channels * field.dtype.itemsize)
    log.info("%s: %s voxels (z, y, x) of %s, %s before compression", path, filed, field.dtype, size)
    log.info("tiles of %s voxels: %d, up to %d at once", tuple(tile), len(boxes(shape, tile)), math.prod(field.block))
    log.info(room)
    log.info("memory: %s so far; %s", peak_memory(), foreseen or "as much of the GPU's as there is")
    log.info("time: about %s for one process, if all tiles take as long as those in the middle", as_time(seconds))


def write_consistency(
    run: Run, source: Source, outputs: Sequence[Volume], path: Path, errors: Path, attributes: Mapping[str, Any]
) -> None:
    """Writes the output projected onto the encoded slices, minus these, in grey values; and the errors of all slices as JSON.

    Args:
        outputs: the finished output, one volume per channel, seen along the thick axis. One process is enough.
        path: of the differences, float32.
        errors: RMSE and PSNR (peak: the range of grey values that the network knows) of every slice and of all.
    """
    factor, how, centre, taps = run.factor, run.projection, run.centre, run.axial_taps
    squares = np.zeros((len(outputs), source.count))
    place: dict[str, Any] = {}
    voxel, position = outputs[0].voxel_um, outputs[0].translation_um
    if voxel is not None and position is not None:
        place["voxel_um"] = (voxel[0] * factor, *voxel[1:])
        place["translation_um"] = (position[0] + voxel[0] * centre, *position[1:])
    names, looks = named_channels(run, source.record, differences_of(source.intensities)) if len(outputs) > 1 else (None, None)
    thick = source.thick
    shape = exchanged((source.count, *source.inner), thick)
    place = {name: exchanged(known, thick) for name, known in place.items()}
    place |= {"channel_names": names, "channel_looks": looks}
    plan = plan_target(path, shape=shape, dtype="float32", attributes=attributes, **place)
    target = VolumeTarget(path, plan, overwrite=True)

    def differences(box: Box) -> NDArray[np.float32]:
        k, rows, columns = exchanged(box, thick)
        given = source.grey(k, rows, columns)
        depth = slice(k.start * factor - len(taps) // 2, k.stop * factor + len(taps) // 2)
        planes = [_ends_repeated(output, depth, rows, columns) for output in outputs]
        values = np.stack([projected(made, factor, how, centre, taps) - grey for made, grey in zip(planes, given, strict=False)])
        squares[:, k] += np.square(values, dtype=np.float64).sum(axis=(2, 3))
        return values

    def write(box: Box, values: NDArray[np.float32]) -> None:
        filed = as_planes(values, SEEN_ALONG[thick])
        target.write_region(box, filed if target.channels else filed[0])

    work_through(target.boxes, lambda box: None, differences, write, title=path.name)
    target.finish()
    channels = []
    for intensity, of_slices in zip(source.intensities, squares / math.prod(source.inner), strict=False):
        rmse = np.sqrt([of_slices.mean(), *of_slices]).tolist()
        psnr = [20 * math.log10(intensity.width / error) if 0 < error and intensity.width > 0 else None for error in rmse]
        whole, *slices = ({"rmse": error, "psnr_db": ratio} for error, ratio in zip(rmse, psnr, strict=True))
        channels.append({"peak": intensity.width, **whole, "slices": slices})
        of = f" of {names[len(channels) - 1]}" if names else ""
        said = "infinite" if psnr[0] is None else f"{psnr[0]:.4g} dB"
        log.info("consistency%s: RMSE %.4g grey values, PSNR %s against the input: %s", of, rmse[0], said, path)
    write_json(errors, {"projection": how, "axial_taps": taps, "planes_per_slice": factor, "channels": channels})


def _ends_repeated(volume: Volume, depth: slice, rows: slice, columns: slice) -> NDArray[Any]:
    """A box that may reach beyond the first and the last plane."""
    before, after = max(0, -depth.start), max(0, depth.stop - volume.shape[0])
    inside = volume[depth.start + before : depth.stop - after, rows, columns]
    return np.pad(inside, ((before, after), (0, 0), (0, 0)), mode="edge")


def work_through(
    pieces: Sequence[Box],
    prefetch: Callable[[Box], None],
    begin: Callable[[Box], Piece],
    write: Callable[[Box, Piece], None],
    *,
    title: str,
    shard: Sequence[int] | None = None,
    show: bool = True,
) -> int:
    """Computes and writes boxes: while one is computed, the next one is read and the last ones are written.

    Args:
        pieces: boxes, in the order of work.
        prefetch: begins to read what a box needs; returns at once.
        begin: computes a box, or has a GPU compute it.
        write: puts a part of what was begun to disc, or all; called in other threads, for several parts at once.
        title: of the progress bar, which counts voxels and tells the time left.
        shard: voxels (z, y, x) of such a part; None: a box is written as one.
        show: whether there is a bar.

    Returns:
        Voxels done.
    """
    sizes = [math.prod(extent(box)) for box in pieces]
    said = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in title)  # a terminal may obey others
    writing: deque[list[Future[None]]] = deque()
    with (
        tqdm(total=sum(sizes), desc=said, unit="voxel", unit_scale=True, disable=not show, mininterval=1) as bar,
        ThreadPoolExecutor(_WRITERS, "write") as writers,
    ):
        for number, (box, size) in enumerate(zip(pieces, sizes, strict=True)):
            if number + 1 < len(pieces):
                prefetch(pieces[number + 1])
            begun = begin(box)
            writing.append([writers.submit(write, part, begun) for part in (parts(box, shard) if shard else [box])])
            del begun
            while len(writing) > (_WAITING if number + 1 < len(pieces) else 0):
                for future in writing.popleft():
                    future.result()
            bar.update(size)
    return sum(sizes)
