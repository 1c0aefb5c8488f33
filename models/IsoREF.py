"""The restoration model: interpolate the volume along Z, then sharpen it with a 3-D U-Net, optionally in a cycle.

Planes of the restored volume, one orientation at a time, must look like slices (adversarial term); slabs of it projected along Z
must match those of the interpolated volume (projected L1); its features must stay those of the interpolated volume, place by
place (contrastive term). In the cycle a second U-Net degrades the restored volume again: the result must equal the interpolated
volume, and look like the original to one discriminator for each orientation (Zhu et al. 2017).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import BaseModel, Terms
from models.CUT import PatchContrast
from models.teacher import Teacher
from models.turned import TruthIn3d
from networks.generators import UNet3d, begin_at_zero
from networks.losses import gradient_ratio
from networks.patchgan import PatchDiscriminator
from networks.views import isoref_views, project, resample_z, six_views, swap_in_plane, to_slices, to_volume
from utils.geometry import Geometry


@dataclass(frozen=True)
class Restored:
    """What one pass makes of a batch.

    Attributes:
        original: the thinned volume (B, 1, X, Y, n) in [-1, 1].
        interpolated: the same, trilinear along Z to a cube (B, 1, X, Y, X).
        pyramid: four encoder features of the interpolated volume.
        volume: the restored cube (B, 1, X, Y, X) in [-1, 1], a little beyond where it adds to the interpolated one.
        back: the restored cube degraded again; None without the cycle, and in use.
    """

    original: Tensor
    interpolated: Tensor
    pyramid: list[Tensor]
    volume: Tensor
    back: Tensor | None

    def detach(self) -> Self:
        """The same without gradient, for the discriminators."""
        return replace(self, volume=self.volume.detach(), back=None if self.back is None else self.back.detach())


class Model(BaseModel):
    """U-Net on the interpolated volume; adversarial views, projected L1, PatchNCE and a cycle through a second U-Net."""

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """As BaseModel."""
        super().__init__(settings, for_training)
        s = self.settings
        self.geometry = Geometry.from_settings(s)
        self.cycle = for_training and not s["nocyc"]
        self.turned: TruthIn3d | None = None
        self._build_generators(s)
        if for_training:
            self._add_losses(s)

    def _add_losses(self, s: dict[str, Any]) -> None:
        if not s["nocut"]:
            self.G["netF"] = PatchContrast([s["ngf"] * m for m in (1, 2, 4, 8)], s)
        for name in ("net_d", "net_dzy", "net_dzx") if self.cycle else ("net_d",) if s["adv"] else ():
            self.D[name] = PatchDiscriminator(s["output_nc"], s["ndf"], s["netD"])
        back = float(self.cycle)
        self.loss_weights = {
            "views": s["adv"],
            "projection": s["lamb"],
            "teacher": s["lbteach"] if s["teacher"] else 0.0,
            "lateral": s["lblateral"],
            "views_back": back,
            "cycle": s["lambB"] * back,
            "nce": 0.0 if s["nocut"] else s["lbNCE"],
            "views_fake": s["adv"],
            "views_real": s["adv"],
            "back_fake": back,
            "back_real": back,
        }

    def _build_generators(self, s: dict[str, Any]) -> None:
        encode, decode = s["gdim"].split("_")
        shape = {"nf": s["ngf"], "in_channels": s["input_nc"], "out_channels": s["output_nc"], "norm": s["norm"]}
        shape["dropout"] = 0.5 if s["mc"] else 0.0
        self.G["net_g"] = UNet3d(**shape, encode=encode, decode=decode)
        if s["from_interpolation"]:
            begin_at_zero(self.G["net_g"])
        if self.cycle:
            self.G["net_gback"] = UNet3d(**shape, encode="3d", decode="1d")

    def load_frozen(self) -> None:
        """The teacher, where it has a weight; truth in 3-D has its operator."""
        if self.wants("teacher"):
            self.teacher = Teacher(self.settings["teacher"], self.settings)
        if self.wants("lateral"):
            self.turned = TruthIn3d(self.settings, self.teacher and self.teacher.sections)

    def generate(self, batch: Mapping[str, Any]) -> Restored:
        """One pass; in training X and Y change places in half of the batches."""
        original = batch["img"][0]
        if self.training and self.draw_swap():
            original = swap_in_plane(original)
        interpolated = resample_z(original, self.geometry.cropsize)
        pyramid = self.G["net_g"].encode(interpolated)
        volume = self._sharpened(interpolated, self.G["net_g"].decode(pyramid))
        back = self.G["net_gback"](volume) if self.cycle and self.training else None
        return Restored(original, interpolated, pyramid, volume, back)

    def restore(self, slices: Tensor, batch: int) -> Tensor:
        """Slices (B·Z, C, X, Y) of volumes interpolated along Z → sharpened volumes (B, C, X, Y, Z)."""
        interpolated = to_volume(slices, batch).contiguous()
        return self._sharpened(interpolated, self.G["net_g"](interpolated))

    def _made(self, slices: Tensor, batch: int) -> Tensor:
        """Slices (B·n, C, X, Y) → the restored volumes (B, C, X, Y, n·planes)."""
        volume = to_volume(slices, batch)
        return self.restore(to_slices(resample_z(volume, volume.shape[-1] * self.geometry.factor)), batch)

    def _sharpened(self, interpolated: Tensor, made: Tensor) -> Tensor:
        """The restored volume, from what the network makes of the interpolated one."""
        return interpolated + made.float() if self.settings["from_interpolation"] else made

    def draw_swap(self) -> bool:
        """Whether X and Y change places in this batch."""
        return bool(torch.rand(()) < 0.5)

    def draw_view_group(self) -> int:
        """Which of the three groups of views a discriminator sees next."""
        return int(torch.randint(3, ()))

    def _some_views(self, volume: Tensor) -> list[Tensor]:
        return isoref_views(volume, self.draw_view_group(), self.settings["adv_planes"])

    def _all_views(self, volume: Tensor, real: bool, generator: bool = False) -> Tensor:
        """Each pair of views before the discriminator of its plane."""
        views = six_views(volume, self.settings["adv_planes"])
        pairs = {"net_dzy": views[:2], "net_dzx": views[2:4], "net_d": views[4:]}
        return torch.stack([self.judged(name, pair, real, generator) for name, pair in pairs.items()]).mean()

    def generator_losses(self, out: Restored) -> Terms:
        """What the generators descend, unweighted."""
        terms = {}
        if self.wants("views"):
            terms["views"] = self.judged("net_d", self._some_views(out.volume), True, generator=True)
        if self.wants("projection"):
            terms["projection"] = self._projected_l1(out)
        if self.teacher is not None:
            planes = self.settings["teacher_planes"]
            terms["teacher"] = self.teacher.error(out.volume, to_slices(out.original), planes)
        if self.turned is not None:
            terms["lateral"] = self.turned.error(out.volume, out.original, self._made)
        if out.back is not None:
            terms["views_back"] = self._all_views(out.back, True, generator=True)
        if out.back is not None and self.wants("cycle"):
            terms["cycle"] = F.l1_loss(out.back, out.interpolated)
        if self.wants("nce"):
            terms["nce"] = self.contrast(out)
        return terms

    def contrast(self, out: Restored) -> Tensor:
        """PatchNCE (Park et al. 2020): the restored volume (query) keeps the content of the interpolated one (key)."""
        return self.G["netF"](self.G["net_g"].encode(out.volume), out.pyramid)

    def _projected_l1(self, out: Restored) -> Tensor:
        hows = ("max", "min") if self.settings["l1how"] == "maxmin" else (self.settings["l1how"],)
        slab = self.geometry.factor, self.geometry.skip
        pairs = [[project(volume, *slab, how) for volume in (out.volume, out.interpolated)] for how in hows]
        return torch.stack([F.l1_loss(*pair) for pair in pairs]).mean()

    def discriminator_losses(self, out: Restored) -> Terms:
        """Slices of the original are real; views of the restored volume and of the cycle's result are fake."""
        terms = {}
        if self.wants("views_fake"):
            terms["views_fake"] = self.judged("net_d", self._some_views(out.volume), False)
            terms["views_real"] = self.judged("net_d", [to_slices(out.original)], True)
        if out.back is not None:
            terms["back_fake"] = self._all_views(out.back, False)
            terms["back_real"] = self._all_views(out.original, True)
        return terms

    def validation_metrics(self, out: Restored) -> dict[str, Tensor]:
        """Projection error and sharpness along Z relative to XY."""
        return {"projection": self._projected_l1(out), "gradient_ratio": gradient_ratio(out.volume)}

    def preview(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Volumes (C, X, Y, Z) of the first item for a picture."""
        with self.evaluating():
            out = self.generate(batch)
        return {"input (interpolated)": out.interpolated[0], "isotropic output": out.volume[0]}
