"""How sure a run is: the spread over passes with dropout, or over in-plane orientations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.encoding import SliceEncoder
from inference.fields import Field
from inference.jobs import Job, Options, decoded_field, isotropic_field, slices_of
from inference.passes import SpreadField, TurnedField, turned
from inference.run import Run
from inference.slices import Slices
from utils.errors import UserError
from utils.volumes.volume import Volume


def spread_job(run: Run, volumes: Sequence[Volume], options: Options, job: Job, passes: int) -> Job:
    """The standard deviation over passes: with dropout where the run has it, else over in-plane orientations.

    Raises:
        UserError: fewer than two passes, or more orientations than there are.
    """
    if passes < 2:
        raise UserError(f"--uncertainty {passes}: at least 2 passes have a standard deviation")
    slices = slices_of(run, volumes, options)
    single = np.dtype(np.float32)
    if run.dropout and not run.restores:
        encoder = SliceEncoder(run, slices, batch=options.batch, skip_empty=options.skip_empty)
        fields: list[Field] = [
            decoded_field(run, encoder, slices.inner, slices.intensities, options, single, seed) for seed in range(passes)
        ]
        return job.of(SpreadField(fields), "standard deviation over passes with dropout")
    if passes > 8:
        raise UserError(f"--uncertainty {passes}: without dropout in the run there are 8 in-plane orientations")
    fields = []
    for turn in range(passes):
        views = [TurnedVolume(volume, turn) for volume in volumes]
        other = Slices(views, slices.intensities, dsp=slices.dsp, dsp_how=run.settings["dsp_how"], usp=run.settings["usp"])
        fields.append(TurnedField(isotropic_field(run, other, options, single), turn))
    return job.of(SpreadField(fields), "standard deviation over in-plane orientations")


class TurnedVolume(Volume):
    """A volume mirrored or transposed in-plane, read lazily."""

    def __init__(self, volume: Volume, turn: int) -> None:
        self.volume, self.turn = volume, turn
        self.path, self.dtype, self.voxel_um, self.translation_um = Path(volume.path), volume.dtype, volume.voxel_um, None
        z, y, x = volume.shape
        self.shape = (z, x, y) if turn & 4 else (z, y, x)

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        if self.turn & 4:
            rows, columns = columns, rows
        _, height, width = self.volume.shape
        if self.turn & 1:
            rows = slice(height - rows.stop, height - rows.start)
        if self.turn & 2:
            columns = slice(width - columns.stop, width - columns.start)
        return turned(self.volume[planes.start : planes.stop : planes.step, rows, columns], self.turn)
