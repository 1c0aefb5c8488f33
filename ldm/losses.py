"""The 2-D autoencoder's loss terms (Esser et al. 2021, eq. 4-7; Rombach et al. 2022, appendix G), as pure functions.

They compose, for the generator, to ``nll + disc_weight·factor·λ·g + codebook`` and, for the discriminator, to ``factor·hinge``,
with λ of :func:`adaptive_weight`, g of :func:`generator_term` and factor of :func:`disc_factor`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def vq_reconstruction(slices: Tensor, recon: Tensor, perceptual: Tensor | None = None) -> Tensor:
    """Mean over everything of abs(slices - recon) + perceptual.

    Args:
        slices: (N, C, H, W) in [-1, 1].
        recon: the same shape.
        perceptual: distance of each pair (N, 1, 1, 1), already weighted; None adds nothing.

    Returns:
        Scalar in the unit of the intensities.
    """
    return _absolute_error(slices, recon, perceptual).mean()


def kl_reconstruction(slices: Tensor, recon: Tensor, perceptual: Tensor | None = None) -> Tensor:
    """As :func:`vq_reconstruction`, but the sum over an item's values, averaged over the N items.

    It is the negative log-likelihood of a Laplace distribution of unit scale, up to a constant, to which a KL divergence that is
    summed over components can be added.
    """
    return _absolute_error(slices, recon, perceptual).sum() / slices.shape[0]


def generator_term(fake_logits: Tensor) -> Tensor:
    """-mean of the discriminator's logits on reconstructions, of any shape."""
    return -fake_logits.float().mean()


def disc_factor(generator_steps: int, disc_start: int) -> float:
    """1 from generator step ``disc_start`` on, 0 before."""
    return 1.0 if generator_steps >= disc_start else 0.0


def adaptive_weight(nll: Tensor, g: Tensor, last_layer_weight: Tensor) -> Tensor:
    """Balances the adversarial term against the reconstruction by their gradients at the last layer (Esser 2021, eq. 7).

    Args:
        nll: reconstruction term, a scalar whose graph is kept.
        g: adversarial term, likewise.
        last_layer_weight: weight of the decoder's last convolution.

    Returns:
        clamp(norm of d nll / (norm of d g + 1e-4), 0, 1e4), detached.
    """
    (nll_gradient,) = torch.autograd.grad(nll, last_layer_weight, retain_graph=True)
    (g_gradient,) = torch.autograd.grad(g, last_layer_weight, retain_graph=True)
    return (nll_gradient.norm() / (g_gradient.norm() + 1e-4)).clamp(0.0, 1e4).detach()


def _absolute_error(slices: Tensor, recon: Tensor, perceptual: Tensor | None) -> Tensor:
    error = (slices - recon).abs()
    return error if perceptual is None else error + perceptual
