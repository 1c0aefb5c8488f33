"""The 3-D network that makes grain of noise, and noise that belongs to places."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from networks.plane_restorer import ResidualBlock
from networks.sections import Sections

_SPREAD = 0x9E3779B1  # odd, so that multiples of it modulo 2³² are far apart (Knuth's multiplicative hashing)

Places = Sequence[Tensor]  # along X, Y and Z, each (B, its length), int64: where the voxels of B volumes lie


class GrainMaker(nn.Module):
    """A volume and noise → what slices have and the volume lacks.

    All layers work on the fine grid and know no place along X and Y, so that nothing but noise can make a pattern there: a
    network that works on squares of pixels, and has no noise, makes stripes of their size. Along Z it is told how far the nearest
    section is. Planes that are sections themselves are left alone, where a section is one plane that nothing has blurred.

    Args:
        sections: the axial operator.
        channels: C of the volume.
        width: features.
    """

    NOISES = 2  # independent numbers per voxel
    DILATIONS = (1, 2, 3)  # of the residual blocks

    def __init__(self, sections: Sections, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.sections = sections
        self.enter = nn.Conv3d(channels + 1 + self.NOISES, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, nn.Conv3d, dilation) for dilation in self.DILATIONS))
        self.last = nn.Conv3d(width, channels, 3, padding=1)
        nn.init.normal_(self.last.weight, std=0.01 / self.last.weight[0].numel() ** 0.5)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    @property
    def halo(self) -> int:
        """Voxels on each side, along every axis, that a voxel depends on."""
        return 2 + sum(dilation + 1 for dilation in self.DILATIONS)

    def forward(self, volume: Tensor, places: Places) -> Tensor:
        """Grain for volumes (B, C, X, Y, Z), of the same shape, float32; places along Z count from the first slab."""
        away = self.sections.away(places[2])[:, None, None, None].to(volume).expand(-1, 1, *volume.shape[2:])
        seen = torch.cat([volume, away, noise_at(places, self.NOISES).to(volume)], dim=1)
        grain = self.last(functional.silu(self.body(functional.silu(self.enter(seen))))).float()
        return grain * (away > 0) if self.sections.shows_planes else grain


def noise_at(places: Places, count: int) -> Tensor:
    """Gaussian noise that is a function of places alone: a part of a volume has what the whole has there.

    Args:
        places: along X, Y and Z, each (B, n), int64.
        count: independent numbers for every voxel.

    Returns:
        (B, count, X, Y, Z), float32, of mean 0 and deviation 1: the inverse error function of 23 mixed bits.
    """
    x, y, z = (along * _SPREAD for along in places)
    mixed = _mixed(torch.arange(count, device=z.device)[None, :, None] + z[:, None])[:, :, None]
    mixed = _mixed(mixed + y[:, None, :, None])[:, :, None]
    mixed = _mixed(mixed + x[:, None, :, None, None])
    return torch.erfinv((mixed >> 9).float().add_(0.5).mul_(2**-22).sub_(1)).mul_(2**0.5)


def _mixed(numbers: Tensor) -> Tensor:
    """Integers to 32 bits, each of which depends on all of theirs (the multiply-xorshift of Wellons' "lowbias32")."""
    numbers = numbers & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        numbers = (numbers ^ (numbers >> shift)) * factor & 0xFFFFFFFF
    return numbers
