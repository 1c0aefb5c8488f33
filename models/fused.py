"""Texture of earlier versions: a 3-D network on what XZ and YZ planes have given. Runs are applied, none is trained.

It works on squares of pixels and had nothing to make grain of, so that what it learnt from an adversary was stripes of two
pixels. models/texture.py takes its place.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models import lateral
from models.lateral import WHOLE, Parts
from networks.fuser import VolumeFuser
from networks.grain import Places
from networks.sides import mean_of_sides
from networks.views import to_volume, xz_planes, xz_volume
from utils.errors import UserError


class Model(lateral.Model):
    """The 2-D network of a lateral run, and a 3-D network on its results."""

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """As BaseModel.

        Raises:
            UserError: for training.
        """
        if for_training:
            raise UserError(
                "models=fused is not trained any more, since what it learnt was stripes; train texture of noise with "
                "--models texture --teacher RUN (env/jsn/texture.json is an example). Runs that there are can be applied"
            )
        super().__init__(settings, for_training)
        s = self.settings
        self.G["net_t"] = self.G["net_g"]
        self.G["net_g"] = VolumeFuser(self.sections, channels=s["input_nc"], width=s["fuse_width"], blocks=s["fuse_blocks"])

    @property
    def restorer(self) -> nn.Module:
        """The 2-D network."""
        return self.G["net_t"]

    def seen_planes(self, slices: Tensor, batch: int, parts: Parts = WHOLE) -> tuple[Tensor, Tensor, Tensor]:
        """What the 3-D network reads: slices (B·n, C, X, Y) → three volumes (B, C, parts), interpolated and from both sides."""
        x, y, z = (slice(*part) for part in parts)
        planes = xz_planes(to_volume(slices, batch)[:, :, x, y].float())
        interpolated = xz_volume(self.sections.interpolated(planes), batch)[..., z]
        across_y, across_x = self.views(slices, batch, parts)
        return interpolated, across_y, across_x

    def restore(
        self, slices: Tensor, batch: int, parts: Parts = WHOLE, texture: float = 0.0, places: Places | None = None
    ) -> Tensor:
        """As :meth:`models.texture.Model.restore`.

        Where texture was trained it is α in S + α·(X - S): S is the volume of the lateral run, X what this model makes. There is
        no noise, so ``places`` are not needed.
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
