"""The 2-D network that gives planes with few rows, sections of a volume seen from the side, their missing rows."""

import math

from torch import Tensor, nn
from torch.nn import functional

from networks.sections import Sections
from networks.views import spread_pixels


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity (Lim et al. 2017, without normalisation): (N, width, H, W) → the same shape.

    With ``convolution`` nn.Conv3d of volumes, (N, width, X, Y, Z). ``dilation`` is of the first one.
    """

    def __init__(self, width: int, convolution: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d, dilation: int = 1) -> None:
        super().__init__()
        self.first = convolution(width, width, 3, padding=dilation, dilation=dilation)
        self.second = convolution(width, width, 3, padding=1)
        nn.init.normal_(self.second.weight, std=0.1 / math.sqrt(self.second.weight[0].numel()))

    def forward(self, x: Tensor) -> Tensor:
        """The input plus what was found."""
        return x + self.second(functional.silu(self.first(x)))


class PlaneRestorer(nn.Module):
    """Sections (N, C, n, W), W even → planes (N, C, n·planes, W): cubic interpolation plus a learned residual.

    Nearly all layers work on the coarse rows and every second column; sub-pixel convolution (Shi et al. 2016) brings both back.
    The last convolution begins at zero, so that an untrained network interpolates. Nothing is normalised: the result is local.

    Args:
        sections: the axial operator that the network undoes.
        channels: of the images, each restored from all.
        width: features.
        blocks: residual blocks.
        fine_width: features on the fine grid, where they cost the most: as much as all blocks where ``width`` is small.
    """

    def __init__(self, sections: Sections, channels: int = 1, width: int = 64, blocks: int = 8, fine_width: int = 16) -> None:
        super().__init__()
        self.sections, self.blocks = sections, blocks
        self.narrow = nn.Conv2d(channels, width // 2, 3, padding=1)
        self.columns = nn.Conv2d(width // 2, width, (3, 4), stride=(1, 2), padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.spread = nn.Conv2d(width, fine_width * sections.planes * 2, 3, padding=1)
        self.head = nn.Conv2d(fine_width, fine_width, 3, padding=1)
        self.last = nn.Conv2d(fine_width, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @property
    def halo(self) -> tuple[int, int]:
        """Sections and pixels (even) on each side that a place's result depends on."""
        coarse = 2 * self.blocks + 3
        fine_rows, fine_columns = 2, 2
        return coarse + math.ceil(fine_rows / self.sections.planes), 2 * (2 * self.blocks + 2) + 2 + fine_columns

    def forward(self, sections: Tensor) -> Tensor:
        """See the class."""
        features = functional.silu(self.columns(functional.silu(self.narrow(sections))))
        features = self.spread(features + self.body(features))
        fine = spread_pixels(features, self.sections.planes, 2)
        found = self.last(functional.silu(self.head(functional.silu(fine))))
        return self.sections.interpolated(sections.float()) + found.float()
