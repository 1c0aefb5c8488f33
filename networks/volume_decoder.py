"""ed023e: the 3-D generator that turns a volume of latents into an isotropic volume, eight times larger along every axis."""

from __future__ import annotations

from torch import Tensor, nn

from networks.norms import make_norm


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

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes (B, 8·nf, x, y, z) into (B, out_channels, 8x, 8y, 8z)."""
        quarter = self.conv5(self.up3(latents))
        half = self.conv6(self.up2(quarter))
        return self.conv7_k(self.up1(half))


def _doubling(inner: int, outer: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose3d(inner, outer, 4, stride=2, padding=1), make_norm(norm, outer), nn.ReLU(inplace=True))


def _pair(channels: int, norm: str, dropout: float) -> nn.Sequential:
    # The dropout is always a layer, so that the state-dict keys do not depend on its probability.
    return nn.Sequential(_convolution(channels, norm), nn.Dropout(dropout), _convolution(channels, norm))


def _convolution(channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1), make_norm(norm, channels), nn.ReLU(inplace=True))
