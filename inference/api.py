"""The commands of infer.py for notebooks: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.codes import SUFFIX, CodeStore, CodeTarget
from inference.decoding import Part
from inference.jobs import Job, Options, codebook_of, decode_job, encoder_of, enhance_job, loaded
from inference.processes import Processes
from inference.run import Engine, Run
from inference.tiling import share
from inference.work import work_through
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import ArrayVolume, Box, Triple, Volume, boxes, corner, moved

Source = NDArray[Any] | Volume | Path | str


def enhance(
    run: Run | Path | str,
    volume: Source | Sequence[Source],
    options: Options | None = None,
    *,
    epoch: int | None = None,
    engine: Engine | None = None,
    progress: bool = False,
) -> NDArray[Any]:
    """An anisotropic volume made isotropic.

    Args:
        run: a training's folder, or a Run that is open.
        volume: (Z, Y, X), or (2, Z, Y, X) for a run of two channels; an array, a Volume, a path, or one of these per channel.
        options: how; see :class:`inference.jobs.Options`.
        epoch: completed epochs of the weights; the latest by default.
        engine: device and precision.
        progress: show a bar.

    Returns:
        (Z·factor, Y, X), or (2, Z·factor, Y, X), of the input's dtype unless the options say otherwise.

    Raises:
        UserError: the run or the volume is not usable; the message says why.
    """
    opened = loaded(run, epoch, engine)
    return _computed(enhance_job(opened, as_volumes(volume), options or Options()), progress)


def encode(
    run: Run | Path | str,
    volume: Source | Sequence[Source],
    output: Path | str,
    options: Options | None = None,
    *,
    epoch: int | None = None,
    engine: Engine | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> CodeStore:
    """A volume's codes, in a store on disc; arguments as :func:`enhance`, and the store's path."""
    opened = loaded(run, epoch, engine)
    target, encoder = code_target(opened, as_volumes(volume), Path(output), options or Options(), overwrite)
    write_codes(target, encoder, Processes(), progress)
    return target.finish()


def decode(
    codes: CodeStore | Path | str,
    run: Run | Path | str | None = None,
    *,
    grid: str = "isotropic",
    options: Options | None = None,
    epoch: int | None = None,
    engine: Engine | None = None,
    progress: bool = False,
) -> NDArray[Any]:
    """What codes stand for.

    Args:
        codes: a store.
        run: the run that made it; by default the folder that the store names.
        grid: ``isotropic``, the volume; ``raw``, the encoded slices as the 2-D decoder gives them back.
        options: ``region`` (voxels of the grid), ``dtype``, ``tile``.
        epoch: of the run, if one is named; else the store's.
        engine: device and precision.
        progress: show a bar.
    """
    store = codes if isinstance(codes, CodeStore) else CodeStore.open(codes)
    opened = loaded(run or store.about["run_path"], epoch if run is not None else store.about["epoch"], engine)
    return _computed(decode_job(opened, store, grid, options or Options()), progress)


def as_volumes(source: Source | Sequence[Source], voxel_um: Triple | None = None) -> list[Volume]:
    """One volume per channel."""
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    sources: Sequence[Any] = source if isinstance(source, (list, tuple)) else [source]
    volumes: list[Volume] = []
    for one in sources:
        if isinstance(one, np.ndarray):
            volumes.append(ArrayVolume(one, voxel_um=voxel_um))
        else:
            volumes.append(one if isinstance(one, Volume) else open_volume(one))
    return volumes


def code_target(run: Run, volumes: Sequence[Volume], output: Path, options: Options, overwrite: bool) -> tuple[CodeTarget, Any]:
    """An unfinished code store and the encoder that fills it.

    Raises:
        UserError: the store's name does not end in .zarr, or as for :func:`encode`.
    """
    if output.suffix != ".zarr":
        raise UserError(f"{output}: codes are written as {SUFFIX}; choose that ending")
    encoder, about, place = encoder_of(run, volumes, options)
    return CodeTarget(output, about, place, codebook_of(run), overwrite=overwrite), encoder


def write_codes(target: CodeTarget, encoder: Any, processes: Processes, progress: bool) -> int:
    """This process's share of a code store; returns the codes computed."""
    own = {corner(target.units[n]) for n in share(len(target.units), processes.rank, processes.world)}
    mine = [box for box in target.pending() if corner(box) in own]

    def spans(box: Box) -> list[tuple[int, int]]:
        return [(part.start, part.stop) for part in box]

    return work_through(
        mine,
        prefetch=lambda box: encoder.prefetch(*spans(box)),
        begin=lambda box: encoder.read(*spans(box)),
        write=target.write,
        title="encode",
        show=progress,
    )


def _computed(job: Job, progress: bool) -> NDArray[Any]:
    field = job.field
    out = np.empty((field.channels, *job.shape), field.dtype)

    def put(box: Box, begun: Part) -> None:
        out[(slice(None), *box)] = begun(moved(box, job.origin))

    work_through(
        boxes(job.shape, field.unit),
        prefetch=lambda box: field.prefetch(moved(box, job.origin)),
        begin=lambda box: field.begin(moved(box, job.origin)),
        write=put,
        title="enhance",
        show=progress,
    )
    return out if job.channel_names else out[0]
