"""What a convolution makes of an image or a volume whose places were repeated, without making the repeated one."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.axes import inputs_first


def convolve_doubled(x: Tensor, convolution: nn.Conv2d | nn.Conv3d) -> Tensor:
    """Every place of x repeated along each axis, then a convolution with three taps and zeros around: the same up to rounding.

    Two of the three taps meet the same place always, so that a transposed convolution does it whose four taps along an axis
    are the last one, the last two, the first two and the first one: 4/9 of the arithmetic of an image, 8/27 of a volume's.

    Args:
        x: (N, in, H, W) or (N, in, X, Y, Z).
        convolution: kernel 3, padding 1, from ``in`` to ``out`` channels.

    Returns:
        (N, out, 2H, 2W) or (N, out, 2X, 2Y, 2Z).
    """
    weight = inputs_first(convolution.weight)
    for axis in range(2, weight.dim()):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack([last, middle + last, first + middle, first], axis)
    transposed = functional.conv_transpose2d if x.dim() == 4 else functional.conv_transpose3d
    return transposed(x, weight, convolution.bias, stride=2, padding=1)
