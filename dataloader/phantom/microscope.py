"""The forward model of the phantom: how a microscope turns an isotropic specimen into slices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from utils.errors import UserError

CAMERA_OFFSET = 500  # grey value of no light
FULL_SCALE = 40_000  # grey values between intensity 0 and 1; what is above is headroom for noise


@dataclass(frozen=True)
class ForwardModel:
    """How the microscope turns the truth into slices.

    Blur with a Gaussian point-spread function, one slice per `factor` planes, Poisson and Gaussian noise, 16 bits.

    Attributes:
        factor: planes of the truth per slice.
        sampling: "average" sees the mean of its planes (centre factor*k + (factor - 1)/2), "pick" plane factor*k + factor//2.
        psf_sigma: standard deviation of the point-spread function along (z, y, x), in voxels of the truth.
        photons: photo-electrons at full scale, sets the Poisson noise; inf for none.
        read_noise: standard deviation of the camera's Gaussian noise in electrons.
        noise_seed: another one gives another exposure of the same specimen.
    """

    factor: int = 8
    sampling: str = "average"
    psf_sigma: tuple[float, float, float] = (2.5, 0.7, 0.7)
    photons: float = 400.0
    read_noise: float = 2.0
    noise_seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"factor={self.factor} must be at least 1")
        if self.sampling not in ("average", "pick"):
            raise UserError(f"sampling={self.sampling!r} must be 'average' or 'pick'")
        if len(self.psf_sigma) != 3 or not all(0 <= sigma < math.inf for sigma in self.psf_sigma):
            raise UserError(f"psf_sigma={self.psf_sigma} must be three numbers (z, y, x) of at least 0, in voxels")
        if not self.photons > 0 or not 0 <= self.read_noise < math.inf:
            raise UserError(f"photons={self.photons} must be positive and read_noise={self.read_noise} at least 0")
        if self.noise_seed < 0:
            raise UserError(f"noise_seed={self.noise_seed} must not be negative")

    def axial_weights(self) -> tuple[int, NDArray[np.float64]]:
        """What slice k sees: plane ``factor*k + first + j`` with weight j; the weights add up to 1.

        Returns:
            first, weights: the axial point-spread function convolved with the sampling.
        """
        psf = gaussian(self.psf_sigma[0])
        reach = len(psf) // 2
        if self.sampling == "pick":
            return self.factor // 2 - reach, psf
        return -reach, np.convolve(psf, np.full(self.factor, 1 / self.factor))

    @property
    def margin(self) -> int:
        """Voxels that are needed at the four sides of a plane to blur it."""
        return max(len(gaussian(sigma)) // 2 for sigma in self.psf_sigma[1:])

    def blur_in_plane(self, plane: NDArray) -> NDArray[np.float64]:
        """Convolve with the lateral point-spread function and cut the margin: (Y + 2 margin, X + 2 margin) -> (Y, X)."""
        for axis, sigma in enumerate(self.psf_sigma[1:]):
            plane = correlate1d(plane, gaussian(sigma), axis=axis, output=np.float64)
        return plane[self.margin : plane.shape[0] - self.margin, self.margin : plane.shape[1] - self.margin]

    def record(self, light: NDArray, rng: np.random.Generator) -> NDArray[np.uint16]:
        """What the camera makes of an image with intensities in [0, 1]: noisy grey values, uint16."""
        light = np.asarray(light, np.float64)
        if math.isfinite(self.photons):
            electrons = rng.poisson(light * self.photons) + rng.normal(0, self.read_noise, light.shape)
            light = electrons / self.photons
        return to_uint16(light)


def to_uint16(light: NDArray) -> NDArray[np.uint16]:
    """Grey values of intensities, the same for truth and slices: ``CAMERA_OFFSET + FULL_SCALE * light``, rounded and clipped."""
    return np.clip(np.rint(CAMERA_OFFSET + FULL_SCALE * np.asarray(light, np.float64)), 0, 65535).astype(np.uint16)


def gaussian(sigma: float) -> NDArray[np.float64]:
    """Samples of a Gaussian up to four standard deviations, an odd number with sum 1; ``[1]`` for sigma 0."""
    reach = math.ceil(4 * sigma)
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma)) if reach else np.ones(1)
    return weights / weights.sum()
