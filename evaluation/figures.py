"""The figures of a report: orthogonal planes, Fourier shell correlation, power spectra."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evaluation.grid import Comparison
from volumes.volume import Triple

INK, MUTED = "#1c2430", "#6b7480"
CODED = (0, (4, 1, 1, 1, 1, 1))
STYLES: dict[str, tuple[str, Any, float, int]] = {  # colour, dash, width, order
    "truth": ("#1c2430", "-", 1.6, 3),
    "reconstruction": ("#d1495b", "-", 2.4, 4),
    "nearest": ("#8d99ae", ":", 1.5, 3),
    "linear": ("#2a9d8f", "--", 1.5, 3),
    "cubic": ("#2667b8", "-.", 1.5, 3),
    "input": ("#2667b8", "-.", 1.5, 3),
    "jpeg2000 + linear": ("#c08a1e", CODED, 1.3, 2),
    "jpeg2000 + cubic": ("#7a5c9e", CODED, 1.3, 2),
}
ORIENTATIONS = (("XY", 0, "x", "y"), ("XZ", 1, "x", "z"), ("YZ", 2, "y", "z"))
ALONG, IN_PLANE = ("along z", "z"), ("in-plane (mean of x and y)", "yx")  # a panel's title, and the axes that it averages


def style(name: str) -> dict[str, Any]:
    """Line style of a volume, the same in every figure."""
    return dict(zip(("color", "linestyle", "linewidth", "zorder"), STYLES[name], strict=True)) | {"label": name}


def plain_axes(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    """Labels, and as little else as possible."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.tick_params(colors=MUTED, labelsize=9)


def draw_figures(
    comparison: Comparison, volumes: dict[str, Any], boxes: dict[str, NDArray[np.float32]], folder: Path
) -> dict[str, Path]:
    """The figures of a report, by all volumes' numbers and central boxes: PNGs ``planes``, ``spectra``, with a truth ``fsc``."""
    step = None if comparison.sections is None else comparison.sections.step
    plane = between_sections(comparison, len(next(iter(boxes.values()))))
    figures = {"planes": draw_planes(boxes, comparison.spacing, plane), "spectra": draw_spectra(volumes, step)}
    if comparison.truth:
        figures["fsc"] = draw_fsc({name: numbers for name, numbers in volumes.items() if "fsc" in numbers})
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in figures}


