"""Texture: grain that is made of noise, added to the volume of a finished lateral run where its sections say nothing.

A lateral run gives the volume that is closest on average, and such a volume is smoother than slices are. Its network becomes a
part of this run (``--teacher``) and stays as it is; a 3-D network turns noise into what is lacking (networks.grain). It learns
from power spectra: XZ, YZ and XY planes of the volume must have, at every frequency and in every direction, the power that slices
have. Of all that does it, the least is wanted. What is added is invented, and in use any share of it can be left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment.teachers import needs_teacher
from models import lateral
from models.base import Terms
from models.lateral import WHOLE, Parts
from models.teacher import Teacher
from networks.grain import GrainMaker, Places
from networks.losses import gradient_ratio, power_error
from networks.views import resample_z, to_slices, xz_planes, yz_planes
from utils.machine import lay_channels_last

_AT_ONCE = 64  # rows in use that go through the 3-D network together
_FAR = 2**31  # noise of a training is that of places drawn within


@dataclass(frozen=True)
class Textured:
    """What one pass makes of a batch of B crops of n slices.

    Attributes:
        acquired: the slices (B, C, X, Y, n) in [-1, 1], flipped and transposed at random in training.
        start: the lateral run's volume, (B, C, X, Y, n·planes).
        volume: the same with grain.
    """

    acquired: Tensor
    start: Tensor
    volume: Tensor

    def detach(self) -> Self:
        """The same without gradient."""
        return replace(self, volume=self.volume.detach())


class Model(lateral.Model):
    """The 2-D network of a lateral run, frozen, and a 3-D network that makes grain."""

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """As BaseModel."""
        super().__init__(settings, for_training)
        s = self.settings
        self.G["net_t"] = self.G["net_g"].requires_grad_(False)
        self.G["net_g"] = GrainMaker(self.sections, s["input_nc"], s["grain_width"])
        lay_channels_last(self.G["net_g"])  # a third less time in 32 bits, and less memory
        self.loss_weights = {"power": 1.0, "start": s["lbstart"]} if for_training else {}

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
        """It sees slices as they are."""
        return False

    def generate(self, batch: Mapping[str, Any]) -> Textured:
        """Restores the crop and adds grain."""
        acquired = self.oriented(self.volume(batch))
        with torch.no_grad():
            start = super().restore(to_slices(acquired), len(acquired))
        corner = torch.randint(_FAR, (len(start), 3)) // self.sections.planes * self.sections.planes
        return Textured(acquired, start, start + self.G["net_g"](start, self._around(start, corner)))

    def _around(self, volume: Tensor, corner: Tensor) -> Places:
        """Places of the voxels of volumes (B, C, X, Y, Z) whose first ones lie at corners (B, 3)."""
        corner = corner.to(volume.device, non_blocking=True)
        return [corner[:, axis, None] + torch.arange(n, device=volume.device) for axis, n in enumerate(volume.shape[2:])]

    def generator_losses(self, out: Textured) -> Terms:
        """How far the power of its planes is from that of slices; the square of what was added."""
        return {"power": self._power_error(out.volume, out), "start": functional.mse_loss(out.volume, out.start)}

    def _power_error(self, volume: Tensor, out: Textured) -> Tensor:
        slices, planes = to_slices(out.acquired), (xz_planes(volume), yz_planes(volume), to_slices(volume))
        return torch.stack([power_error(family, slices) for family in planes]).mean()

    def validation_metrics(self, out: Textured) -> dict[str, Tensor]:
        """Both terms, the error in power that the lateral run's volume has, and sharpness along Z relative to X and Y."""
        start = {"start_power": self._power_error(out.start, out)}
        return {**self.generator_losses(out), **start, "gradient_ratio": gradient_ratio(out.volume)}

    # In use ----------------------------------------------------------------------------------------------------------

    def restore(
        self, slices: Tensor, batch: int, parts: Parts = WHOLE, texture: float = 0.0, places: Places | None = None
    ) -> Tensor:
        """Sections of volumes → the isotropic volumes.

        Args:
            slices: (B·n, C, X, Y), X and Y even.
            batch: B.
            parts: start and stop along X, Y and Z of what is wanted; the rest is only looked at.
            texture: α in S + α·grain: S is the volume of the lateral run.
            places: where X, Y and the planes of all slices lie in the volumes that they are parts of; unset: from 0 on.

        Returns:
            (B, C, part of X, part of Y, part of n·planes).
        """
        if not texture:
            return super().restore(slices, batch, parts)
        wide, inner = self.widened(slices, batch, parts, (self.G["net_g"].halo,) * 3)  # type: ignore[arg-type]
        start = super().restore(slices, batch, wide)
        if places is None:
            places = self._around(start, torch.tensor([[low for low, _ in wide]] * batch))
        else:
            places = [along[:, low:high] for along, (low, high) in zip(places, wide, strict=True)]
        return (start + texture * self._grain(start, places))[inner]

    def _grain(self, volume: Tensor, places: Places) -> Tensor:
        """Grain for volumes (B, C, X, Y, Z), made of few rows at a time, to bound memory."""
        network, (x, *others), rows = self.G["net_g"], places, volume.shape[2]
        made = []
        for low in range(0, rows, _AT_ONCE):
            first = max(0, low - network.halo)  # type: ignore[operator]
            seen = slice(first, low + _AT_ONCE + network.halo)  # type: ignore[operator]
            made.append(network(volume[:, :, seen], [x[:, seen], *others])[:, :, low - first : low - first + _AT_ONCE])
        return torch.cat(made, dim=2)

    @property
    def restore_halo(self) -> tuple[int, int, int]:
        """Sections, pixels along X and along Y on each side of a part that :meth:`restore` needs to make it as in the whole."""
        sections, *pixels = super().restore_halo
        grain = self.G["net_g"].halo
        return sections - -grain // self.sections.planes, *(seen + grain for seen in pixels)  # type: ignore[operator, return-value]

    def preview(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Volumes (C, X, Y, Z) of the first item: the input interpolated, the lateral run's, and that with grain."""
        with self.evaluating():
            volume = self.volume(batch)[:1]
            start, made = (self.restore(to_slices(volume), 1, texture=share) for share in (0.0, 1.0))
            return {"input (interpolated)": resample_z(volume, made.shape[-1])[0], "texture 0": start[0]} | {
                "isotropic output": made[0]
            }
