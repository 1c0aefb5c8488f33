"""The commands of infer.py, each from checked options to a finished file."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.api import code_target, write_codes
from inference.codes import SUFFIX, CodeStore, level_names
from inference.decoding import Part
from inference.jobs import Job, Options, decode_job, enhance_job, slices_of
from inference.processes import Processes
from inference.run import Run
from inference.source import Slices
from inference.trust import Consistency, said_of_seams, save_preview, seam
from inference.uncertainty import spread_job
from inference.work import pieces_of, shard_of, unfinished, work_through
from utils.errors import UserError
from volumes.open import expand_inputs, open_volume
from volumes.output_files import KINDS, estimate_bytes, free_space, partial_path, refuse_existing
from volumes.target_plan import plan_target
from volumes.volume import Box, Volume, boxes, moved, parts
from volumes.volume_target import create_target

log = logging.getLogger("isoscope")

_CONSISTENCY = "output projected onto the input, minus the input"


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
    ending = _ending(output)
    return output.with_name(f"{output.name[: -len(ending)]}_{what}{suffix or ending}")


def _ending(output: Path) -> str:
    return max((k for k in (*KINDS, ".ome.zarr") if output.name.lower().endswith(k)), key=len)


def enhance(run: Run, volumes: Sequence[Volume], output: Path, options: Options, extras: Extras, processes: Processes) -> None:
    """Anisotropic volume → isotropic volume, with what else was asked for."""
    if extras.consistency and (run.translates or options.region is not None):
        raise UserError(
            "--consistency compares the output with the whole input: it is not possible with --region, nor for a run that "
            "translates one folder into another"
        )
    job = enhance_job(run, volumes, options)
    if extras.dry_run:
        write_job(job, output, extras, processes)
        return
    jobs = {output: job}
    if extras.uncertainty:
        jobs[beside(output, "uncertainty")] = spread_job(run, volumes, options, job, extras.uncertainty)
    records = {path: one.attributes for path, one in jobs.items()}
    if extras.consistency:
        records[beside(output, "consistency")] = {**job.attributes, "shows": _CONSISTENCY}
    finished = _finished(records, extras)
    for path, one in jobs.items():
        if path not in finished:
            write_job(one, path, extras, processes)
    if processes.rank:
        return
    outputs = [open_volume(output, channel=c) for c in range(job.field.channels)]
    for path in records.keys() - jobs.keys() - finished:
        _consistency(run, slices_of(run, volumes, options), outputs, path, records[path])
    if extras.preview and options.region is None:
        picture = beside(output, "preview", ".png")
        save_preview(picture, slices_of(run, volumes, options), outputs, run.geometry.factor, job.voxel_um, output.name)
        log.info("picture: %s", picture)
    elif extras.preview:
        log.info("no picture: --preview shows the whole output, not a region")


def _finished(records: Mapping[Path, Mapping[str, Any]], extras: Extras) -> set[Path]:
    """The outputs that an interrupted command of the same kind has finished already, by what is recorded in them.

    Raises:
        UserError: there are all of them, or one that another command made.
    """
    if extras.overwrite:
        return set()
    found = {path for path, wanted in records.items() if path.exists() and _shows(path, wanted)}
    if len(found) == len(records) and not extras.preview:
        found = set()
    for path in records.keys() - found:
        refuse_existing(path, overwrite=False)
    for path in found:
        log.info("%s is finished; going on with what comes beside it", path)
    return found


def _shows(path: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        there = open_volume(path, channel=0).attributes
    except UserError:  # something else lies there
        return False
    return all(there.get(key) == value for key, value in json.loads(json.dumps(wanted)).items())


def decode(run: Run, store: CodeStore, output: Path, grid: str, options: Options, extras: Extras, processes: Processes) -> None:
    """Codes → volume."""
    write_job(decode_job(run, store, grid, options), output, extras, processes)


def encode(run: Run, volumes: Sequence[Volume], output: Path, options: Options, extras: Extras, processes: Processes) -> None:
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

    def write(box: Box, begun: Part) -> None:
        values = begun(moved(box, job.origin))
        created.write_region(box, values if created.channels else values[0])

    done = work_through(
        mine,
        prefetch=lambda box: field.prefetch(moved(box, job.origin)),
        begin=lambda box: field.begin(moved(box, job.origin)),
        write=write,
        split=lambda box: parts(box, created.shard),
        title=output.name,
        show=processes.rank == 0,
    )
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
    plan = plan_target(
        output,
        shape=job.shape,
        dtype=job.field.dtype,
        voxel_um=job.voxel_um,
        translation_um=job.translation_um,
        channel_names=job.channel_names,
        shard=shard_of(job.field.unit),
        attributes=job.attributes,
        compression=None if extras.compression == "none" else extras.compression,
    )
    target = create_target(output, plan, overwrite=extras.overwrite)
    if extras.overwrite and not processes.rank:
        processes.wait()
    return target


def _dry_run(job: Job, output: Path) -> None:
    field = job.field
    pieces = boxes(job.shape, field.unit)
    minutes = field.cost(moved(pieces[len(pieces) // 2], job.origin)) * math.prod(job.shape) / 60
    tile = [size // count for size, count in zip(field.unit, field.block, strict=True)]
    size = math.prod(job.shape) * field.channels * field.dtype.itemsize
    log.info("%s: %s voxels (z, y, x) of %s, %.3g GB before compression", output, job.shape, field.dtype, size / 1e9)
    log.info("%d tiles of %s voxels, up to %d at once", len(boxes(job.shape, tile)), tuple(tile), math.prod(field.block))
    log.info("the network takes about %.2g minutes for one process", minutes)


def _consistency(run: Run, slices: Slices, outputs: Sequence[Volume], file: Path, record: Mapping[str, Any]) -> None:
    """One process is enough: nothing is computed but sums."""
    check = Consistency(run, slices, outputs)
    voxel, position = outputs[0].voxel_um, outputs[0].translation_um
    size, first = None, None
    if voxel is not None and position is not None:
        size = (voxel[0] * check.factor, voxel[1], voxel[2])
        first = (position[0] + voxel[0] * run.geometry.plane_of_slice(0, check.how), position[1], position[2])
    plan = plan_target(
        file,
        shape=check.shape,
        dtype="float32",
        voxel_um=size,
        translation_um=first,
        channel_names=run.directions if len(outputs) > 1 else None,
        attributes=record,
    )
    target = create_target(file, plan, overwrite=True)

    def write(box: Box, values: NDArray[Any]) -> None:
        target.write_region(box, values if target.channels else values[0])

    work_through(target.boxes, prefetch=check.prefetch, begin=check.render, write=write, title=file.name)
    target.finish()
    errors = check.write_errors(file.with_name(file.name[: -len(_ending(file))] + ".json"))["channels"][0]
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
        given: the command line: input, channel, time, scene, level, output, format, command.
        run: says how many channels there are.

    Raises:
        UserError: an input cannot be opened, has other channels than the run, or several outputs need a folder.
    """
    paths = expand_inputs(given.input)
    which = {"time": given.time, "scene": given.scene, "level": given.level}
    if run.channels == 2 and len(paths) == 2 and given.channel is None:
        paths = [paths[0]] if paths[0] == paths[1] else paths
        volumes = [open_volume(path, **which) for path in paths]
        return [(volumes, given.output)]
    channels = given.channel or (range(run.channels) if run.channels > 1 else [None])
    found = [[open_volume(path, channel=c, **which) for c in channels] for path in paths]
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
