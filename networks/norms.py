"""The normalisation layers that the option ``norm`` names."""

from __future__ import annotations

from math import gcd

from torch import nn

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
