"""The patch discriminator that judges planes of the isotropic volume."""

from torch import Tensor, nn

# Outputs of the stride-2 convolutions, in units of ndf. A larger patch number means fewer of them (and so smaller patches).
_WIDTHS = {"patch_16": (1, 2, 4, 8), "patch_8": (1, 2, 2, 4, 8), "patch_4": (1, 2, 2, 4, 4, 8)}


class PatchDiscriminator(nn.Module):
    """Convolutional discriminator with one logit per patch (N, in_channels, H, W) -> (N, 1, ~H/reduction, ~W/reduction).

    Every layer normalises an image on its own, so images may be batched freely without changing a logit.
    """

    def __init__(self, in_channels: int, ndf: int, name: str = "patch_16") -> None:
        """Builds the network with PyTorch's default initialisation.

        Args:
            in_channels: channels of the images.
            ndf: width of the first layer.
            name: ``patch_16``, ``patch_8`` or ``patch_4``, as the option ``netD`` has them.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for index, width in enumerate(_WIDTHS[name]):
            layers.append(nn.Conv2d(channels, width * ndf, 4, stride=2, padding=1))
            if index:
                layers.append(nn.InstanceNorm2d(width * ndf))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = width * ndf
        layers += [nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(channels, 1, 4, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of real against generated; of two or more patches, which the last normalisation needs."""
        return self.model(images)
