"""Image quality against the truth: voxel-wise sums over any number of blocks, structural and perceptual similarity of one box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from evaluation.sections import grey_limits
from utils.axes import planes_across
from utils.errors import UserError

if TYPE_CHECKING:
    from taming.lpips import PerceptualLoss  # torch is imported where it is used
    from utils.threads import Threads

PLANES = {"xy": 0, "xz": 1, "yz": 2}  # orientation -> the axis of (Z, Y, X) that its planes are stacked along
SSIM_SIDE = 11  # the Gaussian window: sigma 1.5, cut at 3.5 sigma
MS_SSIM_SIDE = 161  # five scales of that window
LPIPS_SIDE = 64
LPIPS_PLANES = 16  # per orientation at most


@dataclass(frozen=True)
class DataRange:
    """Intensities between which a metric counts, and why these."""

    low: float
    high: float
    rule: str

    @property
    def width(self) -> float:
        """The L of PSNR and SSIM."""
        return self.high - self.low


def choose_range(wanted: str, dtype: np.dtype[Any], name: str, low: float, high: float) -> DataRange:
    """The intensities that PSNR and SSIM refer to.

    Args:
        wanted: ``auto`` (uint8: 0–255; else the reference's own range), ``dtype``, ``reference``, or a positive number.
        dtype: of the reference.
        name: of the reference, for the report.
        low, high: smallest and largest value of the reference.

    Raises:
        UserError: the dtype has no range, or the number is none.
    """
    if wanted == "dtype" or (wanted == "auto" and dtype == np.uint8):
        limits = grey_limits(dtype)
        if limits is None:
            raise UserError(f"--data-range dtype: {dtype} has no natural range; use reference or a number")
        return DataRange(*limits, f"full range of {dtype}")
    if wanted in ("auto", "reference"):
        return DataRange(low, high, f"smallest to largest value of the {name}")
    try:
        width = float(wanted)
    except ValueError:
        width = math.nan
    if not (width > 0 and math.isfinite(width)):
        raise UserError(f"--data-range {wanted} must be auto, dtype, reference or a positive number")
    return DataRange(0.0, width, "given with --data-range")


def psnr(rmse: float, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite without any error."""
    return 20 * math.log10(data_range / rmse) if rmse > 0 else math.inf


@dataclass
class Moments:
    """Sums over a volume and its truth that are added block by block; float64 throughout."""

    voxels: int = 0
    total: float = 0.0
    squares: float = 0.0
    error: float = 0.0
    cross: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    gradient: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    steps: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def add(self, block: NDArray[np.float32], core: tuple[int, int, int], truth: NDArray[np.float32] | None = None) -> None:
        """Add a block of size ``core``, and the truth of it.

        It comes with up to one more plane, row and column behind it, so that no gradient between blocks is missed.
        """
        depth, rows, columns = core
        for z in range(depth):  # plane by plane, so that float64 copies stay in the processor's cache
            longer = block[z].astype(np.float64)
            plane = np.ascontiguousarray(longer[:rows, :columns])
            self.voxels += plane.size
            self.total += float(plane.sum())
            self.squares += float(np.vdot(plane, plane))
            self.low, self.high = min(self.low, float(plane.min())), max(self.high, float(plane.max()))
            steps = [np.diff(longer[:, :columns], axis=0), np.diff(longer[:rows], axis=1)]
            if z + 1 < len(block):
                steps.append(block[z + 1, :rows, :columns] - plane)
            for axis, step in zip((1, 2, 0), steps, strict=False):
                self.gradient[axis] += np.vdot(step, step)
                self.steps[axis] += step.size
            if truth is not None:
                known = truth[z].astype(np.float64)
                error = plane - known
                self.error += float(np.vdot(error, error))
                self.cross += float(np.vdot(plane, known))

    def fidelity(self, truth: Moments, data_range: float) -> dict[str, float]:
        """PSNR (dB), RMSE (grey values), NRMSE (RMSE over the truth's standard deviation), Pearson correlation."""
        n = self.voxels
        rmse = math.sqrt(self.error / n)
        own, spread = (math.sqrt(max(of.squares / n - (of.total / n) ** 2, 0.0)) for of in (self, truth))
        covariance = self.cross / n - self.total * truth.total / n**2
        return {
            "psnr_db": psnr(rmse, data_range),
            "rmse": rmse,
            "nrmse": rmse / spread if spread > 0 else math.nan,
            "pearson": covariance / (spread * own) if spread * own > 0 else math.nan,
        }

    def gradient_ratio(self, spacing: tuple[float, float, float]) -> float:
        """RMS gradient along z over the RMS of the gradients along y and x, per unit of length: 1 for an isotropic volume."""
        energy = self.gradient / np.maximum(self.steps, 1) / np.square(spacing)
        lateral = (energy[1] + energy[2]) / 2
        return float(np.sqrt(energy[0] / lateral)) if lateral > 0 else math.nan


def ssim(
    volume: NDArray[np.generic],
    truth: NDArray[np.generic],
    data_range: float,
    planes: slice = slice(None),
    which: Sequence[str] = ("3d", *PLANES),
) -> dict[str, float | None]:
    """Structural similarity in 3-D and as the mean over planes (Wang et al. 2004: Gaussian window, sigma 1.5, biased covariance).

    Args:
        volume, truth: (Z, Y, X).
        data_range: L, in grey values.
        planes: which planes of each orientation are averaged.
        which: keys of the result.

    Returns:
        Keys ``3d``, ``xy``, ``xz``, ``yz``; None where a side is shorter than the window of 11 voxels.
    """
    measure = partial(structural_similarity, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    result: dict[str, float | None] = dict.fromkeys(which)
    for name in which:
        axis = PLANES.get(name)
        sides = [size for k, size in enumerate(truth.shape) if k != axis]
        window = tuple(planes if k == axis else slice(None) for k in range(3))
        if min(sides) >= SSIM_SIDE and truth[window].size:
            result[name] = float(measure(truth[window], volume[window], channel_axis=axis))
    return result


def ms_ssim(
    volume: NDArray[np.generic], truth: NDArray[np.generic], data_range: float, planes: slice = slice(None)
) -> dict[str, float | None]:
    """Multi-scale structural similarity (Wang et al. 2003; pytorch-msssim), mean over the planes of each orientation.

    Returns:
        Keys ``xy``, ``xz``, ``yz``; None where a side of the planes is shorter than the 161 pixels that five scales need.
    """
    from pytorch_msssim import ms_ssim as plane_ms_ssim

    measure = partial(plane_ms_ssim, data_range=data_range, size_average=False)
    return _over_planes((volume, truth), dict.fromkeys(PLANES, planes), MS_SSIM_SIDE, 8, measure)


def lpips(
    volume: NDArray[np.generic], truth: NDArray[np.generic], data_range: DataRange, network: PerceptualLoss
) -> dict[str, float | None]:
    """Learned perceptual distance (Zhang et al. 2018, VGG-16) of evenly spaced planes of each orientation; 0 is identical.

    The ends of the range become -1 and 1, between which the network compares images.

    Returns:
        Keys ``xy``, ``xz``, ``yz``; None where a side of the planes is shorter than 64 pixels.
    """
    planes = {name: slice(None, None, -(-volume.shape[axis] // LPIPS_PLANES)) for name, axis in PLANES.items()}
    scaled = [(x.astype(np.float32) - data_range.low) * (2 / data_range.width) - 1 for x in (volume, truth)]
    return _over_planes(scaled, planes, LPIPS_SIDE, 1, lambda a, b: network(a, b).flatten())


@cache
def _threads() -> Threads:
    """Those of convolutions, which wait for each other where other programs compute."""
    from utils.threads import Threads

    return Threads()


def _over_planes(
    pair: Sequence[NDArray[Any]], planes: dict[str, slice], shortest: int, batch: int, measure: Callable[[Any, Any], Any]
) -> dict[str, float | None]:
    """Mean over planes of each orientation of what is measured of batches (N, 1, rows, columns); None where a side is shorter."""
    import torch

    result: dict[str, float | None] = {}
    for name, axis in PLANES.items():
        stacks = [np.ascontiguousarray(planes_across(volume, axis)[planes[name]])[:, None] for volume in pair]
        result[name] = None
        if len(stacks[0]) and min(stacks[0].shape[2:]) >= shortest:
            batches = zip(*(torch.from_numpy(x).split(batch) for x in stacks), strict=True)
            values = []
            with torch.inference_mode():
                for a, b in batches:
                    _threads().fit()
                    values.append(measure(a, b))
                result[name] = float(torch.cat(values).mean())
    return result
