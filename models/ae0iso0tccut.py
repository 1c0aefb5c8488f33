"""The Gaussian model: slices pass through a posterior (Kingma & Welling 2014; Rombach et al. 2022)."""

from typing import Any

from torch import Tensor, nn

from ldm.bottleneck import Code, DiagonalGaussian
from ldm.losses import kl_reconstruction
from models.slice2volume import SliceToVolume
from utils.axes import channels_first, channels_last


class Model(SliceToVolume):
    """KL bottleneck; the isotropic branch leaves the encoder before its middle block (hbranch mid) or after it (z)."""

    code_term = ("kl", "kl_weight")
    reconstruction = staticmethod(kl_reconstruction)  # a likelihood, to be weighed against the KL term

    def add_bottleneck(self, autoencoder: dict[str, Any]) -> None:
        """The 1x1 convolutions around the posterior."""
        width, z_channels = autoencoder["embed_dim"], autoencoder["ddconfig"]["z_channels"]
        given = 1 if autoencoder["start"] == "linear" else 2  # without the log-variance
        self.G["quant_conv"] = nn.Conv2d(given * z_channels, 2 * width, 1)
        self.G["post_quant_conv"] = nn.Conv2d(width, z_channels, 1)
        self.from_encoder = autoencoder["ddconfig"]["branch_point"] == "mid"

    def bottleneck(self, moments: Tensor) -> Code:
        """A sample of the posterior in training, its mean in use."""
        posterior = DiagonalGaussian(moments)
        latent = posterior.sample() if self.training else posterior.mean
        return Code(latent, posterior.kl().mean(), None, moments)

    def branch(self, code: Code, features: Any, batch: int) -> Tensor:
        """From the encoder's last level, or from a second, independent sample of the posterior."""
        if self.from_encoder:
            return self.lift(features.branch, batch)
        return self.lift(self.bottleneck(code.moments).latent, batch)

    def pack(self, slices: Tensor) -> Tensor:
        """Slices (N, C, X, Y) → the posterior's mean (N, h, w, d) in float16, or the encoder's features (N, h, w, c)."""
        code, features = self.encode(slices)
        return channels_last(features.branch if self.from_encoder else DiagonalGaussian(code.moments).mean.half())

    def unpack(self, packed: Tensor) -> Tensor:
        """What :meth:`pack` gave, as latents."""
        return channels_first(packed.float())

    def slices(self, unpacked: Tensor) -> Tensor:
        """From the posterior's mean, or from the features that it is made of."""
        if self.from_encoder:
            unpacked = DiagonalGaussian(self.G["quant_conv"](self.G["encoder"].finish(unpacked))).mean
        return self.reconstruct(unpacked)

    def perceptual_term(self, slices: Tensor, recon: Tensor) -> Tensor:
        """LPIPS counted at every pixel, as the reconstruction is."""
        return super().perceptual_term(slices, recon) * slices[0].numel()
