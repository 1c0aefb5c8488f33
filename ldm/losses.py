"""The 2-D autoencoder's loss terms (Esser et al. 2021, eq. 4-7; Rombach et al. 2022, appendix G), as pure functions.

They compose, for the generator, to ``nll + disc_weight·λ·g + codebook`` and, for the discriminator, to its hinge loss, with λ of
:func:`adaptive_weight` and g minus the mean of its logits; both adversarial terms act from generator step ``disc_start`` on.
"""

import torch
from torch import Tensor
from torch.nn import functional

# Of slices (N, C, H, W) in [-1, 1], by loss.reconstruction of ldm/*.yaml; the squared error is what PSNR measures.
RECONSTRUCTIONS = {"absolute": functional.l1_loss, "squared": functional.mse_loss}


def kl_reconstruction(slices: Tensor, recon: Tensor) -> Tensor:
    """The sum of absolute errors over an item's values, averaged over the N items (N, C, H, W): a scalar.

    It is the negative log-likelihood of a Laplace distribution of unit scale, up to a constant, to which a KL divergence that is
    summed over components can be added.
    """
    return (slices - recon).abs().sum() / slices.shape[0]


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
