"""The 2-D discriminator: shapes and initialisation."""

import pytest
import torch
from torch import nn

from taming.discriminator import NLayerDiscriminator


def test_shape_and_published_size():
    network = NLayerDiscriminator(1)
    assert network(torch.randn(2, 1, 40, 32)).shape == (2, 1, 3, 2)
    assert sum(p.numel() for p in network.parameters()) == 2_763_585


def test_initialisation():
    torch.manual_seed(0)
    network = NLayerDiscriminator(3)
    convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == 5
    assert all(w.std().item() == pytest.approx(0.02, rel=0.1) for w in convolutions)
    assert all(n.weight.mean().item() == pytest.approx(1.0, abs=0.01) and 0.01 < n.weight.std() < 0.03 for n in norms)
    assert all(n.bias.abs().sum() == 0 for n in norms)
