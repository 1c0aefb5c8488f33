"""Rate and distortion: a run's codes beside standard codecs, on the coded slices and on the isotropic grid.

RateDistortion measures; write_compression leaves compression.json, the curves, and sentences.
"""

import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from evaluation.codecs import CODECS, check_codable, code
from evaluation.figures import INK, MUTED, plain_axes
from evaluation.grid import Request, open_comparison, restored_candidate
from evaluation.metrics import choose_range, psnr, ssim
from evaluation.report import plain, slice_text
from evaluation.sections import METHODS, Candidate, Sections
from evaluation.sweep import blocks, central_box
from experiment.runs import program_version
from utils.boxes import Box, voxels_of
from utils.errors import UserError, printable
from utils.files import write_json
from volumes.open import open_volume
from volumes.volume import ArrayVolume, Volume

MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0)  # rates of a codec's curve, of the rate of the codes
CODINGS = (
    ("jpeg2000", "all"),
    ("jpeg2000", "slice"),
    ("jpegxl", "all"),
    ("jpegxl", "slice"),
    ("avif", "all"),
    ("zstd", "all"),
)
INTERPOLATIONS = METHODS[1:]  # linear and cubic
SCHEMA = "isoscopexx.compression/1"
OUTPUTS = ("compression.json", "compression.png")
NAMES = {"codes": "codes", "jpeg2000": "JPEG2000", "jpegxl": "JPEG-XL", "avif": "AVIF", "zstd": "zstd"}
COLOURS = {
    "codes": "#d1495b",
    "jpeg2000": "#2667b8",
    "jpegxl": "#2a9d8f",
    "avif": "#7b4fa3",
    "zstd": "#c08a1e",
    "none": "#6b7480",
}
STREAMS = {"all": "one stream", "slice": "one stream per slice", "store": "code store"}
TIE_DB = 0.1

Point = dict[str, Any]


class DecodedFile(Protocol):
    """A decoded volume on disc whose plane k lies at plane ``first + k * step`` of the input."""

    path: Path
    first: float
    step: float


class _Reference:
    """What distortions refer to: a region of sections, copied to the file ``scratch``, so that their own is read once.

    Attributes:
        region: what is compared.
        copy: the voxels of the region that is copied.
        width: data range of PSNR and SSIM.
    """

    def __init__(
        self, sections: Sections, region: Box, request: Request, orientations: tuple[str, ...], planes: slice, scratch: Path
    ) -> None:
        self.region, self._sample, self._orientations, self.planes = region, request.sample, orientations, planes
        central_box(region, request.sample)  # refuses what is too small before anything is read
        depth, rows, columns = region
        file = sections.source
        copy = sections.copied(depth.start, depth.stop, rows, columns, scratch, file.dtype)
        self._candidate, self.copy = Candidate(copy), copy.source
        low, high = (float(extreme(self.copy[:])) for extreme in (np.min, np.max))
        if low == high:
            raise UserError(f"{file.path} holds one value only ({low:g}): nothing to compress; check the file and its channel")
        self.width = choose_range(request.data_range, file.dtype, "truth", low, high).width

    def distortion(self, candidate: Candidate) -> dict[str, float | None]:
        """PSNR over all voxels, SSIM as the mean over the planes of the central box."""
        squares = 0.0
        for core, _ in blocks(self.region):
            error = candidate.block(core) - self._candidate.block(core)
            squares += float(np.vdot(error, error))
        box = central_box(self.region, self._sample)
        precise = np.float32 if self.copy.dtype == np.uint8 else np.float64
        volume, reference = (each.block(box).astype(precise) for each in (candidate, self._candidate))
        known = [v for v in ssim(volume, reference, self.width, self.planes, self._orientations).values() if v is not None]
        return {
            "psnr_db": psnr(math.sqrt(squares / voxels_of(self.region)), self.width),
            "ssim": float(np.mean(known)) if known else None,
        }


