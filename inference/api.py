"""What a run does: one verb each for arrays and files, for notebooks and for infer.py."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from inference.codes import SUFFIX, CodeStore, CodeTarget
from inference.jobs import decode_job, encode_job, enhance_job
from inference.outputs import Output, refuse_inputs
from inference.run import Engine, Run
from inference.source import Given, Options, Source
from inference.trust import save_preview
from inference.uncertainty import spread_job
from inference.work import compute, write, write_codes, write_consistency
from utils.errors import UserError
from volumes.open import open_volume
from volumes.target_plan import refuse_existing

log = logging.getLogger("isoscope")


def enhance(
    run: Run | Path | str,
    volume: Given | Source,
    options: Options | None = None,
    *,
    output: Output | Path | str | None = None,
    epoch: int | None = None,
    engine: Engine | None = None,
    progress: bool = False,
) -> NDArray[Any] | None:
    """An anisotropic volume made isotropic.

    Args:
        run: a training's folder, or a Run that is open.
        volume: (Z, Y, X), or (2, Z, Y, X) for a run of two channels; an array, a Volume, a path, or one of these per channel;
            or a Source of these, made already.
        options: how; see :class:`inference.source.Options`.
        output: a file to write, and what is to be written beside it; None: an array is returned.
        epoch: completed epochs of the weights; the latest by default.
        engine: device and precision.
        progress: show a bar where an array is made.

    Returns:
        (Z·factor, Y, X), or (2, Z·factor, Y, X), of the input's dtype unless the options say otherwise; None with ``output``.

    Raises:
        UserError: the run or the volume is not usable; the message says why.
    """
    run, options, output = _loaded(run, epoch, engine), options or Options(), _output(output)
    if output and output.consistency and (run.translates or options.region is not None):
        raise UserError(
            "--consistency compares the output with the whole input: it is not possible with --region, nor for a run that "
            "translates one folder into another"
        )
    with _source(run, volume, options) as source:
        job = enhance_job(run, source, options)
        if output is None:
            return compute(job, progress)
        refuse_inputs([output], run, source.volumes)
        if output.dry_run:
            write(job, output)
            return None
        jobs = {output.path: job}
        if output.uncertainty:
            jobs[output.beside("uncertainty")] = spread_job(run, source, options, job, output.uncertainty)
        records = {path: one.attributes for path, one in jobs.items()}
        if output.consistency:
            shows = "output projected onto the input, minus the input"
            records[output.beside("consistency")] = {**job.attributes, "shows": shows}
        finished = output.finished(records)
        for path, one in jobs.items():
            if path not in finished:
                write(one, replace(output, path=path))
        if output.processes.rank:
            return None
        made = [open_volume(output.path, channel=c) for c in range(job.field.channels)]
        for path in records.keys() - jobs.keys() - finished:
            write_consistency(run, source, made, path, output.beside("consistency", ".json"), records[path])
        if output.preview and options.region is None:
            save_preview(output.beside("preview", ".png"), source, made, run.geometry.factor, job.voxel_um, output.path.name)
        elif output.preview:
            log.info("no picture: --preview shows the whole output, not a region")
    return None


def encode(
    run: Run | Path | str,
    volume: Given | Source,
    output: Output | Path | str,
    options: Options | None = None,
    *,
    epoch: int | None = None,
    engine: Engine | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> CodeStore | None:
    """A volume's codes, in a store on disc; arguments as :func:`enhance`, and the store's path, ``overwrite`` to replace it.

    Returns:
        The store; None in all processes but the first.

    Raises:
        UserError: the run makes no codes, the store's name does not end in .zarr, or as for :func:`enhance`.
    """
    run, options = _loaded(run, epoch, engine), options or Options()
    target = output if isinstance(output, Output) else Output(Path(output), overwrite=overwrite)
    if target.path.suffix != ".zarr":
        raise UserError(f"{target.path}: codes are written as {SUFFIX}; choose that ending")
    refuse_existing(target.path, target.overwrite)
    with _source(run, volume, options) as source:
        refuse_inputs([target], run, source.volumes)
        encoder, about = encode_job(run, source, options)
        with target.processes.first_alone(target.overwrite):
            codes = CodeTarget(target.path, about, run.codebook(), overwrite=target.overwrite)
        write_codes(codes, encoder, target.processes, progress)
    target.processes.wait()
    store = codes.finish() if target.processes.rank == 0 else None
    target.processes.wait()
    return store


def decode(
    codes: CodeStore | Path | str,
    run: Run | Path | str | None = None,
    *,
    grid: str = "isotropic",
    options: Options | None = None,
    output: Output | Path | str | None = None,
    epoch: int | None = None,
    engine: Engine | None = None,
    progress: bool = False,
) -> NDArray[Any] | None:
    """What codes stand for; other arguments as of :func:`enhance`.

    Args:
        codes: a store.
        run: the run that made it; by default the folder that the store names.
        grid: ``isotropic``, the volume; ``raw``, the encoded slices as the 2-D decoder gives them back.
        options: ``region`` (voxels of the grid), ``dtype``, ``tile``, ``batch``.
        epoch: of the run; by default the store's if no run is named.
    """
    store, output = codes if isinstance(codes, CodeStore) else CodeStore.open(codes), _output(output)
    if run is None:
        run = Path(store.about["run_path"])
        epoch = store.about["epoch"] if epoch is None else epoch
        if not run.is_dir():
            raise UserError(f"{store.path} was made by {run}, which is not there; name the run with --run")
    run = _loaded(run, epoch, engine)
    job = decode_job(run, store, grid, options or Options())
    if output is None:
        return compute(job, progress)
    refuse_inputs([output], run, (), store.path)
    write(job, output)
    return None


def _loaded(run: Run | Path | str, epoch: int | None, engine: Engine | None) -> Run:
    return run if isinstance(run, Run) else Run.load(run, epoch, engine)


def _source(run: Run, volume: Given | Source, options: Options) -> AbstractContextManager[Source]:
    """The source as a context; one that the caller has made is his to close."""
    return nullcontext(volume) if isinstance(volume, Source) else Source(run, volume, options)


def _output(output: Output | Path | str | None) -> Output | None:
    return output if output is None or isinstance(output, Output) else Output(Path(output))
