"""The 2-D autoencoder's discriminator: an n-layer PatchGAN (Isola et al. 2017)."""

from torch import Tensor, nn


class NLayerDiscriminator(nn.Module):
    """Judges overlapping patches of slices, (N, in_channels, H, W) → logits (N, 1, H', W'); H' = H/8 - 2 with three layers.

    Convolutions 4x4: ``n_layers`` of stride 2, two of stride 1; BatchNorm in all but the first and the last.
    Convolutions start as N(0, 0.02), gains as N(1, 0.02), shifts as 0. Keys ``main.N``.

    Args:
        in_channels: channels of a slice.
        ndf: width of the first layer; doubled by each layer up to 8·ndf.
        n_layers: convolutions of stride 2.
    """

    def __init__(self, in_channels: int, ndf: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for layer in range(1, n_layers + 1):
            previous, width = width, ndf * min(2**layer, 8)
            stride = 2 if layer < n_layers else 1
            layers += [
                nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():  # Radford et al. 2016
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, slices: Tensor) -> Tensor:
        """Raw logits; large means real."""
        return self.main(slices)
