"""The Gaussian model: slices pass through a posterior (Kingma & Welling 2014; Rombach et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldm.bottleneck import Code, DiagonalGaussian
from ldm.losses import kl_reconstruction
from models.base import Terms
from models.slice2volume import SliceToVolume
from networks.volume_decoder import NO_MARGINS, Margins, VolumeDecoder


class Model(SliceToVolume):
    """KL bottleneck; the isotropic branch leaves the encoder before its middle block (hbranch mid) or after it (z)."""

    def add_bottleneck(self, autoencoder: dict[str, Any]) -> None:
        """The 1x1 convolutions around the posterior."""
        width, z_channels = autoencoder["embed_dim"], autoencoder["ddconfig"]["z_channels"]
        self.G["quant_conv"] = nn.Conv2d(2 * z_channels, 2 * width, 1)
        self.G["post_quant_conv"] = nn.Conv2d(width, z_channels, 1)
        self.from_encoder = autoencoder["ddconfig"]["branch_point"] == "mid"

    def add_losses(self, s: dict[str, Any], autoencoder: dict[str, Any]) -> None:
        """The bottleneck's own term besides."""
        super().add_losses(s, autoencoder)
        self.loss_weights["kl"] = autoencoder["loss"]["kl_weight"]

    def bottleneck(self, moments: Tensor) -> Code:
        """A sample of the posterior in training, its mean in use."""
        posterior = DiagonalGaussian(moments)
        latent = posterior.sample() if self.training else posterior.mode()
        return Code(latent, posterior.kl().mean(), None, moments)

    def branch(self, code: Code, features: Any, batch: int) -> Tensor:
        """From the encoder's last level, or from a second, independent sample of the posterior."""
        if self.from_encoder:
            return self.lift(features.branch, batch)
        return self.lift(self.bottleneck(code.moments).latent, batch)

    def expand(self, stack: Tensor, margins: Margins = NO_MARGINS) -> Tensor:
        """As the codebook models; features of the encoder enter the volume decoder directly."""
        return self.G["net_g"](stack, margins) if self.from_encoder else super().expand(stack, margins)

    @property
    def volume_halo(self) -> tuple[int, int, int]:
        """As the codebook models, less conv_in for features of the encoder."""
        return (VolumeDecoder.HALO,) * 3 if self.from_encoder else super().volume_halo

    def pack(self, slices: Tensor) -> Tensor:
        """Slices (N, C, X, Y) → the posterior's mean (N, d, h, w) in float16, or the encoder's features (N, c, h, w)."""
        code, features = self.encode(slices)
        if self.from_encoder:
            return features.branch
        return DiagonalGaussian(code.moments).mode().half()

    def unpack(self, packed: Tensor) -> Tensor:
        """What :meth:`pack` gave, as latents."""
        return packed.float()

    def reconstruction(self, slices: Tensor, recon: Tensor) -> Tensor:
        """Absolute error summed over a slice's pixels, mean over slices: a likelihood, to be weighed against the KL term."""
        return kl_reconstruction(slices, recon)

    def perceptual_term(self, slices: Tensor, recon: Tensor) -> Tensor:
        """LPIPS counted at every pixel, as the reconstruction is."""
        return super().perceptual_term(slices, recon) * slices[0].numel()

    def code_losses(self, code: Code) -> Terms:
        """Divergence of the posterior from the unit Gaussian, per slice."""
        return {"kl": code.loss}
