"""The layers of the 2-D autoencoder. Their attribute names make the state-dict keys of published weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from utils.norms import make_norm

slice_norm = partial(make_norm, dimensions=2, group_eps=1e-6)  # of the published autoencoders


class ResBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut, (N, a, H, W) → (N, b, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, norm: str = "group") -> None:
        super().__init__()
        self.norm1 = slice_norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = slice_norm(norm, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.widens = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, a, H, W) → (N, b, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.widens else x) + h


class Attention(nn.Module):
    """One head of self-attention over all positions of a slice, added to its input, (N, C, H, W) → the same."""

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        self.norm = slice_norm(norm, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """softmax(q·k / √C)·v (Vaswani et al. 2017, eq. 1), every pixel a token of C channels."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT.unsqueeze(1) for layer in (self.q, self.k, self.v))  # (N, 1, H·W, C)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.unflatten(2, x.shape[-2:])
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width: repeats every pixel, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """ResBlock, attention (unless switched off), ResBlock at the coarsest resolution."""

    def __init__(self, channels: int, dropout: float, norm: str, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout, norm)
        self.attn_1 = Attention(channels, norm) if attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels, dropout, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Blocks(nn.Module):
    """The blocks of one resolution, each followed by attention where the settings ask for it."""

    def __init__(self, widths: Sequence[int], dropout: float, norm: str, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b, dropout, norm) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(Attention(width, norm) for width in widths[1:] if attention)

    def run(self, x: Tensor) -> Tensor:
        """(N, widths[0], H, W) → (N, widths[-1], H, W)."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class DownLevel(Blocks):
    """One level of the encoder; ``last`` keeps the resolution."""

    def __init__(self, widths: Sequence[int], dropout: float, norm: str, attention: bool, last: bool) -> None:
        super().__init__(widths, dropout, norm, attention)
        self.downsample = nn.Identity() if last else Downsample(widths[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) → the level's feature (N, C', H, W) and the next level's input (N, C', H/2, W/2)."""
        feature = self.run(x)
        return feature, self.downsample(feature)


class UpLevel(Blocks):
    """One level of the decoder; ``last`` keeps the resolution."""

    def __init__(self, widths: Sequence[int], dropout: float, norm: str, attention: bool, last: bool) -> None:
        super().__init__(widths, dropout, norm, attention)
        self.upsample = nn.Identity() if last else Upsample(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C', 2h, 2w)."""
        return self.upsample(self.run(x))
