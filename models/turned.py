"""The loss term of truth in 3-D (networks.turned): what a model makes of its own volume, turned, is judged on acquired slices."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from experiment.teachers import OPERATORS
from models.sampling import Sampling, shifted
from networks.sections import Sections
from networks.turned import acquired_error, turned_sections
from networks.views import swap_in_plane, to_slices, to_volume
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE

Restores = Callable[[Tensor, int], Tensor]


class TruthIn3d:
    """Makes X or Y of a volume coarse as Z was, has it restored, and compares with the slices that were acquired.

    Args:
        settings: of the training, complete.
        sections: the axial operator of a teacher; None: what ``l1how`` says, without a profile.

    Raises:
        UserError: ``l1how`` is no operator, the volume shows another folder than the slices, or a crop is too small.
    """

    def __init__(self, settings: Mapping[str, Any], sections: Sections | None = None) -> None:
        if len(settings["direction"].split("_")) > 1 and not settings.get("tc"):
            raise UserError(
                f"lblateral: the volume shows another folder than the slices (direction={settings['direction']}) and cannot take "
                "their place; use one folder, or lblateral 0"
            )
        self.sampling = Sampling.from_settings(settings, "lblateral")
        self.sections = sections or _own_operator(settings, self.sampling)
        self._check_crop(settings)

    def _check_crop(self, settings: Mapping[str, Any]) -> None:
        """That enough is left of a crop beside what the profile needs."""
        sections, side, grain = self.sections, settings["cropsize"], settings.get("downbranch", 1)
        turned = max(0, int((side - 2 * sections.margin) / sections.factor + 1e-6))
        acquired = max(0, side // sections.planes - 2 * sections.lost)
        whole = turned * sections.planes % LATENT_STRIDE == 0 and turned * self.sampling.usp % grain == 0
        if not turned or not acquired or not whole:
            raise UserError(
                f"lblateral: of a crop with cropsize={side}, a margin of {sections.margin} for the profile leaves {turned} "
                f"turned sections of {sections.factor:g} pixels, and {acquired} acquired slices to judge by. Neither may be 0, "
                f"and the first make a multiple of {LATENT_STRIDE} planes and of downbranch={grain} slices; use another cropsize"
            )

    def error(self, volume: Tensor, original: Tensor, restores: Restores) -> Tensor:
        """The mean absolute error on acquired slices.

        Args:
            volume: isotropic, of the model (B, C, X, Y, Z); it gets no gradient.
            original: the slices that it was made of, (B, C, X, Y, n).
            restores: slices (B·k, C, Z, Y) → volume (B, C, Z, Y, k·planes per slice), with gradient.
        """
        offset = self.sections.centre - self.sampling.centre
        volume, acquired = shifted(volume.detach().float(), -offset), self.sampling.sections(original)
        if torch.rand(()) < 0.5:
            volume, acquired = swap_in_plane(volume), swap_in_plane(acquired)
        batch = len(volume)
        turned = to_volume(turned_sections(volume, self.sections), batch)
        made = restores(to_slices(self.sampling.slices(turned)).contiguous(), batch)
        return acquired_error(shifted(made.float(), -offset), acquired, self.sections)


def _own_operator(settings: Mapping[str, Any], sampling: Sampling) -> Sections:
    operator = OPERATORS.get(settings["l1how"])
    if operator is None:
        raise UserError(
            f"lblateral: l1how={settings['l1how']} is no operator that sections are made by; give --l1how "
            f"{' or '.join(OPERATORS)}, or lblateral 0"
        )
    return Sections(sampling.planes, operator)
