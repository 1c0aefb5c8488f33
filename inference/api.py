"""What a run does: one verb each for arrays and files, for notebooks and for infer.py."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from codes.store import SUFFIX, CodeStore, CodeTarget
from inference.decoding import SliceField, isotropic_field
from inference.encoding import SliceEncoder, slices_or_codes
from inference.fields import Field
from inference.memory import require_memory
from inference.options import Options
from inference.run import Run
from inference.source import Given, Source, checked_dtype
from inference.trust import save_preview
from inference.uncertainty import InventedField, spread_field
from inference.work import Job, compute, differences_of, place_of, work_through, write, write_consistency
from utils.axes import exchanged
from utils.errors import UserError
from utils.machine import Engine
from volumes.open import open_volume
from volumes.volume import seen_along, triple
from writing.outputs import Output, refuse_inputs, says
from writing.target_plan import refuse_existing, room_for

log = logging.getLogger("isoscope")

GRIDS = ("isotropic", "raw")  # of what codes are decoded to


def enhance(
    volume: Given | Source | Run,
    run: Run | Path | str | Given | Source,
    options: Options | None = None,
    *,
    output: Output | Path | str | None = None,
    epoch: int | None = None,
    weights: str | None = None,
    engine: Engine | None = None,
    progress: bool = False,
) -> NDArray[Any] | None:
    """An anisotropic volume made isotropic.

    Args:
        volume: (Z, Y, X), or (2, Z, Y, X) for a run of two channels; an array, a Volume, a path, or one of these per channel;
            or a Source of these, made already.
        run: a training's folder, or a Run that is open. The run may also come first, and the volume second.
        options: how; see :class:`inference.options.Options`.
        output: a file to write, and what is to be written beside it; None: an array is returned.
        epoch: completed epochs of the weights; the latest by default.
        weights: ``ema`` (averaged) or ``raw`` (of the last step); averaged ones by default, where there are any.
        engine: device and precision.
        progress: show a bar where an array is made.

    Returns:
        (Z·factor, Y, X), or (2, Z·factor, Y, X), of the input's dtype unless the options say otherwise; None with ``output``.

    Raises:
        UserError: the run or the volume is not usable; the message says why.
    """
    volume, run = _told_apart(volume, run)
    run, options, output = _loaded(run, epoch, engine, weights), options or Options(), _output(output)
    if output and output.consistency and (run.translates or options.region is not None):
        raise UserError(
            "--consistency compares the output with the whole input: it is not possible with --region, nor for a run that "
            "translates one folder into another"
        )
    if output and output.invented and not options.texture:
        raise UserError(
            "--invented writes what texture adds, which is nothing without --texture; give --texture 0.5, for example"
        )
    if options.texture and not run.has_texture:
        raise UserError(
            f"--texture {options.texture:g}: {run.name} ({run.settings['models']}) was not trained for texture; train "
            "a model of texture on it (train.py --jsn texture --teacher RUN --prj NAME), or leave --texture out"
        )
    with _source(run, volume, options) as source:
        options = replace(options, region=options.region and exchanged(options.region, source.thick))
        job = enhance_job(run, source, options)
        if output is None:
            return compute(job, progress)
        refuse_inputs([output], run.path, source.volumes)
        if output.dry_run or (output.files == [output.path] and not output.among):
            write(job, output)
        else:
            _write_all(run, source, options, job, output)
    return None


def _write_all(run: Run, source: Source, options: Options, job: Job, output: Output) -> None:
    """An output and what was asked for beside it; what an interrupted command has finished is left as it is."""
    jobs = {output.path: job}
    looks = zip(job.channel_looks or (), differences_of(source.intensities), strict=False)
    plain = replace(job, channel_looks=job.channel_looks and [(colour, shown) for (colour, _), shown in looks])
    if output.uncertainty:
        spread = spread_field(run, source, options, output.uncertainty)
        about = {**job.attributes, "shows": f"standard deviation over {spread.over}"}
        jobs[output.beside("uncertainty")] = replace(plain, field=spread, attributes=about)
    if output.invented:
        about = {**job.attributes, "shows": "what texture invented: the output minus that of texture 0"}
        jobs[output.beside("invented")] = replace(plain, field=InventedField(run, source, options), attributes=about)
    records = {path: one.attributes for path, one in jobs.items()}
    if output.consistency:
        shows = "output projected onto the input, minus the input"
        place = place_of(run, source.places, job.region, raw=True)
        records[output.beside("consistency")] = {**job.attributes, "place": place, "shows": shows}
    finished = output.finished(records)
    for path, one in jobs.items():
        if path not in finished:
            write(one, replace(output, path=path))
    if output.processes.rank:
        return
    made = [seen_along(open_volume(output.path, channel=c), job.thick) for c in range(job.field.channels)]
    for path in records.keys() - jobs.keys() - finished:
        write_consistency(run, source, made, path, output.beside("consistency", ".json"), records[path])
    if output.preview and options.region is None:
        save_preview(output.beside("preview", ".png"), source, made, run.factor, job.voxel_um, output.path.name)
    elif output.preview:
        log.info("no picture: --preview shows the whole output, not a region")


def enhance_job(run: Run, source: Source, options: Options) -> Job:
    """Anisotropic volume → isotropic volume."""
    field = isotropic_field(run, slices_or_codes(run, source, options), source.dtype, options)
    record: dict[str, Any] = {"input": source.record, "slices": source.places, "normalisation": options.normalise}
    record |= {"grid": "isotropic"} | ({"texture": options.texture} if run.has_texture else {})
    return Job.of(run, field, source.voxel_um, source.translation_um, record | _thick(source), options)


def _thick(source: Source) -> dict[str, str]:
    """What records the thick axis of the input, where that is not z."""
    return {} if source.thick == "z" else {"thick": source.thick}


def encode(
    volume: Given | Source | Run,
    run: Run | Path | str | Given | Source,
    output: Output | Path | str,
    options: Options | None = None,
    *,
    epoch: int | None = None,
    weights: str | None = None,
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
    volume, run = _told_apart(volume, run)
    run, options = _loaded(run, epoch, engine, weights), options or Options()
    target = output if isinstance(output, Output) else Output(Path(output), overwrite=overwrite)
    if target.path.suffix != ".zarr":
        raise UserError(f"{target.path}: codes are written as {SUFFIX}; choose that ending")
    refuse_existing(target.path, target.overwrite or target.among)
    if run.restores:
        raise UserError(f"{run.name} is of {run.settings['models']}, which makes no codes; use enhance")
    if run.model.from_encoder:
        raise UserError(
            f"{run.name} decodes from the encoder's features (hbranch mid), which are larger than the volume; encode needs a run "
            "with hbranch z. enhance works"
        )
    with _source(run, volume, options) as source:
        refuse_inputs([target], run.path, source.volumes)
        book = run.codebook()
        if options.effort and book is None:
            raise UserError(f"--effort {options.effort} is for runs with a codebook; {run.name} has a Gaussian code")
        how: dict[str, Any] = {"batch": options.batch, "skip_empty": options.skip_empty, "effort": options.effort}
        encoder = SliceEncoder(run, source, **how)
        about = _record_of_codes(run, source, encoder, book, options)
        there = CodeStore.open(target.path) if target.among and not target.overwrite and target.path.exists() else None
        if there is not None and says(there.about, about):
            log.info("%s is finished; going on with the rest", target.path)
            return there if target.processes.rank == 0 else None
        if target.processes.rank == 0:
            numbers = about["dimensions" if book is None else "levels"]
            of_place = encoder.dtype.itemsize * numbers + 1  # a byte says whether it is empty
            log.info(room_for(target.path, 2 * of_place * math.prod(encoder.shape)))  # as they are made, and coded
        said = require_memory(encoder)
        if said and target.processes.rank == 0:
            log.info("computing takes %s", said)
        with target.processes.first_alone(target.overwrite):
            codes = CodeTarget(target.path, about, book, overwrite=target.overwrite)
        mine = codes.pending(target.processes.share(len(codes.units)))
        work_through(mine, encoder.prefetch, encoder.read, codes.write, title="encode", show=progress)
    target.processes.wait()
    store = codes.finish() if target.processes.rank == 0 else None
    target.processes.wait()
    return store


def _record_of_codes(
    run: Run, source: Source, encoder: SliceEncoder, book: NDArray[Any] | None, options: Options
) -> dict[str, Any]:
    """What a store says of itself: all that decoding needs beside the run."""
    if book is None:
        kind = {"kind": "gaussian", "levels": 1, "dimensions": int(run.settings["autoencoder"]["ddconfig"]["z_channels"])}
    else:
        kind = {"kind": "codebook", **dict(zip(("levels", "codes", "dimensions"), book.shape, strict=True))}
    return {
        **run.record_of_outputs,
        **kind,
        "shape": list(encoder.shape),
        "inner": list(source.inner),
        "dtype": encoder.dtype.name,
        "output_dtype": source.dtype.name,
        "slice_voxel_um": source.voxel_um,
        "slice_translation_um": source.translation_um,
        "slices": source.places,
        "intensities": [intensity.as_json() for intensity in source.intensities],
        "normalisation": options.normalise,
        "lattice": encoder.lattice,
        "run_path": str(run.path.resolve()),
        "input": source.record,
        **_thick(source),
        **({"effort": options.effort} if options.effort else {}),
    }


def decode(
    codes: CodeStore | Path | str,
    run: Run | Path | str | None = None,
    *,
    grid: str = "isotropic",
    levels: int | None = None,
    options: Options | None = None,
    output: Output | Path | str | None = None,
    epoch: int | None = None,
    weights: str | None = None,
    engine: Engine | None = None,
    progress: bool = False,
) -> NDArray[Any] | None:
    """What codes stand for; other arguments as of :func:`enhance`.

    Args:
        codes: a store, or a folder that it was exported to.
        run: the run that made it; by default the folder that the store names.
        grid: ``isotropic``, the volume; ``raw``, the encoded slices as the 2-D decoder gives them back.
        levels: of a residual codebook, only so many, from the first; all by default.
        options: ``region`` (voxels of the grid), ``dtype``, ``tile``, ``batch``.
        epoch, weights: of the run; by default the store's (the epoch if no run is named).

    Raises:
        UserError: no such store, run or grid, the store has fewer levels, or the run's weights are not those of the codes.
    """
    if grid not in GRIDS:
        raise UserError(f"grid={grid} is unknown; choose one of {', '.join(GRIDS)}")
    store, output = codes if isinstance(codes, CodeStore) else CodeStore.open(codes), _output(output)
    store = store if levels is None else store.first_levels(levels)
    run = Run.of_store(store, run, epoch, engine, weights)
    job = decode_job(run, store, options or Options(), grid)
    if output is None:
        return compute(job, progress)
    refuse_inputs([output], run.path, (), store.path)
    write(job, output)
    return None


def decode_job(run: Run, store: CodeStore, options: Options, grid: str = "isotropic") -> Job:
    """Codes → isotropic volume, or the slices (``grid`` raw)."""
    about, raw = store.about, grid == "raw"
    options = replace(options, region=options.region and exchanged(options.region, about.get("thick", "z")))
    dtype = checked_dtype(options.dtype or about["output_dtype"])
    if raw and run.channels > 1:
        log.info("the raw grid of a two-channel run shows channel 0")
    field: Field = SliceField(run, store, dtype, options.batch) if raw else isotropic_field(run, store, dtype, options)
    voxel, translation = (v and triple(v) for v in (about["slice_voxel_um"], about["slice_translation_um"]))
    record = {"input": about["input"], "normalisation": about["normalisation"], "grid": grid}
    record |= {key: about[key] for key in ("slices", "thick") if key in about}  # stores of older versions do not know the first
    record |= {"levels": about["levels"]} if "of_levels" in about else {}
    return Job.of(run, field, voxel, translation, record, options)


def _told_apart(one: Given | Source | Run, other: Run | Path | str | Given | Source) -> tuple[Given | Source, Run | Path | str]:
    """The volume and the run, in whichever order they were given; a folder with settings is a run."""
    is_run = isinstance(one, Run) or (isinstance(one, (Path, str)) and (Path(one) / "0.json").is_file())
    volume, run = (other, one) if is_run or not isinstance(other, (Run, Path, str)) else (one, other)
    if isinstance(volume, Run) or not isinstance(run, (Run, Path, str)):
        raise UserError(f"a volume and a run are needed, not a {type(one).__name__} and a {type(other).__name__}")
    return volume, run


def _loaded(run: Run | Path | str, epoch: int | None, engine: Engine | None, weights: str | None) -> Run:
    return run if isinstance(run, Run) else Run.load(run, epoch, engine, weights)


def _source(run: Run, volume: Given | Source, options: Options) -> AbstractContextManager[Source]:
    """The source as a context; one that the caller has made is his to close."""
    return nullcontext(volume) if isinstance(volume, Source) else Source(run, volume, options)


def _output(output: Output | Path | str | None) -> Output | None:
    return output if output is None or isinstance(output, Output) else Output(Path(output))
