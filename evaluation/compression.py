"""Rate and distortion: a run's codes beside standard codecs, on the coded slices and on the isotropic grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from evaluation import metrics
from evaluation.baselines import METHODS, Candidate, Sections
from evaluation.codecs import CODECS, check_codable, code
from evaluation.comparison import Comparison, Request
from evaluation.grids import Placement
from evaluation.measure import REFERENCE, choose_range
from evaluation.metrics import Moments
from evaluation.opening import open_comparison, reconstruction_candidate
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import Volume

MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0)  # rates of a codec's curve, of the rate of the codes
CODINGS = (("jpeg2000", "all"), ("jpeg2000", "slice"), ("jpegxl", "all"), ("jpegxl", "slice"), ("zstd", "all"))
INTERPOLATIONS = METHODS[1:]  # linear and cubic

Point = dict[str, Any]


class DecodedFile(Protocol):
    """A decoded volume on disc whose plane k lies at plane ``first + k * step`` of the input."""

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def first(self) -> float: ...  # noqa: D102

    @property
    def step(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class _Grid:
    """A reference that distortions are measured against."""

    comparison: Comparison
    reference: Candidate
    width: float
    orientations: tuple[str, ...]
    planes: slice
    sample: int

    def distortion(self, candidate: Candidate) -> dict[str, float | None]:
        """PSNR over all voxels, SSIM as the mean over the planes of the central box."""
        squares, voxels = 0.0, 0
        for core, _ in self.comparison.blocks():
            error = candidate.block(core) - self.reference.block(core)
            squares, voxels = squares + float(np.vdot(error, error)), voxels + error.size
        box = self.comparison.central_box(self.sample)
        precise = np.float32 if self.comparison.dtype == np.uint8 else np.float64
        volume, reference = (volume.block(box).astype(precise) for volume in (candidate, self.reference))
        ssim = metrics.ssim(volume, reference, self.width, self.planes, self.orientations)
        known = [value for value in ssim.values() if value is not None]
        rmse = math.sqrt(squares / voxels)
        return {
            "psnr_db": 20 * math.log10(self.width / rmse) if rmse > 0 else math.inf,
            "ssim": float(np.mean(known)) if known else None,
        }


class RateDistortion:
    """Points of rate and distortion for one input.

    Memory does not depend on the size of the volumes: blocks of 2²³ voxels, the central box of ``request.sample`` voxels for
    SSIM, and what a codec needs for one image of at most codecs.LARGEST pixels. The disc holds one copy of the slices.

    Attributes:
        points: what was measured so far, as compress.json holds it (evaluation.compression_report).
        notes: what a reader has to know about them.
        pixels: of all slices.
        slices, isotropic: what distortions refer to; ``isotropic`` is None without a truth.

    Args:
        kept: the slices that are coded, 8 or 16 bit.
        first, step: slice k lies at plane ``first + k * step`` of ``request.input``.
        request: ``input``; ``truth`` and how the two are laid together; ``data_range``, ``planes``, ``sample``.
        folder: for temporary files; it must outlive the object.

    Raises:
        UserError: bad input.
    """

    def __init__(self, kept: Volume, first: float, step: float, request: Request, folder: Path) -> None:
        check_codable(kept.dtype)
        self.points: list[Point] = []
        self.notes: list[str] = []
        self.pixels = math.prod(kept.shape)
        self._kept, self._first, self._step, self._request, self._folder = kept, first, step, request, folder
        self._limits = (0.0, float(np.iinfo(kept.dtype).max))
        depth, rows, columns = (slice(0, size) for size in kept.shape)
        slices = Candidate(Sections(kept, 0, 1), "exact")
        whole = Comparison((depth, rows, columns), None, slices, {}, None, kept.dtype, {}, {}, [])
        self.slices = self._grid(whole, kept.path, ("xy",), slice(None))
        self.isotropic: _Grid | None = None
        if request.truth is not None:
            comparison = open_comparison(request, folder)
            assert comparison.sections is not None  # of the input, which the request names
            self._input = comparison.sections
            self.isotropic = self._grid(comparison, request.truth, ("xz", "yz"), request.planes)

    def _grid(self, comparison: Comparison, path: Path, orientations: tuple[str, ...], planes: slice) -> _Grid:
        assert comparison.truth is not None
        moments = Moments()
        for core, _ in comparison.blocks():
            block = comparison.truth.block(core)
            moments.low, moments.high = min(moments.low, float(block.min())), max(moments.high, float(block.max()))
        if moments.low == moments.high:
            raise UserError(f"{path} holds one value only ({moments.low:g}): nothing to compress; check the file and its channel")
        width = choose_range(self._request.data_range, comparison, {REFERENCE: moments}).width
        return _Grid(comparison, comparison.truth, width, orientations, planes, self._request.sample)

    def add_codes(self, size: int, slices: DecodedFile, isotropic: DecodedFile, levels: int) -> None:
        """Measures one rate of a code store.

        Args:
            size: bytes on disc.
            slices: the 2-D decoder's slices.
            isotropic: the volume.
            levels: levels of the codebook that were decoded.
        """
        volume = open_volume(slices.path)
        first, step = _whole((slices.first - self._first) / self._step), _whole(slices.step / self._step)
        placed = Sections(volume, first, step)
        exact = step == 1 and first == 0
        if not exact and not self.points:
            self.notes.append(
                f"The store holds {volume.shape[0]} encoded slices for {self._kept.shape[0]} slices of the input (usp); for the "
                "comparison with the slices they were interpolated linearly at the input's positions."
            )
        point = {"codec": "codes", "stream": "store", "levels": levels, **self._rate(size)}
        point["slices"] = self.slices.distortion(Candidate(placed, "exact" if exact else "linear", self._limits))
        if self.isotropic is not None:
            point["isotropic"] = {"decoded": self.isotropic.distortion(self._on_truth(isotropic))}
        self.points.append(point)

    def _rate(self, size: int) -> Point:
        return {"bytes": size, "bits_per_pixel": 8 * size / self.pixels}

    def _on_truth(self, decoded: DecodedFile) -> Candidate:
        assert self.isotropic is not None
        volume, place = open_volume(decoded.path), self._input
        first, step = _whole(place.first + place.step * decoded.first), _whole(place.step * decoded.step)
        placement = Placement(first, step, place.row, place.column, "geometry of the run")
        comparison = self.isotropic.comparison
        depth, *inside = comparison.region
        low, high = max(depth.start, math.ceil(first)), min(depth.stop, math.floor(placement.position(volume.shape[0] - 1)) + 1)
        if low >= high:
            raise UserError(f"{self._request.truth} and the decoded volume do not overlap: its planes begin at {first:g} there")
        if (low, high) != (depth.start, depth.stop):
            comparison.region = (slice(low, high), inside[0], inside[1])
            self.notes.append(f"Compared with planes {low}:{high} of the truth, which the decoded volume covers.")
        return reconstruction_candidate(volume, placement, self._limits, self.notes)

    def add_codecs(self, rates: list[float]) -> None:
        """Measures the codecs of CODINGS at some rates (bits per pixel of the slices at most), and interpolation without any."""
        if self.isotropic is not None:
            uncoded = {"codec": "none", "stream": "slices as they are", "bytes": None, "bits_per_pixel": None, "slices": None}
            self.points.append({**uncoded, "isotropic": self._interpolations(self._kept)})
        with tqdm(total=len(CODINGS) * len(rates), desc="codecs") as bar:
            for name, stream in CODINGS:
                for rate in rates:
                    self._add_coded(name, stream, rate)
                    bar.update()
        for name, codec in CODECS.items():
            lossless = code(self._kept, codec, "all", None, self._folder / "none")
            assert lossless is not None
            self.points.append(
                {
                    "codec": name,
                    "stream": "lossless",
                    **self._rate(lossless.bytes),
                    "slices": {"psnr_db": math.inf, "ssim": 1.0},
                    "isotropic": None,
                }
            )

    def _add_coded(self, name: str, stream: str, rate: float) -> None:
        scratch = self._folder / "coded.raw"
        coded = code(self._kept, CODECS[name], stream, rate, scratch)
        point: Point = {"codec": name, "stream": stream, "limit": rate}
        if coded is None:
            self.points.append({**point, "bytes": None, "bits_per_pixel": None, "slices": None, "isotropic": None})
            return
        point |= self._rate(coded.bytes)
        point["slices"] = self.slices.distortion(Candidate(Sections(coded.decoded, 0, 1), "exact"))
        point["isotropic"] = self._interpolations(coded.decoded) if self.isotropic is not None else None
        self.points.append(point)
        scratch.unlink()

    def _interpolations(self, slices: Any) -> dict[str, Any]:
        assert self.isotropic is not None
        place = self._input
        first, step = place.first + self._first * place.step, self._step * place.step
        sections = Sections(slices, first, step, place.row, place.column)
        if step == 1 and first == round(first):
            return {"as they are": self.isotropic.distortion(Candidate(sections, "exact", self._limits))}
        return {method: self.isotropic.distortion(Candidate(sections, method, self._limits)) for method in INTERPOLATIONS}


def _whole(number: float) -> float:
    """Without the rounding error of the arithmetic that should have made it a whole number."""
    return float(round(number)) if math.isclose(number, round(number), abs_tol=1e-9) else number
