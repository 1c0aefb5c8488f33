"""The Gaussian posterior against closed forms."""

import math

import pytest
import torch

from ldm.bottleneck import DiagonalGaussian


def test_kl_of_a_shifted_unit_gaussian_is_half_the_squared_shift():
    moments = torch.zeros(2, 6, 2, 1)
    moments[1, :3] = 2.0
    assert DiagonalGaussian(moments).kl().tolist() == [0.0, 0.5 * 6 * 4.0]


def test_samples_follow_the_seed_and_the_moments():
    posterior = DiagonalGaussian(torch.tensor([3.0, math.log(4.0)]).view(1, 2, 1, 1).expand(1, 2, 100, 100))
    torch.manual_seed(3)
    sample = posterior.sample()
    assert sample.mean().item() == pytest.approx(3.0, abs=0.1)
    assert sample.std().item() == pytest.approx(2.0, rel=0.05)
    torch.manual_seed(3)
    assert torch.equal(sample, posterior.sample())


def test_low_precision_moments_are_widened():
    posterior = DiagonalGaussian(torch.randn(1, 4, 2, 3).bfloat16())
    assert posterior.sample().dtype == posterior.kl().dtype == torch.float32
    assert DiagonalGaussian(torch.randn(1, 4, 2, 3).double()).mean.dtype == torch.float64
