"""What speaks for an output and against it: its projection against the input, seams at tile borders, pictures."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from inference.source import Source
from utils.axes import to_memory
from utils.geometry import LATENT_STRIDE
from utils.pictures import orthogonal_planes, save_png
from volumes.volume import Volume

log = logging.getLogger("isoscope")

_PICTURE = 256  # voxels of the output's middle that a picture shows
_PLANES, _WINDOW = 8, 2048  # planes in which seams are measured, and voxels along each side of them


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


def seam(volume: Volume, attributes: Mapping[str, Any]) -> dict[str, float]:
    """How much stronger grey values change across tile borders than elsewhere in-plane, in the middle of an output.

    Args:
        volume: the output, finished or not.
        attributes: what is recorded about it: the lattice, and the region where it is a part.

    Returns:
        For ``encoding`` and ``decoding`` tiles the mean absolute difference of neighbouring rows (and columns) across borders,
        over that across the other rows (columns) at multiples of 8, where the grid of the codes may show as well; 1 is seamless.
        Nothing for tiles that have no border here.
    """
    origin = [start for start, _ in attributes.get("region", [[0, 0]] * 3)][1:]
    windows = [_middle(size, _WINDOW) for size in volume.shape[1:]]
    changes: list[Any] = [0.0, 0.0]
    for z in np.unique(np.linspace(0, volume.shape[0] - 1, _PLANES).astype(int)):
        plane = volume[int(z) : int(z) + 1, slice(*windows[0]), slice(*windows[1])][0].astype(np.float32)
        for axis in (0, 1):
            changes[axis] = changes[axis] + np.abs(np.diff(plane, axis=axis)).mean(axis=1 - axis)
    lattice = attributes.get("lattice", {})
    encoding, decoding = lattice.get("encoding"), lattice.get("decoding", {})
    sides = {}
    if encoding is not None:  # older ones have one number for rows and columns
        sides["encoding"] = encoding.get("stride", LATENT_STRIDE) * np.broadcast_to(encoding["core"], 2)
    if "core" in decoding:
        sides["decoding"] = (LATENT_STRIDE if "halo" in decoding else 1) * np.array(decoding["core"][1:])
    places = [np.arange(len(c)) + start + w[0] + 1 for c, start, w in zip(changes, origin, windows, strict=True)]
    change, place = np.concatenate(changes), np.concatenate(places)
    on_grid, found = place % LATENT_STRIDE == 0, {}
    for name, side in sides.items():
        at_border = np.concatenate([along % core == 0 for along, core in zip(places, side, strict=True)])
        border, other = change[on_grid & at_border], change[on_grid & ~at_border]
        if border.size and other.size and other.mean() > 0:
            found[name] = float(border.mean() / other.mean())
    return found


def said_of_seams(seams: Mapping[str, float]) -> Iterator[str]:
    """One line for each kind of tiles."""
    for name, value in seams.items():
        yield f"seams of {name} tiles: grey values change {value:.3g} times as much across their borders as elsewhere"


def said_of_place(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Where the planes of an output lie among those of its input; nothing for outputs of versions that did not record it."""
    if "place" in attributes:
        (z, y, x), (step, *_) = attributes["place"]["origin"], attributes["place"]["step"]
        yield f"plane k lies at plane {z:g} + k·{step:g} of the input, row and column 0 at {y:g}, {x:g}"


def save_preview(path: Path, source: Source, outputs: Sequence[Volume], factor: int, voxel_um: Any, title: str) -> None:
    """XY, XZ and YZ planes of input and output through the output's middle."""
    depth, height, width = outputs[0].shape
    k = _middle(source.count, max(1, _PICTURE // factor))
    rows, columns = _middle(height, _PICTURE), _middle(width, _PICTURE)
    planes = slice(k[0] * factor, k[1] * factor)
    result = np.stack([v[planes, slice(*rows), slice(*columns)] for v in outputs])
    shown = {"input (every slice repeated)": source.grey(slice(*k), slice(*rows), slice(*columns)), "isotropic output": result}
    panels = {name: to_memory(values) for name, values in shown.items()}
    title = f"{title}, planes {planes.start} to {min(planes.stop, depth) - 1}"
    save_png(path, orthogonal_planes(panels, title=title, voxel_um=voxel_um))
    log.info("picture: %s", path)


def _middle(size: int, wanted: int) -> tuple[int, int]:
    start = max(0, (size - wanted) // 2)
    return start, min(size, start + wanted)
