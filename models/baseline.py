"""What a volume generator adds to: the slices that codes give back, made a volume by simpler means (He et al. 2016).

The generator begins at zero, so that a training starts at the baseline: linear interpolation (``from_interpolation``), or
what the 2-D network of a lateral run makes of the slices (``from_teacher``). That network becomes a part of the run as it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiment.reading import default_settings
from experiment.teachers import TAKEN, stored_lateral
from models import lateral
from models.options import MODEL_OPTIONS
from models.sampling import Sampling
from networks.views import between_slices, to_slices
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE

Range = tuple[int, int | None]
WHOLE_PLANES: Sequence[Range] = ((0, None), (0, None))


class Baseline(Protocol):
    """A volume made of slices, any part of it from the slices and pixels around.

    Attributes:
        reach: pixels along X and Y on each side of a part that it depends on, a multiple of LATENT_STRIDE.
    """

    reach: int

    def under(self, planes: range, count: int) -> slice:
        """The slices, of so many, that planes are made of."""

    def __call__(
        self, slices: Tensor, planes: range, first: int = 0, count: int | None = None, parts: Sequence[Range] = ...
    ) -> Tensor:
        """A part of the volume.

        Args:
            slices: those ``first`` and on, (B, C, X, Y, k); all that :meth:`under` names, with the pixels of ``reach``.
            planes: of the isotropic volume.
            first: number of the first slice.
            count: slices of the whole volume; None: ``first + k``.
            parts: start and stop along X and Y of what is wanted.

        Returns:
            (B, C, part of X, part of Y, planes), float32, without gradient to a network of its own.
        """


class InterpolatedSlices:
    """Linearly along Z, slices ``factor`` planes apart, the first one centred on the plane ``middle``; the ends repeated."""

    reach = 0

    def __init__(self, factor: float, middle: float) -> None:
        self.factor, self.middle = factor, middle

    def under(self, planes: range, count: int) -> slice:
        """See :class:`Baseline`."""
        places = self._places(planes, count)
        return slice(int(places[0]), min(int(places[-1]) + 2, count))

    def __call__(
        self, slices: Tensor, planes: range, first: int = 0, count: int | None = None, parts: Sequence[Range] = WHOLE_PLANES
    ) -> Tensor:
        """See :class:`Baseline`."""
        x, y = (slice(*part) for part in parts)
        return between_slices(slices[:, :, x, y].float(), self._places(planes, count or first + slices.shape[-1]), first)

    def _places(self, planes: range, count: int) -> Tensor:
        """The slice (fractional) under each plane."""
        places = torch.arange(planes.start, planes.stop, dtype=torch.float64)
        return ((places - self.middle) / self.factor).clamp(0, count - 1)


class RestoredSlices:
    """What a lateral network makes of slices seen as sections, from XZ and YZ planes.

    Args:
        settings: of the training, complete, with ``restorer`` (:func:`restorer_of`).

    Attributes:
        network: the 2-D network, with fresh weights that do not learn.

    Raises:
        UserError: slices are not sections (usp).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if (usp := Sampling.from_settings(settings, "from_teacher").usp) != 1 and not Sampling.of_codes(settings):
            raise UserError(
                f"from_teacher: a lateral network reads sections, and with usp={usp:g} slices are interpolated between them; "
                "set usp 1 with a downbranch and cropz that fit, or take --spread codes or --from_interpolation"
            )
        self._model: Any = lateral.Model(default_settings(MODEL_OPTIONS, "lateral", **settings["restorer"]), for_training=False)
        self.network: nn.Module = self._model.restorer.requires_grad_(False)
        self._planes, (self._sections, *pixels) = self._model.sections.planes, self._model.restore_halo
        self.reach = -(-max(pixels) // LATENT_STRIDE) * LATENT_STRIDE

    def under(self, planes: range, count: int) -> slice:
        """See :class:`Baseline`."""
        first, last = min(planes.start // self._planes, count - 1), -(-planes.stop // self._planes)
        return slice(max(0, first - self._sections), min(count, last + self._sections))

    def __call__(
        self, slices: Tensor, planes: range, first: int = 0, count: int | None = None, parts: Sequence[Range] = WHOLE_PLANES
    ) -> Tensor:
        """See :class:`Baseline`; planes beyond the last slice's are like its last one."""
        start, made = planes.start - first * self._planes, slices.shape[-1] * self._planes
        begin = min(start, made - 1)
        with torch.no_grad():
            volume = self._model.restore(to_slices(slices), len(slices), (*parts, (begin, min(start + len(planes), made))))
        return volume[..., (torch.arange(len(planes)) + start - begin).clamp(max=volume.shape[-1] - 1)]


def restorer_of(run: Path) -> dict[str, Any]:
    """Of a lateral run's settings those that say how its network is built."""
    stored = stored_lateral(run, MODEL_OPTIONS)
    return {name: stored[name] for name in (*TAKEN, "cropsize", "output_nc")}
