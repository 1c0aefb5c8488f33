"""What speaks for an output and against it: its projection against the input, seams at tile borders, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.run import Run
from inference.slices import Slices
from utils.geometry import LATENT_STRIDE
from utils.pictures import orthogonal_planes, save_png
from utils.runs import write_json
from utils.volumes.volume import Box, Volume

_PICTURE = 256  # voxels of the output's middle that a picture shows
_PLANES = 8  # planes in which seams are measured


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
        window = self.slices.read((k.start, k.stop), (rows.start, rows.stop), (columns.start, columns.stop))
        result = []
        for channel, output in enumerate(self.outputs):
            planes = output[k.start * self.factor : k.stop * self.factor, rows, columns]
            difference = projected(planes, self.factor, self.how) - grey(self.slices, window, channel)
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


def grey(slices: Slices, window: NDArray[np.float32], channel: int) -> NDArray[np.float32]:
    """A channel of a window that the network reads, in grey values again."""
    return slices.intensities[channel].to_grey(torch.from_numpy(window[channel])).numpy()


def grey_range(slices: Slices, channel: int) -> float:
    """Grey values between the ends of the network's range."""
    low, high = slices.intensities[channel].to_grey(torch.tensor([slices.intensities[channel].floor, 1.0])).tolist()
    return high - low


def _errors(rmse: float, peak: float) -> dict[str, float | None]:
    return {"rmse": rmse, "psnr_db": 20 * math.log10(peak / rmse) if rmse > 0 and peak > 0 else None}


def seam(volume: Volume, attributes: Mapping[str, Any]) -> dict[str, float] | None:
    """How much stronger grey values change across tile borders than elsewhere in-plane, in the middle of a finished output.

    Returns:
        For ``encoding`` and ``decoding`` tiles the mean absolute difference of neighbouring rows (and columns) across borders,
        over that across the other rows (columns) at multiples of 8; 1 is seamless. None where there are no borders.
    """
    offset = [start for start, _ in attributes.get("region", [[0, 0]] * 3)][1:]
    found = {}
    planes = np.unique(np.linspace(0, volume.shape[0] - 1, _PLANES).astype(int))
    values = np.stack([volume[int(z) : int(z) + 1][0].astype(np.float32) for z in planes])
    for name, core in _cores(attributes.get("lattice", {})).items():
        borders, others = [], []
        for axis, start in zip((1, 2), offset, strict=True):
            change = np.abs(np.diff(values, axis=axis)).mean(axis=(0, 3 - axis))
            place = np.arange(1, values.shape[axis]) + start
            on_grid = place % LATENT_STRIDE == 0
            borders.append(change[on_grid & (place % core == 0)])
            others.append(change[on_grid & (place % core != 0)])
        border, other = np.concatenate(borders), np.concatenate(others)
        if border.size and other.size and other.mean() > 0:
            found[name] = float(border.mean() / other.mean())
    return found or None


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
    window = slices.read(k, rows, columns)
    source = np.stack([grey(slices, window, channel) for channel in range(len(window))])
    panels = {"input (every slice repeated)": np.moveaxis(source, 1, -1), "isotropic output": np.moveaxis(result, 1, -1)}
    title = f"{title}, planes {planes.start} to {min(planes.stop, depth) - 1}"
    save_png(path, orthogonal_planes(panels, title=title, voxel_um=voxel_um))


def _middle(size: int, wanted: int) -> tuple[int, int]:
    start = max(0, (size - wanted) // 2)
    return start, min(size, start + wanted)
