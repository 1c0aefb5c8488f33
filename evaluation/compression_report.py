"""What a comparison of codecs leaves: compression.json, the curves, and sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evaluation.compression import Point, RateDistortion
from evaluation.figures import INK, MUTED, plain_axes
from evaluation.report import plain, slice_text
from utils.files import put_files
from utils.runs import program_version

SCHEMA = "isoscopexx.compression/1"
OUTPUTS = ("compression.json", "compression.png")
NAMES = {"codes": "codes", "jpeg2000": "JPEG2000", "jpegxl": "JPEG-XL", "zstd": "zstd"}
COLOURS = {"codes": "#d1495b", "jpeg2000": "#2667b8", "jpegxl": "#2a9d8f", "zstd": "#c08a1e", "none": "#6b7480"}
STREAMS = {"all": "one stream", "slice": "one stream per slice", "store": "code store"}
TIE_DB = 0.1


def write_compression(measured: RateDistortion, facts: dict[str, Any], output: Path, scratch: Path) -> list[str]:
    """Writes compression.json and compression.png; both appear when they are whole.

    compression.json (schema ``isoscopexx.compression/1``; null stands for "not defined", "not reachable" or, for a PSNR, for
    "identical"):
        ``version``, ``run``, ``files`` (input, truth, store), ``slices`` (shape z y x, dtype), ``data_range`` (width that PSNR
        and SSIM refer to, on the slices and on the isotropic grid), ``ssim_planes``, ``notes``, ``sentences``;
        ``points``, a list with, for each:
            ``codec``: ``codes``, ``jpeg2000``, ``jpegxl``, ``zstd``, or ``none`` (interpolation of the slices as they are);
            ``stream``: ``store``, ``all`` (one stream for all slices), ``slice`` (one for each), ``lossless``;
            ``levels`` (codes only): levels of the codebook that were decoded;
            ``limit``: bits per pixel that the codec was held to; ``bytes`` on disc; ``bits_per_pixel`` of the slices;
            ``slices``: ``psnr_db`` over all pixels, ``ssim`` (mean over XY planes of the central box);
            ``isotropic``: by ``decoded`` (codes), ``linear`` and ``cubic`` (codec, then interpolation along z): ``psnr_db`` over
            all voxels, ``ssim`` (mean over XZ and YZ planes of the central box).

    Args:
        measured: the points.
        facts: ``run`` and ``files`` for the document.
        output: folder.
        scratch: folder on the same disc.

    Returns:
        The sentences.
    """
    document = {
        "schema": SCHEMA,
        "version": program_version(),
        **facts,
        "data_range": {
            "slices": measured.slices.width,
            "isotropic": None if measured.isotropic is None else measured.isotropic.width,
        },
        "ssim_planes": None if measured.isotropic is None else slice_text(measured.isotropic.planes),
        "notes": measured.notes,
        "sentences": sentences(measured.points),
        "points": measured.points,
    }
    (scratch / OUTPUTS[0]).write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    title = f"{facts['run']} on {Path(facts['files']['input']).name}: its codes beside standard codecs"
    draw_rates(measured.points, title, scratch / OUTPUTS[1])
    put_files(scratch, output, OUTPUTS)
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
        shown = [("codes", ours["slices"]), *((_name(p), p["slices"]) for p in rivals)]
        lines.append("  Slices, dB / SSIM: " + _listed(shown))
        if ours.get("isotropic"):
            volumes = [("codes", ours["isotropic"]["decoded"])]
            volumes += [(f"{_name(p)} + {best(p['isotropic'])[0]}", best(p["isotropic"])[1]) for p in rivals]
            uncoded = next(best(p["isotropic"]) for p in points if p["codec"] == "none")
            volumes.append((f"no codec + {uncoded[0]}", uncoded[1]))
            lines.append("  Isotropic volume, dB / SSIM: " + _listed(volumes))
            lines.append("  " + _judged(ours["isotropic"]["decoded"], volumes[1:-1]))
        missing = [_name(p) for p in points if p.get("limit") == rate and p["slices"] is None]
        if missing:
            lines.append(f"  {', '.join(missing)} cannot be made as small as that.")
    return lines


def _name(point: Point) -> str:
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
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, color=INK, fontsize=12)
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
