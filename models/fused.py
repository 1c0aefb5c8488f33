"""The fused model: what XZ and YZ planes have given, made one volume by a 3-D network.

A finished run of the lateral model (``--teacher``) restores the planes of a crop seen from both sides; its weights become a part
of this run and stay as they are. A 3-D network reads both results beside the interpolated volume and adds what it finds to their
weighted mean (networks.sides). It learns from truth in 3-D (networks.turned): the volume is turned so that X plays the part of Z,
made coarse, restored, and compared with the slices that were acquired.

Texture (``adv``): planes of the volume in six views must look like slices (networks.losses). What is then in the volume and not
in the mean of both results was invented, and in use any share of it can be left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from models import lateral
from models.base import Terms
from models.lateral import WHOLE, Parts
from models.teacher import Teacher, needs_teacher
from networks.fuser import VolumeFuser
from networks.losses import gradient_ratio
from networks.patchgan import PatchDiscriminator
from networks.sides import mean_of_sides
from networks.turned import acquired_error, turned_sections
from networks.views import resample_z, six_views, to_slices, to_volume, xz_planes, xz_volume
from utils.errors import UserError


@dataclass(frozen=True)
class Fused:
    """What one pass makes of a batch of B crops of n slices.

    Attributes:
        acquired: the slices (B, C, X, Y, n) in [-1, 1], flipped and transposed at random in training.
        turned: the volume with X in the part of Z, restored, (B, C, n·planes, Y, X on the grid of the planes).
        start: the same by both views alone, where the 3-D network starts.
        volume: what is made of the slices themselves, (B, C, X, Y, n·planes); None where nothing judges it.
    """

    acquired: Tensor
    turned: Tensor
    start: Tensor
    volume: Tensor | None

    def detach(self) -> Self:
        """The same without gradient, for the discriminator."""
        return replace(self, volume=None if self.volume is None else self.volume.detach())


class Model(lateral.Model):
    """The 2-D network of a lateral run, frozen, and a 3-D network on its results."""

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """As BaseModel.

        Raises:
            UserError: neither a lateral run nor one of this model to take weights from, or crops too shallow for the profile.
        """
        super().__init__(settings, for_training)
        s = self.settings
        if for_training and not (s["init"] or s["resume"] or s["teacher"]):
            raise UserError("teacher is not set: the fused model reads what a lateral run gives; name it with --teacher RUN")
        if s["cropz"] <= 2 * self.sections.lost:
            raise UserError(
                f"cropz={s['cropz']} slices are too few for the profile along z, which needs {self.sections.lost} at both ends; "
                f"raise it to at least {2 * self.sections.lost + 1}"
            )
        self.G["net_t"] = self.G["net_g"].requires_grad_(False)
        self.G["net_g"] = VolumeFuser(self.sections, channels=s["input_nc"], width=s["fuse_width"], blocks=s["fuse_blocks"])
        if s["adv"] and for_training:
            self.D["net_d"] = PatchDiscriminator(s["output_nc"], s["ndf"], s["netD"])
            self.loss_weights |= dict.fromkeys(("views", "views_fake", "views_real"), s["adv"])

    @property
    def restorer(self) -> nn.Module:
        """The 2-D network."""
        return self.G["net_t"]

    def load_frozen(self) -> None:
        """The 2-D network of the lateral run, for a fresh training."""
        if needs_teacher(self.settings):
            self.teacher = Teacher(self.settings["teacher"], self.settings)
            self.restorer.load_state_dict(self.teacher.network.restorer.state_dict())

    # Training --------------------------------------------------------------------------------------------------------

    @property
    def lacks_noise(self) -> bool:
        """A restored volume has next to none."""
        return True

    def generate(self, batch: Mapping[str, Any]) -> Fused:
        """Restores the crop, turns it, restores it again."""
        acquired = self.oriented(self.volume(batch))
        with torch.no_grad():
            seen = self.seen_planes(to_slices(acquired), len(acquired))
            again = self.seen_planes(turned_sections(mean_of_sides(*seen[1:]), self.sections), len(acquired))
        volume = self.G["net_g"](*seen) if self.wants("views") else None
        return Fused(acquired, self.G["net_g"](*again), mean_of_sides(*again[1:]), volume)

    def seen_planes(self, slices: Tensor, batch: int, parts: Parts = WHOLE) -> tuple[Tensor, Tensor, Tensor]:
        """What the 3-D network reads: slices (B·n, C, X, Y) → three volumes (B, C, parts), interpolated and from both sides."""
        x, y, z = (slice(*part) for part in parts)
        planes = xz_planes(to_volume(slices, batch)[:, :, x, y].float())
        interpolated = xz_volume(self.sections.interpolated(planes), batch)[..., z]
        across_y, across_x = self.views(slices, batch, parts)
        return interpolated, across_y, across_x

    def generator_losses(self, out: Fused) -> Terms:
        """Mean absolute error on the slices acquired; the six views, where they are judged."""
        terms = {"lateral": acquired_error(out.turned, out.acquired, self.sections)}
        if out.volume is not None:
            terms["views"] = self.judged("net_d", six_views(out.volume, self.settings["adv_planes"]), True, generator=True)
        return terms

    def discriminator_losses(self, out: Fused) -> Terms:
        """Slices are real, views of the volume are fake."""
        if out.volume is None:
            return {}
        return {
            "views_fake": self.judged("net_d", six_views(out.volume, self.settings["adv_planes"]), False),
            "views_real": self.judged("net_d", [to_slices(out.acquired)], True),
        }

    def validation_metrics(self, out: Fused) -> dict[str, Tensor]:
        """L1 on the slices acquired, what both views alone have, and sharpness along X, restored, relative to Y and Z."""
        return {
            "lateral": acquired_error(out.turned, out.acquired, self.sections),
            "start_lateral": acquired_error(out.start, out.acquired, self.sections),
            "gradient_ratio": gradient_ratio(out.turned),
        }

    # In use ----------------------------------------------------------------------------------------------------------

    def restore(self, slices: Tensor, batch: int, parts: Parts = WHOLE, texture: float = 0.0) -> Tensor:
        """Sections of volumes → the isotropic volumes.

        Args:
            slices: (B·n, C, X, Y), X and Y even.
            batch: B.
            parts: start and stop along X, Y and Z of what is wanted; the rest is only looked at.
            texture: α in S + α·(X - S), where texture was trained: S is the volume of the lateral run, X what this model makes.

        Returns:
            (B, C, part of X, part of Y, part of n·planes).
        """
        planes, pixels = self.G["net_g"].halo  # type: ignore[misc]
        wide, inner = self.widened(slices, batch, parts, (pixels, pixels, planes))
        seen, first = self.seen_planes(slices, batch, wide), int(wide[2][0]) % self.sections.planes
        if not self.settings["adv"]:
            return self.G["net_g"](*seen, first)[inner]
        start = mean_of_sides(*seen[1:])[inner]
        return torch.lerp(start, self.G["net_g"](*seen, first)[inner], texture) if texture else start

    @property
    def restore_halo(self) -> tuple[int, int, int]:
        """Sections, pixels along X and along Y on each side of a part that :meth:`restore` needs to make it as in the whole."""
        sections, seen = self.restorer.halo  # type: ignore[misc]
        planes, pixels = self.G["net_g"].halo  # type: ignore[misc]
        return sections - -planes // self.sections.planes, seen + pixels, seen + pixels

    def preview(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Volumes (C, X, Y, Z) of the first item: the input interpolated, both views alone, and the isotropic output."""
        with self.evaluating():
            volume = self.volume(batch)[:1]
            seen = self.seen_planes(to_slices(volume), 1)
            made = self.G["net_g"](*seen)
            return {"input (interpolated)": resample_z(volume, made.shape[-1])[0], "both sides": mean_of_sides(*seen[1:])[0]} | {
                "isotropic output": made[0]
            }
