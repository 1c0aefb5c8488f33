"""How noisy slices are, measured on them: variance as a line over grey value, as light's and a camera's noise together have."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional

_PATCH = 12  # pixels along a side, within which grey value and noise count as constant
_BINS = 12
_QUIET = 0.2  # of the patches of a grey value, the quietest fifth has noise alone and no texture


@dataclass(frozen=True)
class Noise:
    """Variance ``offset + gain·(grey - dark)`` of Gaussian noise, in units of the images.

    Attributes:
        offset: variance at ``dark``, of what does not depend on light.
        gain: variance per grey value above it, of photons.
        dark: smallest grey value measured.
    """

    offset: float = 0.0
    gain: float = 0.0
    dark: float = 0.0

    def variance(self, images: Tensor) -> Tensor:
        """Of images of any shape."""
        return self.offset + self.gain * (images - self.dark).clamp_min(0)


NOISELESS = Noise()


def measured_noise(images: Tensor) -> Noise:
    """The noise of images (N, H, W).

    The second difference along both axes (Immerkær 1996) removes what is smooth; the quietest patches of every grey value remove
    what is texture; a line with no negative coefficient is laid through them, weighed so that relative errors count.

    Raises:
        ValueError: the images are smaller than a patch.
    """
    if min(images.shape[1:]) < _PATCH + 2:
        raise ValueError(f"images of {tuple(images.shape[1:])} hold no patch of {_PATCH} pixels")
    stack = images.detach().cpu().double().unsqueeze(1)
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=torch.float64).view(1, 1, 3, 3) / 6
    noise = functional.avg_pool2d(functional.conv2d(stack, mask).square(), _PATCH)
    grey = functional.avg_pool2d(stack[:, :, 1:-1, 1:-1], _PATCH)
    bins = [one for one in np.array_split(grey.flatten().argsort().numpy(), _BINS) if len(one)]
    centres = np.array([grey.flatten().numpy()[one].mean() for one in bins])
    quiet = np.array([np.quantile(noise.flatten().numpy()[one], _QUIET) for one in bins])
    weight = 1 / np.maximum(quiet, max(quiet.max(), 1e-12) * 1e-3)
    line = np.stack([np.ones_like(centres), centres - centres.min()], axis=1)
    (offset, gain), _ = nnls(line * weight[:, None], quiet * weight)
    return Noise(float(offset), float(gain), float(centres.min()))
