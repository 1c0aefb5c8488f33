"""A convolution after every place was repeated, from the places alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from utils.doubling import convolve_doubled


@pytest.mark.parametrize(("kind", "shape"), [(nn.Conv2d, (2, 5, 4, 7)), (nn.Conv2d, (1, 5, 1, 1)), (nn.Conv3d, (2, 5, 3, 4, 1))])
def test_values_and_gradients_are_those_of_the_repeated_places(kind, shape):
    torch.manual_seed(0)
    convolution = kind(5, 3, 3, padding=1, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, wanted = convolve_doubled(x, convolution), convolution(functional.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    learning = (x, convolution.weight, convolution.bias)
    gradients = [torch.autograd.grad((made * weights).sum(), learning, retain_graph=True) for made in (found, wanted)]
    torch.testing.assert_close(*gradients)
