"""Volumes whose truth is known, and the sections that a microscope would make of them: what benchmarks/quality.py judges on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.phantom.phantom import ForwardModel, PhantomScene, observe, to_uint16
from evaluation.sections import interpolation_matrix
from volumes.open import open_volume

Volume = NDArray[np.generic]  # (Z, Y, X)
PHANTOM_SIDE, PHANTOMS = 128, 4
FIB25 = ("fib25", "fib25-aside")
TRIED = 32  # iterations of data consistency at most


@dataclass(frozen=True)
class Degradation:
    """Blur along z, one section per ``factor`` planes: one of them (``pick``) or their mean (``mean``)."""

    factor: int
    sampling: str
    sigma: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.sampling}{self.factor}"

    @property
    def microscope(self) -> ForwardModel:
        return ForwardModel(self.factor, {"mean": "average"}.get(self.sampling, self.sampling), (self.sigma, 0.7, 0.7))

    def sections(self, truth: Volume) -> Volume:
        """What a microscope without noise or blur in-plane sees of a volume, in its own grey values."""
        return rounded(np.tensordot(self.matrix(len(truth)), truth[: len(truth) // self.factor * self.factor], 1), truth.dtype)

    def matrix(self, planes: int) -> NDArray[np.float64]:
        """The operator, (sections, planes); beyond the ends the outer planes are repeated."""
        first, weights = self.microscope.axial_weights()
        made = np.zeros((planes // self.factor, planes // self.factor * self.factor))
        for section, row in enumerate(made):
            places = section * self.factor + first + np.arange(len(weights))
            np.add.at(row, places.clip(0, made.shape[1] - 1), weights)
        return made

    def consistent(self, sections: Volume, truth: Volume) -> tuple[Volume, int]:
        """Cubic interpolation brought into agreement with the sections (iterative back-projection).

        What the operator makes of it and the sections do not have is interpolated and taken away, again and again, as long as
        the volume comes closer to the truth: in the opponent's favour.

        Returns:
            The volume, and the number of iterations.
        """
        operator = self.matrix(len(truth))
        centre = self.factor // 2 if self.sampling == "pick" else (self.factor - 1) / 2
        at = np.arange(len(sections)) * float(self.factor) + centre
        spline = interpolation_matrix("cubic", at, np.arange(len(truth), dtype=float))
        total, step, best = np.zeros_like(spline), spline, (np.inf, 0, truth)
        for count in range(1, TRIED + 1):
            total = total + step
            step = step - spline @ (operator @ step)
            made = rounded(np.tensordot(total, sections, 1), truth.dtype)
            error = float(np.square(made.astype(np.float64) - truth).mean())
            if error >= best[0]:
                break
            best = error, count, made
        return best[2], best[1]


@dataclass
class Specimen:
    """What is trained on and what is judged.

    Attributes:
        train: truths of volumes that are not judged; a phantom has its noisy sections here instead.
        truth: of the volume that is judged.
        sections: of it, where they are not simply those of the truth.
        sigma: axial blur that every degradation begins with.
    """

    train: list[Volume]
    truth: Volume
    sigma: float = 0.0
    sections: Volume | None = field(default=None)

    def degraded(self, how: Degradation) -> tuple[list[Volume], Volume]:
        """Sections to train on, one stack a volume, and those of the judged volume."""
        if self.sections is not None:
            return self.train, self.sections
        return [how.sections(volume) for volume in self.train], how.sections(self.truth)


@dataclass(frozen=True)
class Sparse(PhantomScene):
    """Bright tubules on nothing: what channel 1 of a phantom has above half of the scale."""

    def planes(self, z0: int, z1: int, *, channel: int | None = None, margin: int = 0) -> Iterator[NDArray[np.float32]]:
        for plane in super().planes(z0, z1, channel=1, margin=margin):
            yield np.clip(2 * plane - 1, 0, 1)


def phantom(scene: type[PhantomScene], channel: int | None, how: Degradation) -> Specimen:
    """Four phantoms to train on and a fifth; noise and blur in-plane as in prepare.py phantom."""
    shape = (PHANTOM_SIDE // how.factor * how.factor, PHANTOM_SIDE, PHANTOM_SIDE)
    scenes = [scene(seed, shape) for seed in range(PHANTOMS + 1)]
    *train, sections = (np.stack(list(observe(one, how.microscope, channel))) for one in scenes)
    truth = to_uint16(np.stack(list(scenes[-1].planes(0, shape[0], channel=channel))))
    return Specimen(train, truth, how.sigma, sections)


def fib25(data: Path, name: str, how: Degradation) -> Specimen:
    """FIB-25: the training volume and the cube that is only looked at; ``fib25-aside``: two parts of the training volume."""
    whole = open_volume(data / "fibsem_fib25_train.tif")[:]
    if name == "fib25-aside":
        return Specimen([whole[:, :, :384]], whole[:, :, 392:])
    return Specimen([whole], open_volume(data / "fibsem_fib25_dev.tif")[:248, :248, :248])


def rounded(volume: NDArray[np.floating], dtype: np.dtype) -> Volume:
    """Grey values of an integer dtype; others stay."""
    if not np.issubdtype(dtype, np.integer):
        return volume.astype(dtype)
    return np.clip(np.rint(volume), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
