"""What a reconstruction records of its place in the volume that it was made of (attributes ``place`` and ``slices``)."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from evaluation.sections import Sections
from intensity.transform import Intensity
from volumes.volume import Triple, Volume, triple


@dataclass(frozen=True)
class Recorded:
    """Voxel i (z, y, x) of a reconstruction lies at ``origin + i * step`` of its input, in the input's voxels.

    Attributes:
        shape: of the input.
        thinned, how, first_kept: of every ``thinned`` planes of the input from ``first_kept`` on one was picked (``pick``), or
            their mean was taken (``mean``; then the first mean is centred on ``first_kept``).
    """

    origin: Triple
    step: Triple
    shape: tuple[int, ...]
    thinned: int
    how: str
    first_kept: float

    @classmethod
    def of(cls, volume: Volume | None) -> Self | None:
        """None where nothing is recorded, as in outputs of other programs and of older versions."""
        about: dict[str, Any] = {} if volume is None else dict(volume.attributes)
        if not {"place", "slices", "input"} <= about.keys():
            return None
        place, slices = about["place"], about["slices"]
        origin, step = triple(place["origin"]), triple(place["step"])
        return cls(origin, step, tuple(about["input"]["shape"]), slices["thinned"], slices["how"], slices["first_kept"])

    def input_in(self, placed: Sections, volume: Volume) -> Sections:
        """Where the input lies on the grid on which the reconstruction is placed."""
        row, column = (start - round(shift) for start, shift in zip((placed.row, placed.column), self.origin[1:], strict=True))
        first, step = self._on(placed, 0.0), placed.step / self.step[0]
        return Sections(volume, first, step, row, column, "as the reconstruction records it")

    def reconstruction_on(self, volume: Volume, reference: Volume) -> Sections | None:
        """A reconstruction on its own input, or a truth of the input's shape; None where the reference is no such volume."""
        if reference.shape != self.shape or not 0.5 < self.step[0] < 1.5:
            return None
        (z, y, x), step = self.origin, self.step[0]
        return Sections(volume, _exact(z), _exact(step), round(y), round(x), "as the reconstruction records it")

    def kept_in(self, placed: Sections) -> tuple[float, float]:
        """First coordinate and distance of the planes that the run saw, on the grid on which the reconstruction is placed."""
        return self._on(placed, self.first_kept), _exact(placed.step * self.thinned / self.step[0])

    def contradicts(self, placed: Sections, first: float, step: float) -> str | None:
        """A note where the command line says otherwise than the record about the planes that the run saw."""
        seen, apart = self.kept_in(placed)
        if math.isclose(seen, first, abs_tol=1e-3) and math.isclose(apart, step, rel_tol=1e-3):
            return None
        return (
            f"The command line puts the sections at planes {first:g} + k·{step:g}, but the reconstruction records that it "
            f"was made of sections at {seen:g} + k·{apart:g}; the command line was followed."
        )

    def _on(self, placed: Sections, plane: float) -> float:
        """Coordinate of a plane of the input."""
        return _exact(placed.position((plane - self.origin[0]) / self.step[0]))


def picked_of(factor: int, placed: Sections | None) -> int:
    """Which of factor planes a thinning picks: the one that the reconstruction records, where it was thinned so, else F // 2."""
    recorded = None if placed is None else Recorded.of(placed.source)
    if placed is not None and recorded is not None and recorded.how == "pick" and recorded.thinned > 1:
        first, step = recorded.kept_in(placed)
        if step == factor and first == round(first):
            return int(first) % factor
    return factor // 2


def as_seen(placed: Sections, known: Sections, truth: Volume) -> tuple[Sections, Sections, list[str]]:
    """Reconstruction and input where the input's sections equal planes of the truth, whatever was assumed; a note says so."""
    recorded = Recorded.of(placed.source)
    first = None if recorded is None else _equal_planes(known, truth)
    if recorded is None or first is None or first == known.first:
        return placed, known, []
    shift = first - recorded.input_in(placed, known.source).first
    note = (
        f"The input's sections equal planes {first} + k·{known.step:g} of the truth, not {known.first:g} + k·{known.step:g} "
        f"({known.how}). They were laid there, and the reconstruction {shift:+g} planes from the truth's beginning."
    )
    placed = replace(placed, first=placed.first + shift, how="by its input's sections, which equal planes of the truth")
    return placed, replace(known, first=first, how="its sections equal these planes of the truth"), [note]


def _equal_planes(sections: Sections, truth: Volume) -> int | None:
    """The plane of the truth that the first section equals, value for value, if others equal those that follow ``step`` apart.

    As of a truth that was thinned by ``truth[n::step]``, whatever n; None: of no n. Looked at are the middles of three sections.
    """
    step, source = round(sections.step), sections.source
    if step < 2 or sections.step != step or source.shape[1:] != truth.shape[1:]:
        return None
    window = tuple(slice(max(0, size // 2 - 128), size // 2 + 128) for size in source.shape[1:])
    some = {section: source[(slice(section, section + 1), *window)] for section in {0, source.shape[0] // 2, source.shape[0] - 1}}
    if all(plane.min() == plane.max() for plane in some.values()):
        return None

    def equal(first: int) -> bool:
        places = ((first + section * step, plane) for section, plane in some.items())
        return all(np.array_equal(truth[(slice(at, at + 1), *window)], plane) for at, plane in places)

    return next((first for first in range(step) if equal(first)), None)


def grey_width(volume: Volume, channel: int) -> float | None:
    """The range of grey values that the network of a reconstruction's run knows, to which infer.py's consistency refers, too."""
    maps = volume.attributes.get("intensities") or []
    width = Intensity.from_json(maps[min(channel, len(maps) - 1)], str(volume.path)).width if maps else 0.0
    return width if math.isfinite(width) and width > 0 else None


def _exact(number: float) -> float:
    """Without the last bits of a division that has a short result."""
    return round(number, 9)
