"""What speaks for an output and against it: its projection against the input, pictures (seams: volumes/seams.py)."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from inference.source import Source
from utils.axes import to_memory
from utils.boxes import middle
from utils.pictures import orthogonal_planes, save_png
from volumes.volume import Volume

log = logging.getLogger("isoscope")

_PICTURE = 256  # voxels of the output's middle that a picture shows


def projected(volume: NDArray[Any], factor: int, how: str, centre: float, taps: Sequence[float] = (1.0,)) -> NDArray[np.float32]:
    """Isotropic planes projected back onto n slices, as the training did.

    Args:
        volume: the planes (n·factor, Y, X), and at either end those that the profile needs beside them.
        factor: planes per slice.
        how: as ``l1how``. ``dsp`` takes the plane on which slices are centred, or what lies between two.
        centre: that plane (fractional) of slice 0.
        taps: the profile along z by which the planes are blurred first.
    """
    planes, reach = volume.astype(np.float32), len(taps) // 2
    if reach:
        planes = correlate1d(planes, taps, axis=0)[reach:-reach]
    slabs = planes.reshape(-1, factor, *planes.shape[1:])
    if how == "dsp":
        below, above = math.floor(centre), math.ceil(centre)
        return slabs[:, below] if below == above else slabs[:, below : above + 1].mean(axis=1)
    if how == "maxmin":
        return (slabs.max(axis=1) + slabs.min(axis=1)) / 2
    return getattr(slabs, how)(axis=1)


def save_preview(path: Path, source: Source, outputs: Sequence[Volume], factor: int, voxel_um: Any, title: str) -> None:
    """XY, XZ and YZ planes of input and output through the output's middle."""
    depth, height, width = outputs[0].shape
    k = middle(source.count, max(1, _PICTURE // factor))
    rows, columns = middle(height, _PICTURE), middle(width, _PICTURE)
    planes = slice(k[0] * factor, k[1] * factor)
    result = np.stack([v[planes, slice(*rows), slice(*columns)] for v in outputs])
    shown = {"input (every slice repeated)": source.grey(slice(*k), slice(*rows), slice(*columns)), "isotropic output": result}
    panels = {name: to_memory(values) for name, values in shown.items()}
    title = f"{title}, planes {planes.start} to {min(planes.stop, depth) - 1}"
    save_png(path, orthogonal_planes(panels, title=title, voxel_um=voxel_um))
    log.info("picture: %s", path)