class RateDistortion:
    """Points of rate and distortion for one input.

    Memory does not depend on the size of the volumes: blocks of 2²³ voxels, the central box of ``request.sample`` voxels for
    SSIM, and what a codec needs for one image of at most codecs.LARGEST pixels. The disc holds a copy of the slices, one of the
    slices decoded by a codec, and one of the truth's region, which are read from their files once.

    Attributes:
        points: what was measured so far, as compression.json holds it (docs/metrics.md).
        notes: what a reader has to know about them.
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
        self._first, self._step, self._request, self._folder = first, step, request, folder
        scratch, (depth, height, width) = folder / "slices.raw", kept.shape
        everything = (slice(0, depth), slice(0, height), slice(0, width))
        self.slices = _Reference(Sections(kept, 0, 1), everything, request, ("xy",), slice(None), scratch)
        self._kept = self.slices.copy
        self.isotropic: _Reference | None = None
        if request.truth is not None:
            found = open_comparison(request, folder)
            assert found.truth is not None and found.sections is not None  # the request names both
            self._input, scratch = found.sections, folder / "truth.raw"
            self.isotropic = _Reference(found.truth.sections, found.region, request, ("xz", "yz"), request.planes, scratch)

    def add_codes(self, size: int, slices: DecodedFile, isotropic: DecodedFile | None, levels: int) -> None:
        """Measures one rate of a code store: its bytes on disc, the 2-D decoder's slices, the volume, the decoded levels."""
        volume = open_volume(slices.path)
        placed = Sections(volume, _whole((slices.first - self._first) / self._step), _whole(slices.step / self._step))
        if (placed.first, placed.step) != (0, 1) and not self.points:
            self.notes.append(
                f"The store holds {volume.shape[0]} encoded slices for {self._kept.shape[0]} slices of the input (usp); for the "
                "comparison with the slices they were interpolated linearly at the input's positions."
            )
        point = {"codec": "codes", "stream": "store", "levels": levels, **self._rate(size)}
        point["slices"] = self.slices.distortion(Candidate(placed, "linear", self._kept.dtype))
        if self.isotropic is not None and isotropic is not None:
            point["isotropic"] = {"decoded": self.isotropic.distortion(self._on_truth(isotropic, self.isotropic))}
        self.points.append(point)

    def _rate(self, size: int) -> Point:
        return {"bytes": size, "bits_per_pixel": 8 * size / math.prod(self._kept.shape)}

    def _on_truth(self, decoded: DecodedFile, reference: _Reference) -> Candidate:
        """The decoded volume where the geometry of the run places it; the region becomes what it covers."""
        place = self._input
        first, step = _whole(place.position(decoded.first)), _whole(place.step * decoded.step)
        sections = Sections(open_volume(decoded.path), first, step, place.row, place.column)
        depth, *inside = reference.region
        low, high = max(depth.start, math.ceil(first)), min(depth.stop, math.floor(sections.last) + 1)
        if low >= high:
            raise UserError(f"{self._request.truth} and the decoded volume do not overlap: its planes begin at {first:g} there")
        if (low, high) != (depth.start, depth.stop):
            reference.region = (slice(low, high), inside[0], inside[1])
            self.notes.append(f"Compared with planes {low}:{high} of the truth, which the decoded volume covers.")
        return restored_candidate(sections, reference.copy.dtype, self.notes)

    def add_codecs(self) -> None:
        """Measures the codecs of CODINGS at MULTIPLES of the rates of the codes, and interpolation without any codec."""
        rates = sorted({n * point["bits_per_pixel"] for point in self.points for n in MULTIPLES})
        if self.isotropic is not None:
            uncoded = {"codec": "none", "stream": "slices as they are", "bytes": None, "bits_per_pixel": None, "slices": None}
            self.points.append({**uncoded, "isotropic": self._interpolations(self._kept, self.isotropic)})
        scratch = self._folder / "coded.raw"
        for (name, stream), rate in tqdm([*product(CODINGS, rates)], desc="codecs"):
            point: Point = {"codec": name, "stream": stream, "limit": rate, "bytes": None, "bits_per_pixel": None}
            point |= {"slices": None, "isotropic": None}
            coded = code(self._kept, CODECS[name], stream, rate, scratch)
            if coded is not None:
                decoded = ArrayVolume(coded.decoded)
                point |= self._rate(coded.bytes)
                point["slices"] = self.slices.distortion(Candidate(Sections(decoded, 0, 1)))
                if self.isotropic is not None:
                    point["isotropic"] = self._interpolations(decoded, self.isotropic)
                scratch.unlink()
            self.points.append(point)
        for name, codec in CODECS.items():
            lossless = code(self._kept, codec, "all", None, self._folder / "none")
            exact = {"slices": {"psnr_db": math.inf, "ssim": 1.0}, "isotropic": None}
            if lossless is not None:
                self.points.append({"codec": name, "stream": "lossless", **self._rate(lossless.bytes), **exact})

    def _interpolations(self, slices: Volume, reference: _Reference) -> Point:
        place = self._input
        first, step = place.position(self._first), self._step * place.step
        sections = Sections(slices, first, step, place.row, place.column)
        if sections.on_grid:
            return {"as they are": reference.distortion(Candidate(sections))}
        return {method: reference.distortion(Candidate(sections, method, self._kept.dtype)) for method in INTERPOLATIONS}