def between_sections(comparison: Comparison, depth: int) -> int:
    """Plane of the central box nearest to its middle that shows most of a restoration: half-way between two sections."""
    sections, whole = comparison.sections, comparison.region[0]
    if sections is None or sections.step <= 1:
        return depth // 2
    start = whole.start + (whole.stop - whole.start - depth) // 2
    gap = math.floor((start + depth // 2 - sections.first) / sections.step)
    return min(max(round(sections.position(gap + 0.5)) - start, 0), depth - 1)


def draw_planes(boxes: dict[str, NDArray[np.float32]], spacing: Triple, plane: int) -> Figure:
    """XY plane of that number, central XZ and YZ planes of boxes (Z, Y, X): interpolated input, reconstruction, truth, error."""
    titles = {"cubic": "input, cubic interpolation", "input": "input", "reconstruction": "reconstruction", "truth": "truth"}
    panels = {title: boxes[name] for name, title in titles.items() if name in boxes}
    first = next(iter(panels))
    base, tested = ("truth" if "truth" in panels else first), ("reconstruction" if "reconstruction" in panels else first)
    grey = dict(zip(("vmin", "vmax"), np.percentile(panels[base], [0.3, 99.7]), strict=True)) | {"cmap": "gray"}
    depth, height, width = (size * step for size, step in zip(panels[base].shape, spacing, strict=True))
    columns = len(panels) + (tested != base)
    figure = Figure(
        (columns * 3.0 + 0.9, 2.85 / width * (height + 2 * depth) + 0.9), dpi=110, layout="constrained", facecolor="white"
    )
    grid = figure.subplots(3, columns, squeeze=False, gridspec_kw={"height_ratios": [height, depth, depth]})
    for column, (title, block) in zip(grid.T, panels.items(), strict=False):
        _show_planes(column, block, spacing, title, grey, plane)
    if tested != base:
        error = panels[tested] - panels[base]
        reach = max(float(np.percentile(np.abs(error), 99)), 1e-12)
        title = f"{'error' if base == 'truth' else 'difference'}: {tested.split(',')[0]} − {base.split(',')[0]}"
        image = _show_planes(grid[:, -1], error, spacing, title, {"vmin": -reach, "vmax": reach, "cmap": "RdBu_r"}, plane)
        figure.colorbar(image, ax=grid[:, -1], shrink=0.5, pad=0.03).set_label("grey values", color=INK)
    for axes, (name, _, _, down) in zip(grid[:, 0], ORIENTATIONS, strict=True):
        axes.set_ylabel(f"{name}\n← {down}", color=INK, fontsize=11)
    return figure


def _show_planes(column: Any, block: NDArray[np.float32], spacing: Triple, title: str, look: dict[str, Any], number: int) -> Any:
    step = dict(zip("zyx", spacing, strict=True))
    for axes, (_, axis, across, down) in zip(column, ORIENTATIONS, strict=True):
        plane = block.take(block.shape[axis] // 2 if axis else number, axis)
        image = axes.imshow(plane, aspect=step[down] / step[across], interpolation="nearest", **look)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"{across} →", fontsize=9, color=MUTED)
    column[0].set_title(title, fontsize=11, color=INK)
    return image


def draw_fsc(volumes: dict[str, Any]) -> Figure:
    """Fourier shell correlation with the truth: along z, in-plane and whole."""
    panels = (ALONG, IN_PLANE, ("all directions", ("whole",)))
    figure = _draw_curves(volumes, "fsc", ("cycles_per_voxel", "correlation"), panels)
    for axes in figure.axes:
        for threshold in (0.5, 0.143):
            axes.axhline(threshold, color=MUTED, linewidth=0.8)
            axes.text(0.498, threshold + 0.012, f"{threshold}", ha="right", color=MUTED, fontsize=8)
        axes.set(xlim=(0, 0.5), ylim=(-0.12, 1.03))
    figure.axes[0].set_ylabel("correlation with the truth", color=INK)
    return figure


def draw_spectra(volumes: dict[str, Any], step: float | None) -> Figure:
    """Power spectra along z and in-plane; step: planes per section of the input, whose own limit is marked, if there is one."""
    figure = _draw_curves(volumes, "power", ("frequency", "power"), (ALONG, IN_PLANE))
    reference = volumes.get("truth") or next(iter(volumes.values()))
    powers = np.concatenate([reference["power"][axis]["power"] for axis in "zyx"])
    ticks = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    for axes in figure.axes:
        axes.set(xscale="log", yscale="log", xlim=(1 / 64, 0.5), ylim=(powers[powers > 0].min() / 30, powers.max() * 2))
        axes.set_xticks(ticks, [f"1/{round(1 / tick)}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
    first = figure.axes[0]
    first.set_ylabel("power per voxel (squared grey values)", color=INK)
    if step is not None and step > 1:
        first.axvline(1 / (2 * step), color=MUTED, linewidth=0.9)
        first.text(1.05 / (2 * step), powers.max(), "the input's limit", color=MUTED, fontsize=9)
    return figure


def _draw_curves(volumes: dict[str, Any], key: str, xy: tuple[str, str], panels: Sequence[tuple[str, Sequence[str]]]) -> Figure:
    """One panel per title: of every volume the mean of its curves over some axes, as metrics.json has them."""
    figure = Figure((12.5, 4.1), dpi=110, layout="constrained", facecolor="white")
    for axes, (title, directions) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for name, numbers in volumes.items():
            curves = [[np.array(numbers[key][axis][word], float) for word in xy] for axis in directions]
            length = min(len(value) for _, value in curves)
            axes.plot(curves[0][0][:length], np.mean([value[:length] for _, value in curves], axis=0), **style(name))
        plain_axes(axes, "frequency (cycles per voxel)", "", title)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(volumes), frameon=False)
    return figure
