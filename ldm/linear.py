"""A 2-D autoencoder that begins as the best linear one: blocks of pixels projected onto their principal components.

Encoder and decoder are a linear map each (the Karhunen-Loève transform of transform coding, Goyal 2001) with a residual network
beside it, whose last layer is zero before the first step: a training begins where principal components and k-means end. Nothing
looks over a whole slice.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.autoencoder import Features, ResBlock
from utils.processes import of_first

FINEST = 2  # level (of stride 4) from which the decoder's residual network goes to pixels in one step


class LinearEncoder(nn.Module):
    """Slices (N, in_channels, H, W) → :class:`ldm.autoencoder.Features`; s = 2 ** (levels - 1), H and W multiples of it.

    Its pyramid has the levels from stride 2 on.

    Args:
        ch: base width of the residual network.
        ch_mult: width of each level as a multiple of ``ch``; that of the finest, the pixels, has no meaning here.
        num_res_blocks: blocks at the coarsest level.
        in_channels: channels of a slice.
        z_channels: channels of the latent, that many principal components.
        dropout: probability inside the blocks.
        norm: see utils.norms; ``batch`` or ``none``.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 3,
        in_channels: int = 1,
        z_channels: int = 12,
        dropout: float = 0.0,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(ch_mult) - 1)
        widths = [in_channels, *(ch * multiple for multiple in ch_mult[1:])]
        self.linear = nn.Conv2d(in_channels, z_channels, self.stride, stride=self.stride)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.block = nn.ModuleList(ResBlock(widths[-1], widths[-1], dropout, norm) for _ in range(num_res_blocks))
        self.conv_out = _zero(nn.Conv2d(widths[-1], z_channels, 3, padding=1))

    def forward(self, slices: Tensor) -> Features:
        """Raises ValueError where height or width is no multiple of the stride."""
        height, width = slices.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"slices of {height}x{width} pixels cannot be encoded; pad both to multiples of {self.stride}")
        h, pyramid = slices, []
        for layer in self.down:
            h = F.silu(layer(h))
            pyramid.append(h)
        for block in self.block:
            h = block(h)
        return Features(self.linear(slices) + self.conv_out(F.silu(h)), h, tuple(pyramid))

    def halo(self) -> tuple[int, int]:
        """Pixels before and after those of a latent that it reads; see :meth:`ldm.autoencoder.Encoder.halo`."""
        low = high = 1 + 2 * len(self.block)
        for _ in self.down:
            low, high = 2 * low + 1, 2 * high + 2  # output i of a layer reads 2i - 1 to 2i + 2
        return low, high + 1 - self.stride


class LinearDecoder(nn.Module):
    """Latents (N, z_channels, h, w) → slices (N, out_ch, s·h, s·w), s = 2 ** (levels - 1); no final activation.

    Attributes:
        conv_in: the first layer of the isotropic volume's way, (N, z_channels, h, w) → (N, lifted, h, w).

    Args: as :class:`LinearEncoder`; ``num_res_blocks`` + 1 blocks at the coarsest level, one less than ``num_res_blocks`` at
        each finer one down to stride 4; ``out_ch`` channels of a slice; ``lifted`` channels for the volume decoder.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 3,
        out_ch: int = 1,
        z_channels: int = 12,
        lifted: int = 256,
        dropout: float = 0.0,
        norm: str = "none",
    ) -> None:
        super().__init__()
        stride, widths = 2 ** (len(ch_mult) - 1), [ch * multiple for multiple in ch_mult]
        self.linear = nn.ConvTranspose2d(z_channels, out_ch, stride, stride=stride)
        self.conv_in = nn.Conv2d(z_channels, lifted, 3, padding=1)
        self.enter = nn.Conv2d(z_channels, widths[-1], 3, padding=1)

        def blocks(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(ResBlock(width, width, dropout, norm) for _ in range(count)))

        self.block = blocks(widths[-1], num_res_blocks + 1)
        finer = widths[FINEST:-1][::-1]
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 3, padding=1) for a, b in pairwise((widths[-1], *finer)))
        self.refine = nn.ModuleList(blocks(width, max(1, num_res_blocks - 1)) for width in finer)
        self.conv_out = _zero(nn.Conv2d(widths[FINEST], out_ch * 4**FINEST, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """Intensities around [-1, 1], unbounded."""
        h = self.block(self.enter(latent))
        for up, refine in zip(self.up, self.refine, strict=True):
            h = refine(F.pixel_shuffle(up(h), 2))
        return self.linear(latent) + F.pixel_shuffle(self.conv_out(F.silu(h)), 2**FINEST)

    def halo(self) -> tuple[int, int]:
        """Latents before and after those of a pixel that it reads; see :meth:`ldm.autoencoder.Decoder.halo`."""
        low, high = -1, self.linear.stride[0] // 2**FINEST  # from the pixels of one latent, at stride 4; conv_out
        for blocks in reversed(self.refine):
            reach = 2 * len(blocks)  # type: ignore[arg-type]
            low, high = (low - reach) // 2 - 1, (high + reach) // 2 + 1  # the shuffle and the convolution before it
        reach = 2 * len(self.block) + 1
        return reach - low, high + reach


def blocks_of(slices: Tensor, side: int) -> Tensor:
    """Slices (N, C, H, W) → their blocks of side x side pixels, one per row: (N·H·W/side², C·side²)."""
    return F.unfold(slices, side, stride=side).mT.flatten(0, 1)


@torch.no_grad()
def start_linearly(encoder: LinearEncoder, decoder: LinearDecoder, blocks: Tensor) -> None:
    """Makes encoder and decoder the projection onto the principal components of blocks (M, C·s²) about their mean grey value.

    What the decoder gives back are the first channels of the input, as many as it has.
    """
    count, channels, *side = encoder.linear.weight.shape
    wide = blocks.detach().cpu().double().unflatten(1, (channels, -1))
    mean = wide.mean(dim=(0, 2))
    wide = (wide - mean[:, None]).flatten(1)
    _, vectors = torch.linalg.eigh(wide.mT @ wide / len(wide))  # ascending variances
    components = of_first(vectors.mT.flip(0)[:count].unflatten(1, (channels, *side)).to(encoder.linear.weight))
    mean = of_first(mean.to(components))
    out = decoder.linear.weight.shape[1]
    assert encoder.linear.bias is not None and decoder.linear.bias is not None
    encoder.linear.weight.copy_(components)
    encoder.linear.bias.copy_(-(components.sum(dim=(2, 3)) @ mean))
    decoder.linear.weight.copy_(components[:, :out])
    decoder.linear.bias.copy_(mean[:out])


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
