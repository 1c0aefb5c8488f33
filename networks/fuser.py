"""The 3-D network that makes one volume of what planes seen from two sides have given."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from networks.plane_restorer import ResidualBlock
from networks.sections import Sections
from networks.sides import REACH, mean_of_sides
from networks.views import fold_pixels, unfold_pixels


class VolumeFuser(nn.Module):
    """Interpolation and two predictions of a volume → the mean of the predictions (networks.sides) plus a learned residual.

    Works on squares of ``SIDE`` pixels and on every plane; where a plane lies between two sections is one more channel. The last
    convolution begins at zero, so that an untrained network gives the mean. Nothing is normalised: the result is local.

    Args:
        sections: the axial operator.
        channels: C of the volume.
        width: features.
        blocks: residual blocks.
    """

    SIDE = 2
    HEAD = 8  # features on the fine grid

    def __init__(self, sections: Sections, channels: int = 1, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.sections, self.blocks = sections, blocks
        self.enter = nn.Conv3d(3 * channels * self.SIDE**2 + 1, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, nn.Conv3d) for _ in range(blocks)))
        self.spread = nn.Conv3d(width, self.HEAD * self.SIDE**2, 3, padding=1)
        self.last = nn.Conv3d(self.HEAD, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @property
    def halo(self) -> tuple[int, int]:
        """Planes along Z, and pixels (even) along X and Y, on each side that a voxel depends on."""
        coarse = 2 * self.blocks + 2
        return coarse + 1, max(self.SIDE * coarse + 2, REACH)

    def forward(self, interpolated: Tensor, across_y: Tensor, across_x: Tensor, first: int = 0) -> Tensor:
        """Three volumes (B, C, X, Y, Z), X and Y even → (B, C, X, Y, Z).

        Args:
            interpolated: along Z from the sections.
            across_y: what XZ planes gave.
            across_x: what YZ planes gave.
            first: plane of a slab, [0, planes), that the volumes begin with.
        """
        folded = fold_pixels(torch.cat([interpolated, across_y, across_x], dim=1), self.SIDE)
        places = self.sections.away(torch.arange(folded.shape[-1], device=folded.device) + first)
        place = places.to(folded).expand(folded.shape[0], 1, *folded.shape[2:])
        features = functional.silu(self.enter(torch.cat([folded, place], dim=1)))
        fine = unfold_pixels(self.spread(features + self.body(features)), self.SIDE)
        found = self.last(functional.silu(fine))
        return mean_of_sides(across_y, across_x) + found.float()
