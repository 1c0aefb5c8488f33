"""What a run makes of one volume at every rate that its code store allows: files for a rate-distortion comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.api import encode
from inference.codes import CodeStore, level_names
from inference.commands import Extras, decode
from inference.encoding import Packed
from inference.jobs import Options, slices_of
from inference.processes import Processes
from inference.run import Run
from inference.source import Slices
from utils.errors import UserError
from volumes.volume import Span, Volume


@dataclass(frozen=True)
class Decoded:
    """A decoded volume on disc; its plane k lies at plane ``first + k * step`` of the encoded input."""

    path: Path
    first: float
    step: float


@dataclass(frozen=True)
class OperatingPoint:
    """One rate of a code store.

    Attributes:
        levels: levels of a residual codebook that were decoded; 1 for a plain one.
        of_levels: levels that the store has.
        bytes: on disc, without the levels that were not decoded; everything else of the store counts.
        slices: the 2-D decoder's slices (``decode --grid raw``).
        isotropic: the volume (``decode``).
    """

    levels: int
    of_levels: int
    bytes: int
    slices: Decoded
    isotropic: Decoded


class KeptPlanes(Volume):
    """The planes of an input that a run encodes, before any interpolation: every dsp-th one, or rounded means of dsp.

    Attributes:
        first, step: plane k of these lies at plane ``first + k * step`` of the input.
    """

    def __init__(self, slices: Slices) -> None:
        source = slices.volumes[0]
        self._slices = slices
        self.path, self.dtype = source.path, source.dtype
        self.shape = (slices.kept, *slices.inner)
        self.first = (slices.dsp - 1) / 2 if slices.mean else 0.0
        self.step = float(slices.dsp)

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        span = (planes.start, planes[-1] + 1)
        values = self._slices.kept_planes(self._slices.volumes[0], span, (rows, columns))[:: planes.step]
        return values if values.dtype == self.dtype else np.rint(values).astype(self.dtype)


class FirstLevels(CodeStore):
    """The store of a residual codebook as if it ended after some of its levels."""

    def read(self, k: Span, y: Span, x: Span) -> Packed:
        """As :meth:`CodeStore.read`, always with an axis of levels, which a residual codebook needs."""
        packed = super().read(k, y, x)
        return packed if self.about["levels"] > 1 else packed._replace(codes=packed.codes[..., None])


def kept_planes(run: Run, volume: Volume, options: Options) -> KeptPlanes:
    """What the run encodes of a volume.

    Raises:
        UserError: the run reads two channels, which no codec of single images is a match for.
    """
    if run.channels > 1:
        raise UserError(f"{run.name} encodes two channels at once; compress compares the codes of one channel with other codecs")
    return KeptPlanes(slices_of(run, [volume], options))


def operating_points(
    run: Run, volume: Volume, options: Options, store: Path, folder: Path, *, overwrite: bool = False
) -> Iterator[OperatingPoint]:
    """Encodes a volume and decodes it from the first level, the first two, … of the store.

    Args:
        run: the run.
        volume: the input, one channel.
        options: how the run is applied.
        store: where the codes are written; they stay there.
        folder: for the decoded volumes. They are as large as the input and the isotropic volume, uncompressed; each is deleted
            when the next point is asked for.
        overwrite: replace an existing store.

    Raises:
        UserError: the run makes no codes, or does not fit the volume.
    """
    whole = encode(run, volume, store, options, overwrite=overwrite, progress=True)
    levels = whole.about["levels"]
    slices = slices_of(run, [volume], options)
    spacing = float(slices.dsp / slices.usp)
    centre = run.geometry.plane_of_slice(0, run.settings["l1how"])
    for count in range(1, levels + 1):
        part = whole if count == levels else FirstLevels(whole.path, {**whole.about, "levels": count}, whole.shape)
        names = level_names(levels)[count:]
        size = sum(file.stat().st_size for file in whole.path.rglob("*") if file.is_file()) - sum(map(whole.bytes_of, names))
        files = []
        for grid in ("raw", "isotropic"):
            path = folder / f"{grid}_{count}.ome.tif"
            decode(run, part, path, grid, replace(options, region=None), Extras(compression="none"), Processes())
            files.append(path)
        factor = run.geometry.factor
        yield OperatingPoint(
            count,
            levels,
            size,
            Decoded(files[0], slices.first_plane, spacing),
            Decoded(files[1], slices.first_plane - centre * spacing / factor, spacing / factor),
        )
        for path in files:
            path.unlink()
