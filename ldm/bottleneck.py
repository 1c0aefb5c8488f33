"""What lies between encoder and decoder: the code that a bottleneck lets through, and the Gaussian posterior of the KL model."""

from typing import NamedTuple

import torch
from torch import Tensor


class Code(NamedTuple):
    """What a bottleneck lets through.

    Attributes:
        latent: (N, d, h, w), what the decoders read.
        loss: the bottleneck's own term, unweighted scalar.
        indices: the codes (N, h, w), with a last axis for the levels of a residual codebook; None where the code is continuous.
        moments: (N, c, h, w), what the bottleneck was given.
    """

    latent: Tensor
    loss: Tensor
    indices: Tensor | None
    moments: Tensor


class DiagonalGaussian:
    """A Gaussian with independent components for every item (Kingma & Welling 2014, appendix B).

    Args:
        moments: (N, 2d, h, w); the first d channels are the mean, the others the log-variance, clamped to [-30, 20].

    Attributes:
        mean, logvar, std, var: (N, d, h, w), at least float32, also under autocast.
    """

    def __init__(self, moments: Tensor) -> None:
        wide = moments.to(torch.promote_types(moments.dtype, torch.float32))
        self.mean, logvar = wide.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Mean + std·noise (N, d, h, w); ``noise`` of the same shape, by default N(0, 1) from torch's global generator."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to N(0, 1): (N,) in nats, summed over components."""
        return 0.5 * (self.mean.square() + self.var - 1 - self.logvar).sum(dim=(1, 2, 3))
