"""A job's values, piece by piece, to an array, a file or a code store."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.codes import CodeTarget
from inference.decoding import Part, meet
from inference.encoding import SliceEncoder
from inference.jobs import Job
from inference.outputs import Output
from inference.processes import Processes
from inference.trust import said_of_seams, seam
from inference.work import work_through
from volumes.output_files import estimate_bytes, free_space, partial_path, refuse_existing
from volumes.target_plan import plan_target
from volumes.volume import Box, boxes, corner, moved, parts
from volumes.volume_target import create_target

log = logging.getLogger("isoscope")

_SHARD = 256


def compute(job: Job, progress: bool) -> NDArray[Any]:
    """A job's values, (Z, Y, X) or (C, Z, Y, X)."""
    out = np.empty((job.field.channels, *job.shape), job.field.dtype)

    def put(box: Box, begun: Part) -> None:
        out[(slice(None), *box)] = begun(box)

    pieces = boxes(job.shape, job.field.unit)
    work_through(pieces, prefetch=job.prefetch, begin=job.begin, write=put, title="enhance", show=progress)
    return out if job.channel_names else out[0]


def write(job: Job, output: Output) -> None:
    """Computes this process's share of an output and helps to finish it; a dry run only says what that would be."""
    shape, field, processes = job.shape, job.field, output.processes
    refuse_existing(output.path, output.overwrite)
    if output.dry_run:
        _dry_run(job, output.path)
        return
    if processes.rank == 0 and not partial_path(output.path).exists():
        needed = estimate_bytes(output.path, shape, field.dtype, field.channels)
        free_space(output.path, needed // 4)  # compressed to a quarter at best
    plan = plan_target(
        output.path,
        shape=shape,
        dtype=field.dtype,
        voxel_um=job.voxel_um,
        translation_um=job.translation_um,
        channel_names=job.channel_names,
        # whole cores up to about 256 voxels, or a part of a larger one
        shard=[_SHARD if side % _SHARD == 0 else side if side > _SHARD else side * (_SHARD // side) for side in field.unit],
        attributes=job.attributes,
        compression=None if output.compression == "none" else output.compression,
    )
    with processes.first_alone(output.overwrite):  # who may have to remove an unfinished output
        target = create_target(output.path, plan, overwrite=output.overwrite)

    def write_part(box: Box, begun: Part) -> None:
        values = begun(box)
        target.write_region(box, values if target.channels else values[0])

    pieces = boxes(shape, [max(sides) for sides in zip(field.unit, target.shard, strict=True)])  # whole shards, whole cores
    missing = [target.boxes[n] for n in target.pending()]
    started = time.monotonic()
    done = work_through(
        [pieces[n] for n in processes.share(len(pieces)) if any(meet(pieces[n], shard) for shard in missing)],
        prefetch=job.prefetch,
        begin=job.begin,
        write=write_part,
        split=lambda box: parts(box, target.shard),
        title=output.path.name,
        show=processes.rank == 0,
    )
    seconds = time.monotonic() - started
    voxels, background = processes.total(done), processes.total(field.skipped)  # of this attempt, where there were several
    counts = {"processes": processes.world, "seconds": round(seconds, 3), "voxels": voxels, "background_tiles": background}
    seams = seam(target.volume(), job.attributes) if processes.rank == 0 else {}
    extra = {"work": counts, "seams": seams}
    target.finish(rank=processes.rank, world=processes.world, barrier=processes.barrier, extra=extra)
    if processes.rank == 0:
        rate = voxels / seconds / 1e6 if voxels else 0.0
        log.info("%s: %s voxels (z, y, x), %.3g Mvoxel/s, %d background tiles filled", output.path, shape, rate, background)
        for line in said_of_seams(seams):
            log.info(line)


def _dry_run(job: Job, path: Path) -> None:
    field = job.field
    pieces = boxes(job.shape, field.unit)
    minutes = field.cost(moved(pieces[len(pieces) // 2], corner(job.region))) * math.prod(job.shape) / 60
    tile = [size // count for size, count in zip(field.unit, field.block, strict=True)]
    size = math.prod(job.shape) * field.channels * field.dtype.itemsize
    log.info("%s: %s voxels (z, y, x) of %s, %.3g GB before compression", path, job.shape, field.dtype, size / 1e9)
    log.info("%d tiles of %s voxels, up to %d at once", len(boxes(job.shape, tile)), tuple(tile), math.prod(field.block))
    log.info("the network takes about %.2g minutes for one process", minutes)


def write_codes(target: CodeTarget, encoder: SliceEncoder, processes: Processes, progress: bool) -> None:
    """This process's share of a code store."""
    own = {corner(target.units[n]) for n in processes.share(len(target.units))}
    mine = [box for box in target.pending() if corner(box) in own]
    work_through(mine, prefetch=encoder.prefetch, begin=encoder.read, write=target.write, title="encode", show=progress)
