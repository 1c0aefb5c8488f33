"""The 2-D convolutional autoencoder of slices (Esser et al. 2021, "Taming transformers", appendix; Rombach et al. 2022).

Attribute names make the state-dict keys of published weights: ``down.0.block.0.conv1.weight`` and so on.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from utils.doubling import convolve_doubled
from utils.norms import make_norm

slice_norm = partial(make_norm, dimensions=2, group_eps=1e-6)  # of the published autoencoders


FINISH_HALO = 5  # latents that the middle block and the last convolution of an encoder look beyond their place


class ResBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut, (N, a, H, W) → (N, b, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, norm: str = "group") -> None:
        super().__init__()
        self.norm1 = slice_norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = slice_norm(norm, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, a, H, W) → (N, b, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


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
        return convolve_doubled(x, self.conv)


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
            x = self.attn[i](block(x)) if self.attn else block(x)
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


class Features(NamedTuple):
    """What the encoder makes of slices (N, C, H, W); s = 2 ** (levels - 1) is its reduction, 8 with four levels.

    Attributes:
        latent: output of the last layer, (N, z_channels or 2·z_channels, H/s, W/s).
        branch: input of the middle block, (N, ch·ch_mult[-1], H/s, W/s).
        pyramid: the last block of every level, (N, ch·ch_mult[l], H/2^l, W/2^l); the last one is ``branch``.
    """

    latent: Tensor
    branch: Tensor
    pyramid: tuple[Tensor, ...]


class Encoder(nn.Module):
    """Slices (N, in_channels, H, W) → :class:`Features`; H and W must be multiples of 2 ** (levels - 1).

    Args:
        ch: base width.
        ch_mult: width of each level as a multiple of ``ch``; one level per resolution.
        num_res_blocks: blocks per level.
        in_channels: channels of a slice.
        z_channels: channels of the latent.
        double_z: twice as many, for the mean and log-variance of a Gaussian posterior.
        attn_resolutions: resolutions with attention after each block, when a slice has side ``resolution``.
        resolution: nominal side of a slice, only to read ``attn_resolutions``.
        dropout: probability inside the blocks.
        norm: see utils.norms.
        mid_attention: attention in the middle block.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 1,
        in_channels: int = 1,
        z_channels: int = 4,
        double_z: bool = False,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        dropout: float = 0.0,
        norm: str = "group",
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        self.reach = 2 * num_res_blocks  # of a level: two convolutions in each block
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for level, multiple in enumerate(ch_mult):
            widths = [width] + num_res_blocks * [ch * multiple]
            attention, last = resolution // 2**level in attn_resolutions, level == len(ch_mult) - 1
            self.down.append(DownLevel(widths, dropout, norm, attention, last))
            width = widths[-1]
        self.mid = Middle(width, dropout, norm, mid_attention)
        self.norm_out = slice_norm(norm, width)
        self.conv_out = nn.Conv2d(width, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, slices: Tensor) -> Features:
        """Raises ValueError where height or width is no multiple of the reduction."""
        reduction = 2 ** (len(self.down) - 1)
        height, width = slices.shape[-2:]
        if height % reduction or width % reduction:
            raise ValueError(f"slices of {height}x{width} pixels cannot be encoded; pad both to multiples of {reduction}")
        h = self.conv_in(slices)
        pyramid = []
        for level in self.down:
            feature, h = level(h)
            pyramid.append(feature)
        return Features(self.finish(h), h, tuple(pyramid))

    def finish(self, branch: Tensor) -> Tensor:
        """From the input of the middle block to the latent, see :class:`Features`."""
        return self.conv_out(F.silu(self.norm_out(self.mid(branch))))

    def halo(self) -> tuple[int, int] | None:
        """How many pixels before and after its own a latent depends on, along height and along width alike.

        With s the reduction: the latents [a, b) that the whole slice gives come from the pixels [s·a - before, s·b + after)
        alone, cut at the slice's borders and, at the start, widened to a multiple of s. The two differ because the downsampling
        pads on one side. None where attention, group or instance normalisation sees the whole slice.
        """
        low, high = -FINISH_HALO, FINISH_HALO  # of one latent at 0; conv_out and the two convolutions of each middle block
        for level in reversed(range(len(self.down))):
            if level < len(self.down) - 1:
                low, high = 2 * low, 2 * high + 2  # output i of the strided convolution reads 2i, 2i + 1 and 2i + 2
            low, high = low - self.reach, high + self.reach
        return (1 - low, high + 1 - (2 ** (len(self.down) - 1) - 1)) if _is_local(self) else None  # conv_in


class Decoder(nn.Module):
    """Latents (N, z_channels, h, w) → slices (N, out_ch, s·h, s·w), s = 2 ** (levels - 1); no final activation.

    Args: as :class:`Encoder`; ``num_res_blocks`` + 1 blocks per level; ``out_ch`` channels of a slice.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 1,
        out_ch: int = 1,
        z_channels: int = 4,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        dropout: float = 0.0,
        norm: str = "group",
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        self.reach = 2 * (num_res_blocks + 1)
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = Middle(width, dropout, norm, mid_attention)
        levels = []
        for level in reversed(range(len(ch_mult))):
            widths = [width] + (num_res_blocks + 1) * [ch * ch_mult[level]]
            attention, last = resolution // 2**level in attn_resolutions, level == 0
            levels.append(UpLevel(widths, dropout, norm, attention, last))
            width = widths[-1]
        self.up = nn.ModuleList(reversed(levels))  # up.0 is the finest, which runs last
        self.norm_out = slice_norm(norm, width)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Intensities around [-1, 1], unbounded."""
        h = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def halo(self) -> tuple[int, int] | None:
        """How many latents before and after its own a pixel depends on, as :meth:`Encoder.halo`.

        The pixels [s·a, s·b) come from the latents [a - before, b + after).
        """
        low, high = -1, 2 ** (len(self.up) - 1)  # from the pixels of one latent at 0 back to the latents that they read; conv_out
        for level in range(len(self.up)):
            if level > 0:
                low, high = (low - 1) // 2, (high + 1) // 2  # the convolution after the repetition, then the repetition
            low, high = low - self.reach, high + self.reach
        return (5 - low, high + 5) if _is_local(self) else None  # the middle blocks and conv_in


def _is_local(network: nn.Module) -> bool:
    return not any(isinstance(module, Attention | nn.GroupNorm | nn.InstanceNorm2d) for module in network.modules())
