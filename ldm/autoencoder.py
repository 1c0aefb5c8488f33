"""The 2-D convolutional autoencoder of slices (Esser et al. 2021, "Taming transformers", appendix; Rombach et al. 2022).

State-dict keys are those of published weights: ``down.0.block.0.conv1.weight`` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.blocks import Attention, DownLevel, Middle, UpLevel, slice_norm


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
        self.blocks_per_level = num_res_blocks
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
        latent = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return Features(latent, h, tuple(pyramid))


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
        self.blocks_per_level = num_res_blocks + 1
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


def receptive_halo(network: Encoder | Decoder) -> tuple[int, int]:
    """How far a network without slice-wide layers looks beyond its own place, along height and along width alike.

    With s the reduction: the latents [a, b) that the whole slice gives come from the pixels [s·a - before, s·b + after) alone,
    cut at the slice's borders and, at the start, widened to a multiple of s. For the decoder, the pixels [s·a, s·b) come from
    the latents [a - before, b + after).

    Returns:
        before, after: pixels for an encoder, where they differ because the downsampling pads on one side; latents for a decoder.

    Raises:
        ValueError: attention, group or instance normalisation makes every output depend on the whole slice.
    """
    if any(isinstance(module, Attention | nn.GroupNorm | nn.InstanceNorm2d) for module in network.modules()):
        raise ValueError(
            "attention and norm='group' or 'instance' see the whole slice; halos need norm='batch' or 'none', mid_attention=False"
        )
    if isinstance(network, Encoder):
        return _encoder_halo(len(network.down), network.blocks_per_level)
    return _decoder_halo(len(network.up), network.blocks_per_level)


def _encoder_halo(levels: int, blocks: int) -> tuple[int, int]:
    """From one latent at 0 back to the pixels [low, high] that it reads."""
    low, high = -5, 5  # conv_out and the two convolutions of each middle block
    for level in reversed(range(levels)):
        if level < levels - 1:
            low, high = 2 * low, 2 * high + 2  # output i of the strided convolution reads 2i, 2i + 1 and 2i + 2
        low, high = low - 2 * blocks, high + 2 * blocks
    low, high = low - 1, high + 1  # conv_in
    return -low, high - (2 ** (levels - 1) - 1)


def _decoder_halo(levels: int, blocks: int) -> tuple[int, int]:
    """From the pixels of one latent at 0 back to the latents [low, high] that they read."""
    low, high = -1, 2 ** (levels - 1)  # conv_out
    for level in range(levels):
        if level > 0:
            low, high = (low - 1) // 2, (high + 1) // 2  # the convolution after the repetition, then the repetition
        low, high = low - 2 * blocks, high + 2 * blocks
    low, high = low - 5, high + 5  # the middle blocks and conv_in
    return -low, high
