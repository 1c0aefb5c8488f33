"""The commands of infer.py, each from checked options to a finished file."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.api import code_target, write_codes
from inference.codes import SUFFIX, CodeStore, level_names
from inference.jobs import Job, Options, decode_job, enhance_job, slices_of
from inference.pipeline import moved, pieces_of, shard_of, unfinished, work_through
from inference.processes import Processes
from inference.run import Run
from inference.tiles import boxes
from inference.trust import Consistency, said_of_seams, save_preview, seam
from inference.uncertainty import spread_job
from utils.errors import UserError
from utils.volumes.output_files import KINDS
from utils.volumes.volume import Box, Volume
from utils.volumes.volume_io import (
    create_target,
    estimate_bytes,
    expand_inputs,
    free_space,
    open_volume,
    partial_path,
    refuse_existing,
)

log = logging.getLogger("isoscope")


@dataclass(frozen=True)
class Extras:
    """What else a command does.

    Attributes:
        overwrite: replace an existing output.
        dry_run: say what would be done, with the time that a piece takes.
        consistency: also write the output projected onto the input, minus it.
        uncertainty: passes of which the standard deviation is also written; 0: none.
        preview: also write a picture.
        compression: of a TIFF.
    """

    overwrite: bool = False
    dry_run: bool = False
    consistency: bool = False
    uncertainty: int = 0
    preview: bool = False
    compression: str = "zstd"


def beside(output: Path, what: str, suffix: str | None = None) -> Path:
    """OUT_what.suffix for OUT.suffix."""
    name = output.name
    ending = max((k for k in (*KINDS, ".ome.zarr") if name.lower().endswith(k)), key=len)
    return output.with_name(f"{name[: -len(ending)]}_{what}{suffix or name[-len(ending) :]}")


def enhance(
    run: Run, volumes: Sequence[Volume], output: Path, options: Options, extras: Extras, processes: Processes
) -> None:
    """Anisotropic volume → isotropic volume, with what else was asked for."""
    if extras.consistency and (run.translates or options.region is not None):
        raise UserError(
            "--consistency compares the output with the whole input: it is not possible with --region, nor for a run that "
            "translates one folder into another"
        )
    job = enhance_job(run, volumes, options)
    if not _there_already(job, output, extras) and not write_job(job, output, extras, processes):
        return
    if extras.uncertainty:
        write_job(spread_job(run, volumes, options, job, extras.uncertainty), beside(output, "uncertainty"), extras, processes)
    finished = [open_volume(output, channel=c) for c in range(job.field.channels)]
    if extras.consistency:
        _consistency(run, volumes, options, finished, output, extras, processes)
    if extras.preview and processes.rank == 0:
        picture = beside(output, "preview", ".png")
        if options.region is None:
            slices = slices_of(run, volumes, options)
            save_preview(picture, slices, finished, run.geometry.factor, job.voxel_um, output.name)
            log.info("picture: %s", picture)
        else:
            log.info("no picture: --preview shows the whole output, not a region")


def _there_already(job: Job, output: Path, extras: Extras) -> bool:
    """Whether an interrupted command has written its main output and was at work on what comes beside it."""
    if extras.overwrite or not (extras.uncertainty or extras.consistency or extras.preview) or not output.exists():
        return False
    found = open_volume(output, channel=0).attributes
    there = all(found.get(key) == value for key, value in json.loads(json.dumps(job.attributes)).items())
    if there:
        log.info("%s is finished; going on with what comes beside it", output)
    return there


def decode(
    run: Run, store: CodeStore, output: Path, grid: str, options: Options, extras: Extras, processes: Processes
) -> None:
    """Codes → volume."""
    write_job(decode_job(run, store, grid, options), output, extras, processes)


def encode(
    run: Run, volumes: Sequence[Volume], output: Path, options: Options, extras: Extras, processes: Processes
) -> None:
    """Volume → code store."""
    refuse_existing(output, extras.overwrite)
    if extras.overwrite and processes.rank:
        processes.wait()
    target, encoder = code_target(run, volumes, output, options, extras.overwrite)
    if extras.overwrite and not processes.rank:
        processes.wait()
    write_codes(target, encoder, processes, processes.rank == 0)
    processes.wait()
    if processes.rank == 0:
        for line in code_sizes(target.finish()):
            log.info(line)
    processes.wait()


def code_sizes(store: CodeStore) -> list[str]:
    """Bytes on disc, bits per raw voxel and ratios."""
    about = store.about
    names = [*level_names(about["levels"]), "empty"] + (["codebook"] if about["kind"] == "codebook" else [])
    size = sum(store.bytes_of(name) for name in names)
    voxels = math.prod(about["input"]["shape"])
    raw = voxels * np.dtype(about["input"]["dtype"]).itemsize
    isotropic = about["shape"][0] * about["factor"] * math.prod(about["inner"]) * np.dtype(about["output_dtype"]).itemsize
    return [
        f"{store.path}: {size} bytes on disc, {8 * size / voxels:.4g} bits per raw voxel",
        f"{raw / size:.4g} times smaller than the raw input, {isotropic / size:.4g} times smaller than the isotropic volume",
    ]


# One output ----------------------------------------------------------------------------------------------------------


def write_job(job: Job, output: Path, extras: Extras, processes: Processes) -> bool:
    """Computes this process's share of an output and helps to finish it; False after a dry run."""
    shape, field = job.shape, job.field
    refuse_existing(output, extras.overwrite)
    if extras.dry_run:
        _dry_run(job, output)
        return False
    if processes.rank == 0 and not partial_path(output).exists():
        free_space(output, estimate_bytes(output, shape, field.dtype, field.channels) // 4)  # compressed to a quarter at best
    created = _create(job, output, extras, processes)
    pieces = pieces_of(shape, field.unit, created.shard, processes)
    mine = unfinished(pieces, [created.boxes[n] for n in created.pending()])
    started = time.monotonic()

    def write(box: Box, values: NDArray[Any]) -> None:
        created.write_region(box, values if created.channels else values[0])

    done = work_through(
        mine, prefetch=lambda box: field.prefetch(moved(box, job.origin)), write=write, title=output.name,
        render=lambda box: field.render(moved(box, job.origin)), show=processes.rank == 0,
    )  # fmt: skip
    seconds = time.monotonic() - started
    voxels, background = processes.total(done), processes.total(field.skipped)  # of this attempt, where there were several
    counts = {"processes": processes.world, "seconds": round(seconds, 3), "voxels": voxels, "background_tiles": background}
    seams = seam(created.volume(), job.attributes) if processes.rank == 0 else {}
    extra = {"work": counts, "seams": seams}
    created.finish(rank=processes.rank, world=processes.world, barrier=processes.barrier, extra=extra)
    if processes.rank == 0:
        rate = voxels / seconds / 1e6 if voxels else 0.0
        log.info("%s: %s voxels (z, y, x), %.3g Mvoxel/s, %d background tiles filled", output, shape, rate, background)
        for line in said_of_seams(seams):
            log.info(line)
    return True


def _create(job: Job, output: Path, extras: Extras, processes: Processes) -> Any:
    if extras.overwrite and processes.rank:
        processes.wait()  # the first process may have to remove an unfinished output
    target = create_target(
        output, shape=job.shape, dtype=job.field.dtype, voxel_um=job.voxel_um, translation_um=job.translation_um,
        channel_names=job.channel_names, shard=shard_of(job.field.unit), attributes=job.attributes,
        compression=None if extras.compression == "none" else extras.compression, overwrite=extras.overwrite,
    )  # fmt: skip
    if extras.overwrite and not processes.rank:
        processes.wait()
    return target


def _dry_run(job: Job, output: Path) -> None:
    field = job.field
    tiles = boxes(job.shape, field.unit)
    minutes = field.cost(moved(tiles[len(tiles) // 2], job.origin)) * math.prod(job.shape) / 60
    size = math.prod(job.shape) * field.channels * field.dtype.itemsize
    log.info("%s: %s voxels (z, y, x) of %s, %.3g GB before compression", output, job.shape, field.dtype, size / 1e9)
    log.info("%d tiles of %s voxels; the network takes about %.2g minutes for one process", len(tiles), field.unit, minutes)


def _consistency(
    run: Run, volumes: Sequence[Volume], options: Options, finished: Sequence[Volume], output: Path, extras: Extras,
    processes: Processes,
) -> None:  # fmt: skip
    """One process is enough: nothing is computed but sums."""
    if processes.rank:
        return
    slices = slices_of(run, volumes, options)
    check = Consistency(run, slices, finished)
    file = beside(output, "consistency")
    voxel = finished[0].voxel_um
    size = None if voxel is None else (voxel[0] * check.factor, voxel[1], voxel[2])
    target = create_target(
        file, shape=check.shape, dtype="float32", voxel_um=size, channel_names=run.directions if len(finished) > 1 else None,
        attributes={"shows": "output projected onto the input, minus the input"}, overwrite=True,
    )  # fmt: skip

    def write(box: Box, values: NDArray[Any]) -> None:
        target.write_region(box, values if target.channels else values[0])

    work_through(target.boxes, prefetch=check.prefetch, render=check.render, write=write, title=file.name)
    target.finish()
    errors = check.write_errors(beside(output, "consistency", ".json"))["channels"][0]
    psnr = "infinite" if errors["psnr_db"] is None else f"{errors['psnr_db']:.4g} dB"
    log.info("consistency: RMSE %.4g grey values, PSNR %s against the input: %s", errors["rmse"], psnr, file)


# Inputs --------------------------------------------------------------------------------------------------------------


def run_of(store: CodeStore) -> Path:
    """The run that a store names.

    Raises:
        UserError: it is not there any more.
    """
    path = Path(store.about["run_path"])
    if not path.is_dir():
        raise UserError(f"{store.path} was made by {path}, which is not there; name the run with --run")
    return path


def inputs_and_outputs(given: Any, run: Run) -> list[tuple[list[Volume], Path]]:
    """What a command works on: the channels of each volume, and where its output goes.

    Args:
        given: the command line: input, channel, time, level, output, format, command.
        run: says how many channels there are.

    Raises:
        UserError: an input cannot be opened, has other channels than the run, or several outputs need a folder.
    """
    paths = expand_inputs(given.input)
    if run.channels == 2 and len(paths) == 2 and given.channel is None:
        paths = [paths[0]] if paths[0] == paths[1] else paths
        volumes = [open_volume(path, time=given.time, level=given.level) for path in paths]
        return [(volumes, given.output)]
    channels = given.channel or (range(run.channels) if run.channels > 1 else [None])
    found = [[open_volume(path, channel=c, time=given.time, level=given.level) for c in channels] for path in paths]
    if len(paths) == 1:
        return [(found[0], given.output)]
    suffix = SUFFIX if given.command == "encode" else given.format
    given.output.mkdir(parents=True, exist_ok=True)
    outputs = [given.output / (_stem(path) + suffix) for path in paths]
    if len(set(outputs)) < len(outputs):
        raise UserError(f"two inputs would be written to one output in {given.output}; rename them: {', '.join(map(str, paths))}")
    return list(zip(found, outputs, strict=True))


def _stem(path: Path) -> str:
    name = path.name
    endings = [k for k in (*KINDS, ".ome.zarr") if name.lower().endswith(k)]
    return name[: -len(max(endings, key=len))] if endings else path.stem if path.is_file() else name
