"""The normalisation layers that the option ``norm`` names."""

from __future__ import annotations

from itertools import pairwise
from math import gcd

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from utils.errors import UserError

NORMS = ("batch", "instance", "group", "none")


def make_norm(name: str, channels: int) -> nn.Module:
    """A normalisation of volumes (B, channels, X, Y, Z).

    Args:
        name: ``batch`` (eps 1e-5, momentum 0.1); ``instance`` (no gains, no running statistics); ``group`` (gcd(32, channels)
            groups, eps 1e-5); ``none``.
        channels: channels of the volume.

    Raises:
        UserError: the name is unknown.
    """
    if name == "batch":
        return nn.BatchNorm3d(channels)
    if name == "instance":
        return nn.InstanceNorm3d(channels)
    if name == "group":
        return nn.GroupNorm(gcd(32, channels), channels)
    if name == "none":
        return nn.Identity()
    raise UserError(f"norm={name!r} is unknown; choose one of {', '.join(NORMS)}")


def fold_batch_norm(network: nn.Module) -> None:
    """Makes every batch norm that directly follows a convolution a part of it, in place: for networks that only compute.

    In eval mode such a norm is a fixed scale and shift of each channel, so that the result stays the same up to rounding. The
    network can afterwards neither be trained nor load or save weights of its former shape.

    Args:
        network: in eval mode; its modules call their children one after the other.
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
