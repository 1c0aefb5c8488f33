"""The terms of the autoencoder losses by hand."""

import pytest
import torch

from ldm.losses import RECONSTRUCTIONS, adaptive_weight, kl_reconstruction


def test_reconstruction_is_a_mean_or_the_sum_of_a_slice():
    slices, recon = torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.5)
    assert RECONSTRUCTIONS["absolute"](slices, recon).item() == 0.5
    assert kl_reconstruction(slices, recon).item() == 12 * 0.5


def test_adaptive_weight_is_the_ratio_of_gradients_and_carries_none():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight(3.0 * w.sum(), 0.5 * w.sum(), w)
    assert weight.item() == pytest.approx(6.0, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight(1e9 * w.sum(), w.sum(), w).item() == 1e4


def test_adaptive_weight_keeps_the_graph():
    w = torch.ones(2, requires_grad=True)
    nll, g = w.square().sum(), w.sum()
    (nll + adaptive_weight(nll, g, w) * g).backward()
    torch.testing.assert_close(w.grad, torch.full((2,), 4.0), rtol=1e-3, atol=0)
