"""ed023e: the 3-D generator that turns a volume of latents into an isotropic volume, eight times larger along every axis."""

from __future__ import annotations

from torch import Tensor, nn

from utils.norms import make_norm

Margins = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # places before and after the core, along X, Y and Z
NO_MARGINS: Margins = ((0, 0), (0, 0), (0, 0))


class VolumeDecoder(nn.Module):
    """Three times a doubling transposed convolution followed, in the first two stages, by two convolutions; no skip connections.

    (B, 8·nf, x, y, z) -> (B, out_channels, 8x, 8y, 8z), the result in [-1, 1] (tanh).

    Attributes:
        HALO: latents on each side, along each axis, that an output voxel depends on beyond the latent that covers it, when the
            norm is ``none`` or ``batch`` in eval mode. A 3x3 convolution in front of it, such as the 2-D decoder's ``conv_in``,
            adds one in-plane.
        in_channels: channels of the input, 8·nf.
    """

    HALO = 3

    def __init__(self, nf: int, out_channels: int = 1, norm: str = "batch", dropout: float = 0.0) -> None:
        """Builds the network with PyTorch's default initialisation.

        Args:
            nf: width before the last convolution.
            out_channels: channels of the volume.
            norm: ``batch``, ``instance``, ``group`` or ``none``.
            dropout: probability of the element-wise dropout between the two convolutions of a stage.
        """
        super().__init__()
        self.in_channels = 8 * nf
        self.up3 = _doubling(8 * nf, 4 * nf, norm)
        self.conv5 = _pair(4 * nf, norm, dropout)
        self.up2 = _doubling(4 * nf, 2 * nf, norm)
        self.conv6 = _pair(2 * nf, norm, dropout)
        self.up1 = _doubling(2 * nf, nf, norm)
        self.conv7_k = nn.Sequential(nn.Sequential(nn.Conv3d(nf, out_channels, 3, padding=1), nn.Tanh()))

    def forward(self, latents: Tensor, margins: Margins = NO_MARGINS) -> Tensor:
        """Decodes (B, 8·nf, x, y, z) into (B, out_channels, 8x, 8y, 8z).

        Args:
            latents: the volume of latents, or a window of it.
            margins: latents of the window around the part wanted, which is decoded as it would be in the whole volume if every
                margin is ``HALO`` or reaches the volume's border (where the zeros beyond it are part of the network). The result
                is that part alone, (B, out_channels, 8·(x - margins), ...), and what no later layer needs is not computed.
        """
        h = latents
        for layer, scale, keep in (
            (self.up3, 2, 4),
            (self.conv5, 1, 2),
            (self.up2, 2, 3),
            (self.conv6, 1, 1),
            (self.up1, 2, 1),
            (self.conv7_k, 1, 0),
        ):
            h, margins = trim(layer(h), tuple((scale * a, scale * b) for a, b in margins), keep)  # type: ignore[arg-type]
        return h


def trim(volume: Tensor, margins: Margins, keep: int) -> tuple[Tensor, Margins]:
    """Cuts margins that are wider than ``keep``; volume (B, C, X, Y, Z)."""
    cuts = [(max(0, before - keep), max(0, after - keep)) for before, after in margins]
    x, y, z = (slice(a, size - b) for (a, b), size in zip(cuts, volume.shape[2:], strict=True))
    (x0, x1), (y0, y1), (z0, z1) = ((min(a, keep), min(b, keep)) for a, b in margins)
    return volume[:, :, x, y, z], ((x0, x1), (y0, y1), (z0, z1))


def _doubling(inner: int, outer: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose3d(inner, outer, 4, stride=2, padding=1), make_norm(norm, outer), nn.ReLU(inplace=True))


def _pair(channels: int, norm: str, dropout: float) -> nn.Sequential:
    # The dropout is always a layer, so that the state-dict keys do not depend on its probability.
    return nn.Sequential(_convolution(channels, norm), nn.Dropout(dropout), _convolution(channels, norm))


def _convolution(channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1), make_norm(norm, channels), nn.ReLU(inplace=True))
