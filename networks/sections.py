"""How a microscope makes sections of an isotropic specimen, applied to the rows of an image.

The axial direction of a volume is badly sampled: the microscope's profile blurs it, sections lie several pixels apart, and each
section is one plane or the mean of several. A slice lacks nothing of this in-plane, so that the same done to its rows gives an
image whose truth is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from networks.noise import NOISELESS, Noise
from networks.views import spread_pixels
from utils.errors import UserError

SAMPLINGS = ("pick", "mean")
_KEYS = -0.5  # Keys 1981, eq. 4: the cubic convolution that is exact for second-order polynomials


@dataclass(frozen=True)
class Sections:
    """The axial operator: profile, distance of the sections, what a section sees, noise.

    Attributes:
        factor: distance of two sections in pixels, 1 to 16, a fraction where voxel sizes ask for it.
        sampling: ``pick`` sees plane ``planes // 2`` of its slab, ``mean`` the mean of all.
        profile: taps of the axial point-spread function on the pixel grid, an odd number with sum 1.
        noise: of a slice; what blurring and averaging remove of it is added again, since real sections have it.
    """

    factor: float
    sampling: str = "pick"
    profile: tuple[float, ...] = (1.0,)
    noise: Noise = NOISELESS

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= 16:
            raise UserError(f"uprate={self.factor:g} must be between 1 and 16: pixels between two sections")
        if self.sampling not in SAMPLINGS:
            raise UserError(f"axial_sampling={self.sampling!r} must be one of {', '.join(SAMPLINGS)}")
        if self.factor == 1 and len(self.profile) == 1:
            raise UserError(
                "uprate=1 without a profile leaves nothing to restore; say how z is blurred with --axial_sigma or --axial_taps "
                "(prepare.py check estimates it)"
            )

    @property
    def planes(self) -> int:
        """Isotropic planes that are made of a section; ``factor`` rounded up."""
        return math.ceil(self.factor - 1e-6)

    @property
    def step(self) -> float:
        """Distance of two isotropic planes in pixels, at most 1."""
        return self.factor / self.planes

    @property
    def centre(self) -> float:
        """The place of section 0 among the planes of its slab, [0, planes)."""
        return self.planes // 2 if self.sampling == "pick" else (self.planes - 1) / 2

    @property
    def shows_planes(self) -> bool:
        """Whether a section is one of the isotropic planes, as it is."""
        return self.sampling == "pick" and len(self.profile) == 1

    def away(self, planes: Tensor) -> Tensor:
        """Distance of planes, numbered from the first slab on, from the nearest section, in half distances of two sections."""
        beyond = (planes - self.centre) % self.planes
        return torch.minimum(beyond, self.planes - beyond) * (2 / self.planes)

    @property
    def margin(self) -> int:
        """Rows at both ends of an image that the profile needs and that are lost."""
        reach = len(self.profile) // 2
        return math.ceil(reach / self.planes) * self.planes

    @property
    def noise_removed(self) -> float:
        """The share of a slice's noise variance that profile and averaging take away, 1 - Σw²."""
        seen = np.full(self.planes, 1 / self.planes) if self.sampling == "mean" else np.ones(1)
        return max(0.0, 1 - float(np.square(np.convolve(self.profile, seen)).sum()))

    def pair(self, images: Tensor, *, clean: bool = False) -> tuple[Tensor, Tensor]:
        """The rows of images as sections would show them, and as they should look.

        Args:
            images: (N, C, H, W), enough rows for one section without the margins.
            clean: the images lack the noise of slices; sections get all of it.

        Returns:
            Sections (N, C, n, W) and truth (N, C, n·planes, W), on the grid of the isotropic planes. Noise is drawn from torch's
            global generator.
        """
        truth, blurred = self.truth(images), images
        if self.margin:
            blurred = _convolved_rows(images, self.profile, self.margin)
        blurred = resampled_rows(blurred, self.step, truth.shape[2])
        sections = self._seen(blurred)
        lacking = 1.0 if clean else self.noise_removed
        if lacking and (self.noise.offset or self.noise.gain):
            deviation = (self.noise.variance(sections) * lacking).sqrt()
            sections = sections + deviation * torch.randn_like(sections)
        return sections, truth

    def truth(self, images: Tensor) -> Tensor:
        """The second of :meth:`pair` alone."""
        images = images[:, :, self.margin : images.shape[2] - self.margin]
        count = int(images.shape[2] / self.factor + 1e-6)
        if count < 1:
            raise ValueError(f"{images.shape[2]} rows without margins hold no section of {self.factor:g}")
        return resampled_rows(images, self.step, count * self.planes)

    def of_planes(self, planes: Tensor) -> Tensor:
        """What sections would show of isotropic planes, without noise: (N, C, n·planes, W) → (N, C, n - 2·lost, W).

        The profile needs :attr:`lost` sections at both ends.
        """
        return self._seen(_convolved_rows(planes, self.plane_taps, self.lost * self.planes) if self.lost else planes)

    @property
    def lost(self) -> int:
        """Sections at both ends of a stack of isotropic planes that the profile needs."""
        return math.ceil(len(self.plane_taps) // 2 / self.planes)

    @cached_property
    def plane_taps(self) -> tuple[float, ...]:
        """The profile on the grid of the isotropic planes."""
        reach = len(self.profile) // 2
        places = np.arange(-int(reach / self.step), int(reach / self.step) + 1) * self.step
        taps = np.interp(places, np.arange(-reach, reach + 1), self.profile)
        return tuple((taps / taps.sum()).tolist())

    def _seen(self, planes: Tensor) -> Tensor:
        slabs = planes.unflatten(2, (-1, self.planes))
        return slabs[:, :, :, self.planes // 2] if self.sampling == "pick" else slabs.mean(3)

    def interpolated(self, sections: Tensor) -> Tensor:
        """Sections (N, C, n, W) → planes (N, C, n·planes, W) by cubic convolution (Keys 1981), the ends repeated."""
        n, c = sections.shape[:2]
        padded = functional.pad(sections, (0, 0, 2, 2), mode="replicate").flatten(0, 1).unsqueeze(1)
        made = functional.conv2d(padded, self._weights.to(sections, non_blocking=True).view(self.planes, 1, 5, 1))
        return spread_pixels(made, self.planes, 1).unflatten(0, (n, c)).squeeze(2)

    @property  # not kept: a pass over shapes only would leave one without values behind
    def _weights(self) -> Tensor:
        """(planes, 5): what a plane takes of sections k - 2 … k + 2."""
        places = (torch.arange(self.planes, dtype=torch.float64) - self.centre) / self.planes
        return cubic_convolution(places[:, None] - torch.arange(-2, 3))


def _convolved_rows(images: Tensor, taps: Sequence[float], margin: int) -> Tensor:
    """Rows (N, C, H, W) convolved with taps, without ``margin`` rows at both ends, which is at least what the taps need."""
    surplus = margin - len(taps) // 2
    inner = images[:, :, surplus : images.shape[2] - surplus].flatten(0, 1).unsqueeze(1)
    made = functional.conv2d(inner, images.new_tensor(taps).view(1, 1, -1, 1))
    return made.squeeze(1).unflatten(0, images.shape[:2])


def cubic_convolution(distance: Tensor) -> Tensor:
    """The kernel of Keys 1981 (eq. 4, a = -1/2) at distances in samples."""
    d, a = distance.abs(), _KEYS
    inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
    outer = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return torch.where(d < 1, inner, torch.where(d < 2, outer, torch.zeros_like(d)))


def resampled_rows(images: Tensor, step: float, count: int) -> Tensor:
    """Rows at pixels (k + ½)·step - ½ by cubic convolution, ends repeated; (N, C, H, W) → (N, C, count, W)."""
    if step == 1:
        return images[:, :, :count]
    return rows_at(images, (torch.arange(count, dtype=torch.float64) + 0.5) * step - 0.5)


def rows_at(images: Tensor, places: Tensor) -> Tensor:
    """Rows at fractional pixels by cubic convolution, ends repeated; (N, C, H, W), (count,) float64 → (N, C, count, W)."""
    low = places.floor().long()
    made = torch.zeros(*images.shape[:2], len(places), images.shape[3], dtype=images.dtype, device=images.device)
    for tap in range(-1, 3):
        weight = cubic_convolution(places - low - tap).to(images, non_blocking=True).view(-1, 1)
        made += weight * images[:, :, (low + tap).clamp(0, images.shape[2] - 1).to(images.device, non_blocking=True)]
    return made


def gaussian_profile(sigma: float) -> tuple[float, ...]:
    """Taps of a Gaussian up to four standard deviations, sum 1; (1,) for sigma 0."""
    reach = math.ceil(4 * sigma)
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)] if reach else [1.0]
    return tuple(tap / sum(taps) for tap in taps)


def profile_of(sigma: float, taps: Sequence[float] | None) -> tuple[float, ...]:
    """The profile that settings name: measured taps (scaled to sum 1), else a Gaussian of ``sigma`` pixels.

    Raises:
        UserError: both are given, or the taps have no positive sum or are even in number.
    """
    if not taps:
        return gaussian_profile(sigma)
    if sigma:
        raise UserError(f"axial_sigma={sigma:g} and axial_taps are both given; leave one of them out")
    if len(taps) % 2 == 0 or sum(taps) <= 0:
        raise UserError(f"axial_taps={list(taps)} must be an odd number of taps with a positive sum, the middle one the centre")
    return tuple(tap / sum(taps) for tap in taps)