def _whole(number: float) -> float:
    """Without the rounding error of the arithmetic that should have made it a whole number."""
    return float(round(number)) if math.isclose(number, round(number), abs_tol=1e-9) else number


def write_compression(measured: RateDistortion, facts: dict[str, Any], folder: Path) -> list[str]:
    """Writes compression.json (docs/metrics.md) and compression.png into a folder; returns the sentences.

    ``facts`` are the document's ``run`` and ``files``.
    """
    truth = measured.isotropic
    document = {
        "schema": SCHEMA,
        "version": program_version(),
        **facts,
        "data_range": {"slices": measured.slices.width, "isotropic": None if truth is None else truth.width},
        "ssim_planes": None if truth is None else slice_text(truth.planes),
        "notes": measured.notes,
        "sentences": sentences(measured.points),
        "points": measured.points,
    }
    write_json(folder / OUTPUTS[0], plain(document))
    title = f"{facts['run']} on {Path(facts['files']['input']).name}: its codes beside standard codecs"
    draw_rates(measured.points, title, folder / OUTPUTS[1])
    return [*document["sentences"], *document["notes"]]


def best(distortions: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Of the ways onto the isotropic grid, the one with the highest PSNR."""
    return max(distortions.items(), key=lambda item: item[1]["psnr_db"])


def sentences(points: list[Point]) -> list[str]:
    """What the numbers say, for every rate of the codes."""
    lines = []
    for ours in (point for point in points if point["codec"] == "codes"):
        rate = ours["bits_per_pixel"]
        rivals = [p for p in points if p.get("limit") == rate and p["slices"] is not None]
        levels = f"{ours['levels']} level{'s' if ours['levels'] > 1 else ''}"
        lines.append(f"Codes ({levels}): {ours['bytes']} bytes on disc, {rate:.4g} bit per pixel of the slices.")
        shown = [("codes", ours["slices"]), *((_label(p), p["slices"]) for p in rivals)]
        lines.append("  Slices, dB / SSIM: " + _listed(shown))
        if ours.get("isotropic"):
            volumes = [("codes", ours["isotropic"]["decoded"])]
            volumes += [(f"{_label(p)} + {best(p['isotropic'])[0]}", best(p["isotropic"])[1]) for p in rivals]
            uncoded = next(best(p["isotropic"]) for p in points if p["codec"] == "none")
            volumes.append((f"no codec + {uncoded[0]}", uncoded[1]))
            lines.append("  Isotropic volume, dB / SSIM: " + _listed(volumes))
            lines.append("  " + _judged(ours["isotropic"]["decoded"], volumes[1:-1]))
        missing = [_label(p) for p in points if p.get("limit") == rate and p["slices"] is None]
        if missing:
            lines.append(f"  {', '.join(missing)} cannot be made as small as that.")
    return lines


def _label(point: Point) -> str:
    return f"{NAMES[point['codec']]}, {STREAMS[point['stream']]}"


def _listed(named: Iterable[tuple[str, dict[str, Any]]]) -> str:
    return "; ".join(f"{name} {v['psnr_db']:.2f} / {math.nan if v['ssim'] is None else v['ssim']:.3f}" for name, v in named)


def _judged(ours: dict[str, Any], rivals: list[tuple[str, dict[str, Any]]]) -> str:
    if not rivals:
        return "No codec reaches that rate."
    name, value = max(rivals, key=lambda item: item[1]["psnr_db"])
    difference = ours["psnr_db"] - value["psnr_db"]
    if abs(difference) < TIE_DB:
        return f"At equal bytes the volume is as close to the truth as the best codec's ({name})."
    word = "closer to" if difference > 0 else "further from"
    return f"At equal bytes the volume is {abs(difference):.2f} dB {word} the truth than the best codec's ({name})."


def draw_rates(points: list[Point], title: str, path: Path) -> None:
    """Curves of PSNR and SSIM against the rate, on the slices and (with a truth) on the isotropic grid."""
    grids = ["slices"] + ["isotropic"] * any(point["codec"] == "none" for point in points)
    figure = Figure((6.4 * len(grids), 7.6), dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(2, len(grids), squeeze=False, sharex=True)
    titles = {"slices": "Slices, as coded", "isotropic": "Isotropic volume (codecs: sections interpolated, linear or cubic)"}
    for column, grid in zip(panels.T, grids, strict=True):
        for axes, (key, label) in zip(column, (("psnr_db", "PSNR (dB)"), ("ssim", "SSIM")), strict=True):
            _draw_panel(axes, points, grid, key)
            plain_axes(axes, "", label, titles[grid] if key == "psnr_db" else "")
        column[1].set_xlabel("bits per pixel of the slices (bytes on disc)", color=INK)
    rates = sorted(point["limit"] for point in points if point.get("limit"))
    panels[0, 0].set_xscale("log", base=2)
    if rates:
        panels[0, 0].set_xlim(rates[0] / 1.3, rates[-1] * 1.3)
    panels[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 * len(grids), frameon=False)
    figure.suptitle(printable(title), color=INK, fontsize=12)
    figure.savefig(path)


def _draw_panel(axes: Any, points: list[Point], grid: str, key: str) -> None:
    def value(point: Point) -> float | None:
        found = point.get(grid)
        if not found:
            return None
        return (found if grid == "slices" else best(found)[1])[key]

    def draw(drawn: list[Point], **look: Any) -> None:
        known = sorted((p for p in drawn if value(p) is not None), key=lambda point: point["bits_per_pixel"])
        axes.plot([p["bits_per_pixel"] for p in known], [value(p) for p in known], **look)

    for name, stream in dict.fromkeys((p["codec"], p["stream"]) for p in points if p.get("limit")):
        curve = [p for p in points if (p["codec"], p["stream"]) == (name, stream)]
        look = {"color": COLOURS[name], "marker": ".", "linewidth": 1.6, "linestyle": "-" if stream == "all" else ":"}
        draw(curve, label=f"{NAMES[name]}, {STREAMS[stream]}", **look)
    for point in points:
        if point["codec"] == "none" and value(point) is not None:
            axes.axhline(value(point), color=MUTED, linewidth=1, linestyle="--", label="no codec, best interpolation")
    ours = [p for p in points if p["codec"] == "codes"]
    draw(ours, color=COLOURS["codes"], marker="*", markersize=15, linewidth=1.2, label="codes of the run", zorder=5)
