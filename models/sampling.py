"""How the slices that a training encodes relate to the sections that were acquired, and to the isotropic planes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from experiment.teachers import PROJECTIONS
from networks.sections import rows_at
from networks.views import between_slices, xz_planes, xz_volume
from utils.errors import UserError
from utils.geometry import Geometry


@dataclass(frozen=True)
class Sampling:
    """Of a training's crops.

    Attributes:
        planes: isotropic planes of a section; a fraction where usp does not fit.
        usp: slices that were interpolated of each section; 1: slices are sections.
        centre: the plane (fractional) that section 0 is centred on.
    """

    planes: float
    usp: float
    centre: float

    @classmethod
    def of_codes(cls, settings: Mapping[str, Any]) -> Self | None:
        """That of a model that interpolates between the codes of sections (``spread codes``); None: slices are encoded.

        Raises:
            UserError: usp is no whole number, or as of :meth:`from_settings`.
        """
        if settings["spread"] == "slices" or settings["usp"] == 1:
            return None
        sampling = cls.from_settings(settings, "spread=codes")
        if sampling.usp != int(sampling.usp):
            raise UserError(f"spread=codes needs a whole usp, not {sampling.usp:g}; change usp, or take spread slices")
        return sampling

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], wanted_by: str) -> Self:
        """That of checked settings.

        With usp, slice j shows section (j + ½)/usp - ½. Linear interpolation, which IsoREF starts from, centres a slice on the
        middle of its planes, whatever ``l1how`` is.

        Raises:
            UserError: a crop holds parts of sections; ``wanted_by`` says what needs whole ones.
        """
        geometry, usp = Geometry.from_settings(settings), settings["usp"]
        if usp < 1 or geometry.slices * settings["dsp"] != settings["cropz"] * usp:
            raise UserError(
                f"{wanted_by} needs whole sections, but cropz={settings['cropz']}, dsp={settings['dsp']}, usp={usp:g} leave "
                "parts of them; use a usp of 1 or more and a cropz that dsp divides"
            )
        own = PROJECTIONS.get(settings.get("axial_sampling", ""))
        of_slice = geometry.plane_of_slice(0, "mean" if settings["models"] == "IsoREF" else own or settings["l1how"])
        return cls(geometry.factor * usp, usp, of_slice + geometry.factor * (usp - 1) / 2)

    def sections(self, slices: Tensor) -> Tensor:
        """The sections (B, C, X, Y, n / usp) under slices (B, C, X, Y, n); they follow from what interpolation made of them.

        Raises:
            ValueError: n is no multiple of usp.
        """
        if self.usp == 1:
            return slices
        inverse = _undo_interpolation(slices.shape[-1], self.usp).to(slices.device, non_blocking=True)
        with torch.autocast(slices.device.type, enabled=False):
            return slices.float() @ inverse

    def slices(self, sections: Tensor) -> Tensor:
        """Sections (B, C, X, Y, n) interpolated as the data set does it, (B, C, X, Y, n·usp)."""
        return between_slices(sections, self.places(range(round(sections.shape[-1] * self.usp)), sections.shape[-1]))

    def places(self, slices: range, sections: int) -> Tensor:
        """The section (fractional), of so many, that each slice shows."""
        return _places(slices, self.usp, sections)

    def under(self, slices: range, sections: int) -> slice:
        """The sections, of so many, that slices lie between."""
        places = self.places(slices, sections)
        return slice(int(places[0]), min(int(places[-1]) + 2, sections))


def shifted(volume: Tensor, planes: float) -> Tensor:
    """A volume (B, C, X, Y, Z) whose plane k lay at k + ``planes`` before, by cubic convolution along Z."""
    if not planes:
        return volume
    places = torch.arange(volume.shape[-1], dtype=torch.float64) + planes
    return xz_volume(rows_at(xz_planes(volume), places), len(volume))


def _places(slices: range, usp: float, sections: int) -> Tensor:
    return ((torch.arange(slices.start, slices.stop, dtype=torch.float64) + 0.5) / usp - 0.5).clamp(0, sections - 1)


@lru_cache
def _undo_interpolation(slices: int, usp: float) -> Tensor:
    """The matrix (slices, sections) that turns interpolated slices back into their sections."""
    sections = round(slices / usp)
    if sections * usp != slices:
        raise ValueError(f"{slices} slices are no whole number of sections with usp={usp:g}")
    weights = (1 - (_places(range(slices), usp, sections)[:, None] - torch.arange(sections)).abs()).clamp(min=0)
    return torch.linalg.pinv(weights).mT.float()
