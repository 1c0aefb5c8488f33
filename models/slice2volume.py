"""The method: sharp slices → codes → a volume that is equally sharp along Z.

A 2-D encoder turns every slice of an anisotropic volume into a small grid of codes. Two decoders read the codes: a 2-D one gives
the slices back, a 3-D one turns the stack of codes into an isotropic volume. The volume is its own supervision: planes cut in
any direction must look like slices (six-view adversarial term), slabs of it projected along Z must match the slices they cover
(projected L1), and its slices must keep the content of the originals (contrastive term).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiment.rules import reads_volume
from ldm.autoencoder import FINISH_HALO
from ldm.bottleneck import Code
from ldm.build import build_autoencoder
from ldm.losses import RECONSTRUCTIONS, adaptive_weight
from models.base import BaseModel, Terms
from models.baseline import Baseline, InterpolatedSlices, RestoredSlices
from models.CUT import PatchContrast
from models.linear_start import FIRST_BLOCKS, begin_linearly
from models.sampling import Sampling
from models.teacher import Teacher
from models.turned import TruthIn3d
from networks.generators import NO_MARGINS, Margins, VolumeDecoder, begin_at_zero, trim
from networks.losses import adversarial, gradient_ratio, hinge_discriminator, ms_ssim_loss, psnr
from networks.patchgan import PatchDiscriminator
from networks.views import (
    between_slices,
    pool_z,
    project,
    project_slices,
    resample_z,
    six_views,
    to_slices,
    to_volume,
    yz_planes,
)
from taming.discriminator import NLayerDiscriminator
from taming.lpips import PerceptualLoss
from utils.geometry import LATENT_STRIDE, Geometry


@dataclass(frozen=True)
class Generated:
    """What one pass makes of a batch of B crops with n slices each.

    Attributes:
        original: the encoded volume (B, C, X, Y, n) in [-1, 1].
        encoded: the slices that were encoded, (B·k, C, X, Y): all n, or with ``spread codes`` the sections around them.
        target: the volume that the isotropic one must agree with; the same as original but in paired translation.
        code: what the bottleneck lets through, latent (B·k, d, X/8, Y/8).
        pyramid: four encoder features of the slices, (B·k, c, X/s, Y/s) for s = 1, 2, 4, 8.
        recon: reconstructed slices (B·k, 1, X, Y), unbounded.
        volume: the isotropic volume (B, C, X, Y, X) in [-1, 1], a little beyond where it adds to interpolated slices; without
            planes where the autoencoder is trained alone.
    """

    original: Tensor
    target: Tensor
    encoded: Tensor
    code: Code
    pyramid: tuple[Tensor, ...]
    recon: Tensor
    volume: Tensor

    def detach(self) -> Generated:
        """The same without gradient, for the discriminators."""
        return replace(self, recon=self.recon.detach(), volume=self.volume.detach())


class SliceToVolume(BaseModel):
    """Encoder, bottleneck, two decoders and their losses. A variant supplies the bottleneck.

    Attributes:
        baseline: what the volume decoder adds to, made of the slices that the 2-D decoder gives; None: it adds to nothing.
        from_encoder: the volume branches off inside the encoder: features of it enter the volume decoder directly.
        decoding: the components of ``G`` that go from codes to slices and volume.
        code_term: name of the bottleneck's own loss term, and of its weight in the autoencoder's settings.
    """

    from_encoder = False
    decoding = ("quantize", "post_quant_conv", "decoder", "net_g", "net_t")
    code_term: tuple[str, str]

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """As BaseModel; ``settings["autoencoder"]`` is the resolved autoencoder (configure_autoencoder)."""
        super().__init__(settings, for_training)
        s = self.settings
        self.geometry = Geometry.from_settings(s)
        self.between = Sampling.of_codes(s)
        self.perceptual: PerceptualLoss | None = None
        self.turned: TruthIn3d | None = None
        self._build_generator(s, s["autoencoder"])
        if for_training:
            self.add_losses(s, s["autoencoder"])

    # Parts -----------------------------------------------------------------------------------------------------------

    def _build_generator(self, s: dict[str, Any], autoencoder: dict[str, Any]) -> None:
        self.G["encoder"], self.G["decoder"] = build_autoencoder(autoencoder, lifted=LATENT_STRIDE * s["ngf"])
        self.add_bottleneck(autoencoder)
        self.baseline: Baseline | None = None
        if not reads_volume(s):
            return
        self.G["net_g"] = VolumeDecoder(s["ngf"], s["output_nc"], s["norm"], dropout=0.5 if s["mc"] else 0.0)
        if s["from_interpolation"]:
            self.baseline = InterpolatedSlices(self.factor, self.first_plane)
        if s["from_teacher"]:
            self.baseline = restored = RestoredSlices(s)
            self.G["net_t"] = restored.network
        if self.baseline:
            begin_at_zero(self.G["net_g"])

    def add_bottleneck(self, autoencoder: dict[str, Any]) -> None:
        """Adds the bottleneck's components to ``G``."""
        raise NotImplementedError

    def initialise(self) -> None:
        """With a linear start, principal components of the first training data."""
        if self.settings["autoencoder"]["start"] == "linear" and not self.weights_loaded:
            begin_linearly(self, FIRST_BLOCKS)

    def add_losses(self, s: dict[str, Any], autoencoder: dict[str, Any]) -> None:
        """What only a training needs: the weights of the loss terms and the networks that learn for them."""
        network, loss = autoencoder["ddconfig"], autoencoder["loss"]
        if not s["nocut"]:
            self.G["netF"] = PatchContrast([network["ch"] * m for m in network["ch_mult"]], s)
        if s["adv"]:
            self.D["net_d"] = PatchDiscriminator(s["output_nc"], s["ndf"], s["netD"])
        if loss["disc_weight"]:
            self.D["discriminator"] = NLayerDiscriminator(network["out_ch"], ndf=loss["disc_ndf"])
        self.disc_start = loss["disc_start"]
        self.loss_weights = {
            "views": s["adv"],
            "projection": s["lamb"],
            "teacher": s["lbteach"] if s["teacher"] else 0.0,
            "lateral": s["lblateral"],
            "ms_ssim": s["lbm_ms_ssim"],
            "recon": 1.0,
            "perceptual": loss["perceptual_weight"],
            "slice_adv": loss["disc_weight"],
            "nce": 0.0 if s["nocut"] else s["lbNCE"],
            "views_fake": s["adv"],
            "views_real": s["adv"],
            "slice_disc": 1.0 if loss["disc_weight"] else 0.0,
            self.code_term[0]: loss[self.code_term[1]],
        }

    def load_frozen(self) -> None:
        """LPIPS and the teacher, where they have a weight; truth in 3-D has the operator of a teacher."""
        if self.wants("perceptual"):
            self.perceptual = PerceptualLoss()
        if self.wants("teacher") or "net_t" in self.G:
            self.teacher = Teacher(self.settings["teacher"], self.settings)
            if "net_t" in self.G:
                self.G["net_t"].load_state_dict(self.teacher.network.restorer.state_dict())
        if self.wants("lateral"):
            self.turned = TruthIn3d(self.settings, self.teacher and self.teacher.sections)

    # Generation ------------------------------------------------------------------------------------------------------

    def bottleneck(self, moments: Tensor) -> Code:
        """The code of encoder outputs (N, z, h, w)."""
        raise NotImplementedError

    def encode(self, slices: Tensor) -> tuple[Code, Any]:
        """Slices (N, C, X, Y) → their code and the encoder's features."""
        features = self.G["encoder"](slices)
        return self.bottleneck(self.G["quant_conv"](features.latent)), features

    def reconstruct(self, latent: Tensor) -> Tensor:
        """Latent (N, d, h, w) → slices (N, 1, 8h, 8w)."""
        return self.G["decoder"](self.G["post_quant_conv"](latent))

    @property
    def factor(self) -> int:
        """Isotropic planes per slice that is encoded."""
        return self.geometry.factor if self.between is None else round(self.between.planes)

    @property
    def first_plane(self) -> float:
        """The isotropic plane (fractional) that the first slice encoded is centred on."""
        return self.geometry.plane_of_slice(0, self.settings["l1how"]) if self.between is None else self.between.centre

    def to_encode(self, volume: Tensor) -> Tensor:
        """Of a volume (B, C, X, Y, n) the slices that are encoded (B·k, C, X, Y)."""
        return to_slices(volume if self.between is None else self.between.sections(volume)).contiguous()

    def lift(self, latent: Tensor, batch: int) -> Tensor:
        """Latents of B stacks (B·k, d, h, w) → isotropic volumes (B, C, 8h, 8w, k·planes per slice encoded)."""
        if self.between is not None:
            latent = to_slices(self.between.slices(to_volume(latent, batch)))
        return self.expand(self.restack(latent, batch))

    def spread(self, latent: Tensor, slices: range, first: int, count: int) -> Tensor:
        """Latents of slices between those of the ones encoded.

        Args:
            latent: of a stack's encoded slices ``first`` and on, (k, d, h, w), all that ``between.under`` names.
            slices: which ones are wanted.
            count: encoded slices of the whole stack.
        """
        if self.between is None:
            return latent
        return to_slices(between_slices(to_volume(latent, 1), self.between.places(slices, count), first))

    def restack(self, latent: Tensor, batch: int = 1) -> Tensor:
        """Latents of B stacks (B·n, d, h, w) → what the volume decoder reads, (B, d, h, w, n·resizebranch/downbranch)."""
        stack = pool_z(to_volume(latent, batch), self.geometry.downbranch)
        return resample_z(stack, stack.shape[-1] * self.geometry.resizebranch)

    def expand(self, stack: Tensor, margins: Margins = NO_MARGINS) -> Tensor:
        """Stacks (B, d, h, w, m) → isotropic volumes (B, C, 8h, 8w, 8m), without margins (see VolumeDecoder.forward)."""
        if not self.from_encoder:
            stack = to_volume(self.G["decoder"].conv_in(to_slices(stack)), stack.shape[0])
            stack, margins = trim(stack, margins, VolumeDecoder.HALO)
        return self.G["net_g"](stack, margins)

    def branch(self, code: Code, features: Any, batch: int) -> Tensor:
        """The isotropic volume from what leaves the encoder; a variant may branch off elsewhere."""
        return self.lift(code.latent, batch)

    def sources(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The volume to encode and the volume to agree with: two channels with tc, else folder a and folder b."""
        images = batch["img"]
        if self.settings["tc"]:
            original = torch.cat(images, dim=1)
            return original, original
        return images[0], images[-1]

    def generate(self, batch: Mapping[str, Any]) -> Generated:
        """One pass; see :class:`Generated`."""
        original, target = self.sources(batch)
        encoded = self.to_encode(original)
        return Generated(original, target, encoded, *self._made(encoded, original.shape[0]))

    def _made(self, slices: Tensor, batch: int) -> tuple[Code, tuple[Tensor, ...], Tensor, Tensor]:
        """Code, pyramid, recon and volume of slices (B·k, C, X, Y), see :class:`Generated`."""
        code, features = self.encode(slices)
        recon, volume = self.reconstruct(code.latent), to_volume(slices, batch)[..., :0]
        if "net_g" in self.G:
            volume = self.branch(code, features, batch)
        if self.baseline:
            volume = volume + self.baseline(to_volume(recon.detach(), batch), range(volume.shape[-1]))
        return code, features.pyramid, recon, volume

    # In use: whole volumes in pieces (package inference) -------------------------------------------------------------

    @property
    def volume_halo(self) -> tuple[int, int, int]:
        """Latents (z, x, y) on each side of a part of the stack that :meth:`expand` needs to decode it as in the whole volume."""
        in_plane = VolumeDecoder.HALO + (0 if self.from_encoder else 1)  # conv_in adds one
        return VolumeDecoder.HALO, in_plane, in_plane

    def slice_halo(self, part: str) -> tuple[int, int] | None:
        """How far ``encoder`` or ``decoder`` looks beyond its place (ldm.autoencoder); None: over the whole slice.

        Where features are packed, the encoder's last layers are a part of the way back to slices.
        """
        halo, more = self.G[part].halo(), FINISH_HALO if self.from_encoder and part == "decoder" else 0  # type: ignore[operator]
        return halo and (halo[0] + more, halo[1] + more)

    def pack(self, slices: Tensor) -> Tensor:
        """Slices (N, C, X, Y) → what the volume is decoded from: codes (N, h, w), or with a last axis of levels or channels."""
        code, _ = self.encode(slices)
        assert code.indices is not None
        return code.indices

    def unpack(self, packed: Tensor) -> Tensor:
        """What :meth:`pack` gave → latents (N, d, h, w)."""
        return self.G["quantize"].lookup(packed)

    def slices(self, unpacked: Tensor) -> Tensor:
        """What :meth:`unpack` gave → the reconstructed slices (N, 1, 8h, 8w)."""
        return self.reconstruct(unpacked)

    # Losses ----------------------------------------------------------------------------------------------------------

    def generator_losses(self, out: Generated) -> Terms:
        """What the generator side descends, unweighted."""
        s, terms = self.settings, {}
        if self.wants("views"):
            terms["views"] = self.fooling("net_d", out.volume, self.shown_views)
        if self.wants("projection"):
            terms["projection"] = F.l1_loss(
                project(out.volume, self.geometry.factor, self.geometry.skip, s["l1how"]),
                project_slices(out.target, self.geometry.skip, s["l1how"], s["slabtarget"]),
            )
        if self.wants("teacher"):
            assert self.teacher is not None
            terms["teacher"] = self.teacher.error(out.volume, to_slices(out.target), s["teacher_planes"])
        if self.turned is not None:
            terms["lateral"] = self.turned.error(out.volume, out.original, self._restored)
        if self.wants("ms_ssim"):
            terms["ms_ssim"] = self.structure(out)
        terms |= self.slice_losses(out)
        if self.wants("nce"):
            terms["nce"] = self.contrast(out)
        return terms

    def shown_views(self, volume: Tensor) -> list[Tensor]:
        """What the discriminator of planes sees of a generated volume, see :func:`networks.views.six_views`."""
        return six_views(volume, self.settings["adv_planes"])

    def _restored(self, slices: Tensor, batch: int) -> Tensor:
        """The volume of slices (B·n, C, X, Y)."""
        return self._made(self.to_encode(to_volume(slices, batch)), batch)[-1]

    def structure(self, out: Generated) -> Tensor:
        """1 - MS-SSIM (Wang et al. 2003) of ZY planes with those of the volume interpolated along Z."""
        interpolated = resample_z(out.target, out.volume.shape[-1])
        return ms_ssim_loss(yz_planes(out.volume), yz_planes(interpolated))

    def slice_losses(self, out: Generated) -> Terms:
        """The 2-D autoencoder's terms (Esser et al. 2021, eq. 4 and 7): reconstruction, perceptual, adversarial, code."""
        slices = out.encoded[:, :1]
        terms = {"recon": self.reconstruction(slices, out.recon)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_term(slices, out.recon)
        if self._slice_discriminator_acts():
            fooled = adversarial(self.D["discriminator"](out.recon), True, "hinge", generator=True)
            weight = adaptive_weight(self.weigh(terms), fooled, self.G["decoder"].conv_out.weight)
            terms["slice_adv"] = weight * fooled
        return terms | {self.code_term[0]: out.code.loss}

    def reconstruction(self, slices: Tensor, recon: Tensor) -> Tensor:
        """Error of the reconstructed slices, as the autoencoder's settings take it."""
        return RECONSTRUCTIONS[self.settings["autoencoder"]["loss"]["reconstruction"]](slices, recon)

    def perceptual_term(self, slices: Tensor, recon: Tensor) -> Tensor:
        """Mean LPIPS of the reconstructed slices (Zhang et al. 2018)."""
        assert self.perceptual is not None
        return self.perceptual(slices, recon).mean()

    def contrast(self, out: Generated) -> Tensor:
        """PatchNCE (Park et al. 2020): generated slices (query) keep the content of the originals (key)."""
        made = project(out.volume, self.factor, 1, "dsp")  # the plane in the middle of each slice
        query = self.G["encoder"](to_slices(made)).pyramid
        batch = out.original.shape[0]
        return self.G["netF"]([to_volume(q, batch) for q in query], [to_volume(k, batch) for k in out.pyramid])

    def _slice_discriminator_acts(self) -> bool:
        return self.wants("slice_adv") and self.generator_steps >= self.disc_start

    def discriminator_losses(self, out: Generated) -> Terms:
        """Real are only the slices of the target; the six views of the volume are fake."""
        terms = {}
        if self.wants("views_fake"):
            terms["views_fake"] = self.finding("net_d", out.volume, self.shown_views)
            terms["views_real"] = self.judged("net_d", [to_slices(out.target)], True)
        if self._slice_discriminator_acts():
            net = self.D["discriminator"]
            terms["slice_disc"] = hinge_discriminator(net(out.encoded[:, :1]), net(out.recon))
        return terms

    def validation_metrics(self, out: Generated) -> dict[str, Tensor]:
        """Reconstruction and projection errors in intensity units of [-1, 1], and sharpness along Z relative to XY."""
        slices = out.encoded[:, :1]
        metrics = {
            "recon": F.l1_loss(out.recon, slices),
            "recon_psnr": psnr(out.recon, slices),
        }
        if "net_g" not in self.G:
            return metrics
        planes = project(out.volume, self.geometry.factor, 1, self.settings["l1how"])
        return metrics | {"projection": F.l1_loss(planes, out.target), "gradient_ratio": gradient_ratio(out.volume)}

    def preview(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Volumes (C, X, Y, Z) of the first item for a picture: input, reconstructed slices, isotropic output.

        Of two channels only the first is reconstructed.
        """
        with self.evaluating():
            out = self.generate(batch)
        depth = out.volume.shape[-1] or out.original.shape[-1]
        recon = to_volume(out.recon, out.original.shape[0])
        return {
            "input (interpolated)": resample_z(out.original, depth)[0],
            "reconstructed slices" + (" (channel 0)" if self.settings["tc"] else ""): resample_z(recon, depth)[0],
        } | ({"isotropic output": out.volume[0]} if "net_g" in self.G else {})
