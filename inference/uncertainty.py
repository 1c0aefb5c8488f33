"""How sure a run is: the spread over passes with dropout, or over in-plane orientations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.encoding import SliceEncoder
from inference.fields import Array, Field
from inference.jobs import Job, Options, decoded_field, isotropic_field, slices_of
from inference.run import Run
from inference.slices import Slices
from utils.errors import UserError
from utils.volumes.volume import Box, Volume


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
    turning = replace(options, region=None, batch=1)  # boxes of the output are not those of a turned volume's batches
    for turn in range(passes):
        views = [TurnedVolume(volume, turn) for volume in volumes]
        other = Slices(views, slices.intensities, dsp=slices.dsp, dsp_how=run.settings["dsp_how"], usp=run.settings["usp"])
        fields.append(TurnedField(isotropic_field(run, other, turning, single), turn))
    return job.of(SpreadField(fields), "standard deviation over in-plane orientations")


class SpreadField(Field):
    """The standard deviation over several passes, float32 grey values.

    Args:
        passes: fields of one shape, each computed in another way, with float32 grey values.
    """

    def __init__(self, passes: Sequence[Field]) -> None:
        super().__init__(passes[0].intensities, np.dtype(np.float32))
        self.passes = tuple(passes)
        self.shape, self.channels, self.unit = passes[0].shape, passes[0].channels, passes[0].unit

    def lattice(self) -> dict[str, Any]:
        """That of every pass."""
        return {**self.passes[0].lattice(), "passes": len(self.passes)}

    def prefetch(self, box: Box) -> None:
        """Lets every pass read ahead."""
        for field in self.passes:
            field.prefetch(box)

    def render(self, box: Box) -> Array:
        """Welford's running variance over the passes."""
        mean = np.zeros((self.channels, *(b.stop - b.start for b in box)), np.float32)
        squares = np.zeros_like(mean)
        for number, field in enumerate(self.passes, 1):
            values = field.render(box)
            delta = values - mean
            mean += delta / number
            squares += delta * (values - mean)
        return np.sqrt(squares / max(1, len(self.passes) - 1))


class TurnedField(Field):
    """A field of a volume that was mirrored or transposed in-plane, turned back.

    Args:
        field: of the turned volume.
        turn: number of the orientation, 0 to 7, as in :func:`turned`.
    """

    def __init__(self, field: Field, turn: int) -> None:
        super().__init__(field.intensities, field.dtype)
        self.field, self.turn, self.channels = field, turn, field.channels
        z, y, x = field.shape
        self.shape = (z, x, y) if turn & 4 else (z, y, x)
        self.unit = (field.unit[0], field.unit[2], field.unit[1]) if turn & 4 else field.unit

    def lattice(self) -> dict[str, Any]:
        """That of the turned field."""
        return self.field.lattice()

    def prefetch(self, box: Box) -> None:
        """Lets the turned field read ahead."""
        self.field.prefetch(turned_box(box, self.shape, self.turn))

    def render(self, box: Box) -> Array:
        """The same voxels, turned back."""
        return turned(self.field.render(turned_box(box, self.shape, self.turn)), self.turn, back=True)


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


def turned(values: Array, turn: int, *, back: bool = False) -> Array:
    """One of the eight in-plane orientations of (..., Y, X): bit 0 mirrors rows, bit 1 columns, then bit 2 transposes."""
    steps: list[Callable[[Array], Array]] = []
    if turn & 1:
        steps.append(lambda v: v[..., ::-1, :])
    if turn & 2:
        steps.append(lambda v: v[..., ::-1])
    if turn & 4:
        steps.append(lambda v: v.swapaxes(-1, -2))
    for step in reversed(steps) if back else steps:
        values = step(values)
    return np.ascontiguousarray(values)


def turned_box(box: Box, shape: Sequence[int], turn: int) -> Box:
    """Where the box of a volume (Z, Y, X) lies after the volume was turned."""
    z, y, x = box
    if turn & 1:
        y = slice(shape[1] - y.stop, shape[1] - y.start)
    if turn & 2:
        x = slice(shape[2] - x.stop, shape[2] - x.start)
    return (z, x, y) if turn & 4 else (z, y, x)
