"""What speaks for an output and against it: its projection against the input, seams at tile borders, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.run import Run
from inference.source import Slices
from utils.files import write_json
from utils.geometry import LATENT_STRIDE
from utils.pictures import orthogonal_planes, save_png
from volumes.volume import Box, Volume

_PICTURE = 256  # voxels of the output's middle that a picture shows
_PLANES, _WINDOW = 8, 2048  # planes in which seams are measured, and voxels along each side of them


def projected(volume: NDArray[Any], factor: int, how: str) -> NDArray[np.float32]:
    """Isotropic planes (n·factor, Y, X) projected back onto n slices as the training did."""
    slabs = volume.astype(np.float32).reshape(-1, factor, *volume.shape[1:])
    if how == "dsp":
        return slabs[:, factor // 2]
    if how == "maxmin":
        return (slabs.max(axis=1) + slabs.min(axis=1)) / 2
    if how == "max":
        return slabs.max(axis=1)
    return slabs.min(axis=1) if how == "min" else slabs.mean(axis=1)


class Consistency:
    """The output projected onto the encoded slices, minus these, in grey values; with the errors of every slice.

    Args:
        run: the model.
        slices: of the input.
        outputs: the finished output, one volume per channel.
    """

    def __init__(self, run: Run, slices: Slices, outputs: Sequence[Volume]) -> None:
        self.slices, self.outputs = slices, tuple(outputs)
        self.factor = run.geometry.factor
        self.how = run.settings["l1how"]
        self.shape = (slices.count, *slices.inner)
        self.squares = np.zeros((len(self.outputs), slices.count))

    def prefetch(self, box: Box) -> None:
        """Nothing."""

    def render(self, box: Box) -> NDArray[np.float32]:
        """(C, n, y, x) float32; the squares of its values are added to the errors of the slices."""
        k, rows, columns = box
        given = self.slices.grey((k.start, k.stop), (rows.start, rows.stop), (columns.start, columns.stop))
        result = []
        for channel, output in enumerate(self.outputs):
            planes = output[k.start * self.factor : k.stop * self.factor, rows, columns]
            difference = projected(planes, self.factor, self.how) - given[channel]
            self.squares[channel, k] += np.square(difference, dtype=np.float64).sum(axis=(1, 2))
            result.append(difference)
        return np.stack(result)

    def write_errors(self, path: Path) -> dict[str, Any]:
        """RMSE and PSNR (peak: the range of grey values that the network knows) of every slice, as JSON."""
        voxels = self.slices.inner[0] * self.slices.inner[1]
        channels = []
        for channel, squares in enumerate(self.squares):
            peak = grey_range(self.slices, channel)
            rmse = np.sqrt(squares / voxels)
            whole = math.sqrt(squares.sum() / (voxels * len(squares)))
            channels.append({"peak": peak, **_errors(whole, peak), "slices": [_errors(float(r), peak) for r in rmse]})
        content = {"projection": self.how, "planes_per_slice": self.factor, "channels": channels}
        write_json(path, content)
        return content


def grey_range(slices: Slices, channel: int) -> float:
    """Grey values between the ends of the network's range."""
    low, high = slices.intensities[channel].to_grey(torch.tensor([slices.intensities[channel].floor, 1.0])).tolist()
    return high - low


def _errors(rmse: float, peak: float) -> dict[str, float | None]:
    return {"rmse": rmse, "psnr_db": 20 * math.log10(peak / rmse) if rmse > 0 and peak > 0 else None}


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
    found = {}
    for name, core in _cores(attributes.get("lattice", {})).items():
        border, other = _at_borders(changes, [o + w[0] + 1 for o, w in zip(origin, windows, strict=True)], core)
        if border.size and other.size and other.mean() > 0:
            found[name] = float(border.mean() / other.mean())
    return found


def said_of_seams(seams: Mapping[str, float]) -> Iterator[str]:
    """One line for each kind of tiles."""
    for name, value in seams.items():
        yield f"seams of {name} tiles: grey values change {value:.3g} times as much across their borders as elsewhere"


def _at_borders(changes: Sequence[NDArray[Any]], first: Sequence[int], core: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Changes at the borders of cores, and at the other multiples of 8; ``first`` is the place of the first of each axis."""
    places = [np.arange(len(change)) + start for change, start in zip(changes, first, strict=True)]
    on_grid = [place % LATENT_STRIDE == 0 for place in places]
    at_border = [place % core == 0 for place in places]
    border = [change[g & b] for change, g, b in zip(changes, on_grid, at_border, strict=True)]
    other = [change[g & ~b] for change, g, b in zip(changes, on_grid, at_border, strict=True)]
    return np.concatenate(border), np.concatenate(other)


def _cores(lattice: Mapping[str, Any]) -> dict[str, int]:
    """In-plane sides of the tiles' cores in voxels."""
    cores = {}
    if "encoding" in lattice:
        cores["encoding"] = LATENT_STRIDE * int(lattice["encoding"]["core"])
    decoding = lattice.get("decoding", {})
    if "halo" in decoding:
        cores["decoding"] = LATENT_STRIDE * int(decoding["core"][1])
    elif "core" in decoding:
        cores["decoding"] = int(decoding["core"][1])
    return cores


def save_preview(path: Path, slices: Slices, outputs: Sequence[Volume], factor: int, voxel_um: Any, title: str) -> None:
    """XY, XZ and YZ planes of input and output through the output's middle."""
    depth, height, width = outputs[0].shape
    k = _middle(slices.count, max(1, _PICTURE // factor))
    rows, columns = _middle(height, _PICTURE), _middle(width, _PICTURE)
    planes = slice(k[0] * factor, k[1] * factor)
    result = np.stack([v[planes, slice(*rows), slice(*columns)] for v in outputs])
    shown = {"input (every slice repeated)": slices.grey(k, rows, columns), "isotropic output": result}
    panels = {name: np.moveaxis(values, 1, -1) for name, values in shown.items()}
    title = f"{title}, planes {planes.start} to {min(planes.stop, depth) - 1}"
    save_png(path, orthogonal_planes(panels, title=title, voxel_um=voxel_um))


def _middle(size: int, wanted: int) -> tuple[int, int]:
    start = max(0, (size - wanted) // 2)
    return start, min(size, start + wanted)
