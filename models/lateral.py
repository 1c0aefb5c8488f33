"""Lateral self-supervision: slices that are degraded once more along one in-plane axis teach how to undo it along z.

A slice is sharp along both of its axes; the volume is not along its third. The operator that made the sections
(networks.sections) is applied to the rows of slices, and a 2-D network learns to restore them (Weigert et al. 2018; Deng et al.
2020). In use it reads the XZ and the YZ planes of the volume, whose rows are its sections, and joins both results. Nothing
judges the texture: the result is the one that is closest on average, and blurred where the sections do not tell.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import BaseModel, Terms
from networks.losses import octave_power, psnr
from networks.noise import Noise, measured_noise
from networks.plane_restorer import PlaneRestorer
from networks.sections import Sections, profile_of
from networks.sides import REACH, mean_of_sides
from networks.views import resample_z, swap_in_plane, to_slices, to_volume, xz_planes, xz_volume, yz_planes, yz_volume
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE, Geometry
from utils.machine import lay_channels_last

log = logging.getLogger("isoscope")

Parts = Sequence[tuple[int, int | None]]
WHOLE: Parts = ((0, None), (0, None), (0, None))
_AT_ONCE = {"cpu": 32}  # planes in use that go through the network together
_LEAST_SECTIONS = 4  # of a patch, for the network to have something to learn from
_LEAST_PERIOD = 2  # pixels: the finest that there is
_ERRORS = {"absolute": F.l1_loss, "squared": F.mse_loss}
_MEASURED = 32  # samples in which noise is measured


@dataclass(frozen=True)
class Restored:
    """What one pass makes of a batch of N slices, each flipped and transposed at random in training.

    Attributes:
        sections: the slices seen as sections, (N, C, n, W).
        truth: the rows that the sections stand for, (N, C, n·planes, W) in [-1, 1].
        planes: what the network makes of the sections, of the same shape.
    """

    sections: Tensor
    truth: Tensor
    planes: Tensor


class Model(BaseModel):
    """One 2-D network, L1 to the slices themselves."""

    betas = (0.9, 0.99)

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """As BaseModel."""
        super().__init__(settings, for_training)
        s = self.settings
        self.sections = Sections(s["uprate"], s["axial_sampling"], profile_of(s["axial_sigma"], s["axial_taps"]))
        self.geometry = Geometry.from_settings(s)
        self.shown_slices = math.ceil(s["cropsize"] / s["uprate"])  # a cube: of the few slices of a crop nothing is seen along z
        seen = int((s["cropsize"] - 2 * self.sections.margin) / s["uprate"])
        if seen < _LEAST_SECTIONS:
            least = _LEAST_SECTIONS * s["uprate"] + 2 * self.sections.margin
            raise UserError(
                f"cropsize={s['cropsize']} holds {max(seen, 0)} sections of {s['uprate']:g} pixels beside a margin of "
                f"{self.sections.margin} for the profile; raise it to at least {math.ceil(least / LATENT_STRIDE) * LATENT_STRIDE}"
            )
        network = PlaneRestorer(self.sections, s["input_nc"], s["ngf"], s["blocks"], s["fine_width"])
        lay_channels_last(network)  # a sixth less time
        self.G["net_g"] = network
        self.loss_weights = {"lateral": 1.0} if for_training else {}
        if for_training and s.get("lbpower"):
            if s["uprate"] < _LEAST_PERIOD:
                raise UserError(
                    f"lbpower={s['lbpower']:g} asks for an octave beyond the sections', and uprate={s['uprate']:g} leaves none; "
                    f"set lbpower 0, or an uprate of {_LEAST_PERIOD} or more"
                )
            self.loss_weights["power"] = s["lbpower"]

    def initialise(self) -> None:
        """Measures the noise of the training's first slices, the same on every process."""
        if not (self.lacks_noise and self.settings["axial_noise"]):
            return
        dataset = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        numbers = np.linspace(0, len(dataset) - 1, min(len(dataset), _MEASURED)).astype(int)
        volumes = [self.volume({"img": [image[None] for image in dataset[0, int(n)]["img"]]}) for n in numbers]
        self.sections = replace(self.sections, noise=measured_noise(torch.cat([to_slices(v).flatten(0, 1) for v in volumes])))
        dark, bright = self.sections.noise.variance(torch.tensor([self.sections.noise.dark, 1.0])).sqrt().tolist()
        log.info("noise of the slices: standard deviation %.2g where dark, %.2g where bright (grey values span 2)", dark, bright)

    @property
    def lacks_noise(self) -> bool:
        """Whether what the network is shown in training has less noise than slices."""
        return self.sections.noise_removed > 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the noise that was measured."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["noise"] = asdict(self.sections.noise)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back."""
        super().on_load_checkpoint(checkpoint)
        self.sections = replace(self.sections, noise=Noise(**checkpoint["noise"]))

    def volume(self, batch: Mapping[str, Any]) -> Tensor:
        """The crops of a batch, (B, C, X, Y, n)."""
        return torch.cat(batch["img"], dim=1) if self.settings["tc"] else batch["img"][0]

    def generate(self, batch: Mapping[str, Any]) -> Restored:
        """Degrades the rows of every slice, and restores them."""
        sections, truth = self.sections.pair(to_slices(self.oriented(self.volume(batch))))
        return Restored(sections, truth, self.G["net_g"](sections))

    def oriented(self, volume: Tensor) -> Tensor:
        """A volume (B, C, X, Y, n), in training flipped and transposed in-plane at random."""
        if not self.training:
            return volume
        swapped, *mirrored = self.draw_orientation()
        volume = swap_in_plane(volume) if swapped else volume
        return volume.flip([axis for axis, mirror in zip((2, 3), mirrored, strict=True) if mirror])

    def draw_orientation(self) -> list[bool]:
        """Whether X and Y change places, and whether each is mirrored, in this batch."""
        return (torch.rand(3) < 0.5).tolist()

    def generator_losses(self, out: Restored) -> Terms:
        """Mean error of the restored rows; how far their power is from that wanted, as the logarithm of a ratio."""
        terms = {"lateral": _ERRORS[self.settings["lateral_error"]](out.planes, out.truth)}
        if self.wants("power"):
            share = octave_power(out.planes, out.truth, self.sections.planes)
            terms["power"] = (share / self.settings["power"]).clamp_min(1e-6).log().abs()
        return terms

    def discriminator_losses(self, out: Any) -> Terms:
        """There is no discriminator."""
        return {}

    def validation_metrics(self, out: Restored) -> dict[str, Tensor]:
        """L1 and PSNR (peak 2, the range of [-1, 1]) of the restored rows, and what cubic interpolation has."""
        interpolated = self.sections.interpolated(out.sections)
        return {
            "lateral": F.l1_loss(out.planes, out.truth),
            "lateral_psnr": psnr(out.planes, out.truth),
            "interpolation_psnr": psnr(interpolated, out.truth),
        }

    # In use ----------------------------------------------------------------------------------------------------------

    @property
    def restorer(self) -> nn.Module:
        """The 2-D network."""
        return self.G["net_g"]

    def restore(self, slices: Tensor, batch: int, parts: Parts = WHOLE) -> Tensor:
        """Sections of volumes → the isotropic volumes, of what XZ and YZ planes give (networks.sides).

        Args:
            slices: (B·n, C, X, Y), X and Y even.
            batch: B.
            parts: start and stop along X, Y and Z of what is wanted; the rest is only looked at.

        Returns:
            (B, C, part of X, part of Y, part of n·planes).
        """
        wide, inner = self.widened(slices, batch, parts, (REACH, REACH, 0))
        return mean_of_sides(*self.views(slices, batch, wide))[inner]

    def widened(self, slices: Tensor, batch: int, parts: Parts, by: tuple[int, int, int]) -> tuple[Parts, tuple[slice, ...]]:
        """Parts with more on each side, as far as there is any and at even pixels; and where they lie in the result."""
        sizes = *slices.shape[2:], len(slices) // batch * self.sections.planes
        wide: list[tuple[int, int | None]] = []
        inner = [slice(None), slice(None)]
        for (start, end), size, halo, grain in zip(parts, sizes, by, (2, 2, 1), strict=True):
            stop = size if end is None else end
            low, high = max(0, start - halo) // grain * grain, min(size, -(-(stop + halo) // grain) * grain)
            wide.append((low, high))
            inner.append(slice(start - low, stop - low))
        return wide, tuple(inner)

    def views(self, slices: Tensor, batch: int, parts: Parts = WHOLE) -> tuple[Tensor, Tensor]:
        """What XZ and what YZ planes give, each (B, C, part of X, part of Y, part of n·planes)."""
        volume = to_volume(slices, batch)
        x, y, z = (slice(*part) for part in parts)
        across_y = xz_volume(self._restored(xz_planes(volume[:, :, :, y]), z, x), batch)
        across_x = yz_volume(self._restored(yz_planes(volume[:, :, x]), z, y), batch)
        return across_y, across_x

    def _restored(self, planes: Tensor, rows: slice, columns: slice) -> Tensor:
        """A part of all restored planes, of a few at a time: as many as a cache holds, or to bound a GPU's memory."""
        few = planes.split(_AT_ONCE.get(planes.device.type, 512))
        return torch.cat([self.restorer(some)[:, :, rows, columns] for some in few])

    @property
    def restore_halo(self) -> tuple[int, int, int]:
        """Sections, pixels along X and along Y on each side of a part that :meth:`restore` needs to make it as in the whole."""
        sections, pixels = self.restorer.halo  # type: ignore[misc]
        return sections, pixels + REACH, pixels + REACH

    def preview(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Volumes (C, X, Y, Z) of the first item: the input interpolated, and the isotropic output."""
        with self.evaluating():
            volume = self.volume(batch)[:1]
            restored = self.restore(to_slices(volume), 1)
            return {"input (interpolated)": resample_z(volume, restored.shape[-1])[0], "isotropic output": restored[0]}
