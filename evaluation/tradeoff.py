"""Fidelity against restored detail, for several restorations of one volume, such as a run's at several values of --texture."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evaluation.figures import INK, plain_axes, style
from evaluation.grid import Request
from evaluation.measure import evaluate, results
from utils.errors import UserError, printable
from utils.files import write_json
from volumes.open import stem_of

SCHEMA = "isoscopexx.tradeoff/1"
OUTPUTS = ("tradeoff.json", "tradeoff.png")
BANDS = ("1/16-1/8", "1/8-1/4")  # octaves along z, in cycles per voxel


def compare(request: Request, restorations: Sequence[Path], output: Path, overwrite: bool = False) -> dict[str, Any]:
    """Evaluates every restoration into a folder of its own, and draws them as points of one curve (docs/metrics.md).

    Args:
        request: what they are compared with.
        restorations: files, in the order of the curve.
        output: for the folders, named like the files, and for tradeoff.json and tradeoff.png.

    Raises:
        UserError: as for :func:`evaluation.measure.evaluate`, two files of one name, or nothing to compare them with.
    """
    names = [stem_of(path) for path in restorations]
    if len(set(names)) < len(names):
        raise UserError(
            f"--reconstruction: two files are named {max(names, key=names.count)}; rename one, for folders in {output}"
        )
    if request.truth is None and request.input is None:
        raise UserError("several reconstructions are compared with a truth or an input; name --truth T or --input I")
    found, earlier = {}, dict[Any, dict[str, Any]]()
    with results(output, OUTPUTS, overwrite, (*restorations, request.truth, request.input)) as folder:
        for name, path in zip(names, restorations, strict=True):
            found[name] = evaluate(replace(request, reconstruction=path), output / name, overwrite, earlier)["volumes"]
        document = summary(found)
        write_json(folder / OUTPUTS[0], document)
        draw(document, len(names)).savefig(folder / OUTPUTS[1])
    return document


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What tradeoff.json holds, of the ``volumes`` of each restoration's metrics.json."""
    first = next(iter(found.values()))
    volumes = {name: one["reconstruction"] for name, one in found.items()}
    volumes |= {name: numbers for name, numbers in first.items() if name not in ("reconstruction", "truth")}
    told = "truth" in first
    return {
        "schema": SCHEMA,
        "fidelity": "PSNR against the truth, dB" if told else "PSNR of the projection against the input, dB",
        "power": f"power along z over {'that of the truth' if told else 'power in-plane'}",
        "points": [
            {"name": name, "fidelity": _fidelity(numbers, told), "power": _power(numbers, told)}
            for name, numbers in volumes.items()
        ],
    }


def _fidelity(numbers: dict[str, Any], told: bool) -> float | None:
    if told:
        return numbers["psnr_db"]
    return max((way["psnr_db"] for way in numbers.get("consistency", {}).values() if way["psnr_db"] is not None), default=None)


def _power(numbers: dict[str, Any], told: bool) -> dict[str, float]:
    if told:
        return {band: value for band, value in numbers["power_over_truth"]["z"].items() if band in BANDS}
    return {band: 10 ** (value / 10) for band, value in numbers["axial_power_db"].items() if band in BANDS}


def draw(document: dict[str, Any], count: int) -> Figure:
    """One panel for each octave: the first ``count`` points are joined, the others stand by themselves."""
    figure = Figure((12.5, 4.4), dpi=110, layout="constrained", facecolor="white")
    for axes, band in zip(figure.subplots(1, len(BANDS), sharey=True), BANDS, strict=True):
        known = [point for point in document["points"] if point["fidelity"] is not None and band in point["power"]]
        joined = [point for point in known if point in document["points"][:count]]
        places = [point["power"][band] for point in joined], [point["fidelity"] for point in joined]
        axes.plot(*places, **style("reconstruction") | {"marker": "o"})
        for point, x, y in zip(joined, *places, strict=True):
            axes.annotate(printable(point["name"]), (x, y), xytext=(6, 5), textcoords="offset points", color=INK, fontsize=9)
        for point in known[len(joined) :]:
            axes.plot(point["power"][band], point["fidelity"], **style(point["name"]) | {"marker": "s"})
        long, short = (edge.split("/")[1] for edge in band.split("-"))
        plain_axes(axes, document["power"], "", f"detail with periods of {short} to {long} voxels along z")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(document["points"]), frameon=False)
    figure.axes[0].set_ylabel(document["fidelity"], color=INK)
    return figure


def said(document: dict[str, Any]) -> list[str]:
    """The points in words."""
    lines = [f"{document['fidelity']}; {document['power']}, {' and '.join(BANDS)} cycles per voxel:"]
    for point in document["points"]:
        fidelity = "–" if point["fidelity"] is None else f"{point['fidelity']:.2f}"
        powers = " and ".join(f"{point['power'].get(band, math.nan):.2f}" for band in BANDS)
        lines.append(f"{point['name']}: {fidelity}; {powers}")
    return lines
