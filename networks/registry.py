"""The networks that settings choose by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from networks.patchgan import PatchDiscriminator
from networks.unet3d import UNet3d
from networks.volume_decoder import VolumeDecoder
from utils.errors import UserError

GENERATORS: dict[str, Callable[..., nn.Module]] = {"ed023e": VolumeDecoder, "edclean": UNet3d}
DISCRIMINATORS: dict[str, Callable[..., PatchDiscriminator]] = {
    f"patch_{patch}": partial(PatchDiscriminator, patch=patch) for patch in (16, 8, 4)
}


def build_generator(name: str, **values: int | float | str) -> nn.Module:
    """A 3-D generator.

    Args:
        name: ``ed023e``, latents to volume, or ``edclean``, volume to volume.
        values: arguments of :class:`~networks.volume_decoder.VolumeDecoder` or :class:`~networks.unet3d.UNet3d`.

    Raises:
        UserError: the name is unknown.
    """
    if name not in GENERATORS:
        raise UserError(f"netG={name!r} is unknown; choose one of {', '.join(GENERATORS)}")
    return GENERATORS[name](**values)


def build_discriminator(name: str, *, in_channels: int, ndf: int) -> PatchDiscriminator:
    """A discriminator of planes, (N, in_channels, H, W) to logits.

    Args:
        name: ``patch_16``, ``patch_8`` or ``patch_4``.
        in_channels: channels of the planes.
        ndf: width of the first layer.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DISCRIMINATORS:
        raise UserError(f"netD={name!r} is unknown; choose one of {', '.join(DISCRIMINATORS)}")
    return DISCRIMINATORS[name](in_channels=in_channels, ndf=ndf)
