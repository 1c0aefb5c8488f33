"""Normalisation layers by name, for slices and for volumes; and without them, in use."""

from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class GroupNorm(nn.GroupNorm):
    """As PyTorch has it; but a CPU is asked for no backward pass in bf16 with channels last, which takes 20 times as long."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, ...) -> the same."""
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            x = x.contiguous()
        return super().forward(x)


def make_norm(name: str, channels: int, dimensions: int = 3, group_eps: float = 1e-5) -> nn.Module:
    """A normalisation of slices (N, channels, X, Y) or volumes (N, channels, X, Y, Z).

    Args:
        name: ``batch`` (eps 1e-5, momentum 0.1; in use it holds the statistics of the training and looks at no other voxel);
            ``instance`` (no gains, no running statistics); ``group`` (gcd(32, channels) groups); ``none``.
        channels: channels of the input.
        dimensions: 2 or 3.
        group_eps: what ``group`` adds to the variance.
    """
    if name == "group":
        return GroupNorm(gcd(32, channels), channels, group_eps)
    layers: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
        "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
        "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
        "none": (nn.Identity, nn.Identity),
    }
    return layers[name][dimensions - 2](channels)


def fold_batch_norm(network: nn.Module) -> None:
    """Makes every batch norm that directly follows a convolution a part of it, in place: for networks that only compute.

    In eval mode such a norm is a fixed scale and shift of each channel, so that the result stays the same up to rounding, where
    modules call their children one after the other. The network can afterwards neither be trained nor load or save weights of
    its former shape.
    """
    for parent in list(network.modules()):
        for (_, layer), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(norm, nn.BatchNorm3d) and isinstance(layer, nn.Conv1d | nn.Conv3d | nn.ConvTranspose3d):
                transposed = isinstance(layer, nn.ConvTranspose3d)
                assert norm.running_mean is not None and norm.running_var is not None
                layer.weight, layer.bias = fuse_conv_bn_weights(
                    layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, transposed
                )
                setattr(parent, name, nn.Identity())
