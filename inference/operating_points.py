"""What a run makes of one volume at every rate that its code store allows: files for a rate-distortion comparison."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codes.store import level_names
from inference.api import decode, encode
from inference.options import Options
from inference.run import Run
from inference.source import Source
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import Volume
from writing.outputs import Output


class Decoded(NamedTuple):
    """A decoded volume on disc; its plane k lies at plane ``first + k * step`` of the encoded input."""

    path: Path
    first: float
    step: float


class OperatingPoint(NamedTuple):
    """One rate of a code store: bytes on disc without the levels that were not decoded, and what the others decode to."""

    bytes: int
    slices: Decoded  # of the 2-D decoder (``decode --grid raw``)
    isotropic: Decoded | None  # where it is asked for
    levels: int  # that were decoded, 1 for a codebook that is not residual


class KeptPlanes(Volume):
    """The planes of an input that a run encodes, before any interpolation: every dsp-th one, or rounded means of dsp.

    Attributes:
        first, step: plane k of these lies at plane ``first + k * step`` of the input.

    Raises:
        UserError: the run reads two channels, which no codec of single images is a match for.
    """

    def __init__(self, run: Run, path: Path, options: Options, channel: int | None = None) -> None:
        if run.channels > 1:
            raise UserError(
                f"{run.name} encodes two channels at once; compress compares the codes of one channel with other codecs"
            )
        volume = open_volume(path, channel=channel)
        self.source = Source(run, volume, options)
        self.path, self.dtype = volume.path, volume.dtype
        self.shape = (self.source.kept, *self.source.inner)
        self.first, self.step = self.source.first_kept, float(self.source.dsp)

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        kept = slice(planes.start, planes[-1] + 1)
        values = self.source.kept_planes(self.source.volumes[0], kept, (rows, columns))[:: planes.step]
        return values if values.dtype == self.dtype else np.rint(values).astype(self.dtype)


def operating_points(
    run: Run,
    kept: KeptPlanes,
    options: Options,
    store: Path,
    folder: Path,
    *,
    isotropic: bool = True,
    overwrite: bool = False,
) -> Iterator[OperatingPoint]:
    """Encodes a volume and decodes it from the first level, the first two, … of the store.

    Args:
        kept: of the input, one channel.
        store: where the codes are written; they stay there.
        folder: for the decoded volumes. They are as large as the input and the isotropic volume, uncompressed; each is deleted
            when the next point is asked for.
        isotropic: decode the volume, too, not only the slices.
        overwrite: replace an existing store.

    Raises:
        UserError: the run makes no codes, or no volumes that are asked for, or does not fit the volume.
    """
    if isotropic:
        run.require_volume_decoder()
    with kept.source as source:
        whole = encode(source, run, store, options, overwrite=overwrite, progress=True)
    assert whole is not None
    whole = replace(whole, about={**whole.about, "thick": "z"})  # what is decoded here is compared as the run sees it
    levels, spacing = whole.about["levels"], source.spacing / run.factor
    places = {"raw": (source.first, source.spacing)}
    if isotropic:
        places["isotropic"] = (source.first - run.centre * spacing, spacing)
    for count in range(1, levels + 1):
        files = {grid: Decoded(folder / f"{grid}_{count}.ome.tif", *place) for grid, place in places.items()}
        for grid, file in files.items():
            output = Output(file.path, compression="none")
            decode(whole.first_levels(count), run, grid=grid, options=replace(options, region=None), output=output)
        size = whole.bytes_of("") - sum(map(whole.bytes_of, level_names(levels)[count:]))
        yield OperatingPoint(size, files["raw"], files.get("isotropic"), count)
        for file in files.values():
            file.path.unlink()
