"""A data set on one page: planes, grey values and spectra of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.pictures import RGB
from utils.spectra import SIGNAL, Anisotropy

if TYPE_CHECKING:
    from dataloader.check import Surveyed

_AXIS_COLOURS = {"z": "tab:red", "y": "tab:blue", "x": "tab:cyan"}


def contact_sheet(title: str, files: Sequence[Surveyed]) -> RGB:
    """Draws one row per file: three planes at their true proportions, histogram of these planes, spectra of the three axes.

    Args:
        title: first line.
        files: at least one.

    Returns:
        RGB picture (height, width, 3) uint8.

    Raises:
        ValueError: no files.
    """
    if not files:
        raise ValueError("no files to draw")
    height = 3.1 * len(files) + 0.5  # inches
    figure = Figure(figsize=(15, height), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, y=1 - 0.12 / height, ha="left", va="top", fontsize=12, parse_math=False)
    margins = {"left": 0.03, "right": 0.99, "top": 1 - 0.75 / height, "bottom": 0.45 / height, "hspace": 0.55, "wspace": 0.22}
    grid = figure.add_gridspec(len(files), 5, width_ratios=(1, 1, 1, 0.9, 1.2), **margins)
    for k, file in enumerate(files):
        axes = [figure.add_subplot(grid[k, column]) for column in range(5)]
        low, _, high = file.percentiles
        grey = low, high if high > low else low + 1
        _draw_planes(axes[:3], file, grey)
        _draw_histogram(axes[3], file, grey)
        _draw_spectra(axes[4], file.spectra)
        left, top = axes[0].get_position().x0, grid[k, 0].get_position(figure).y1
        facts, faults = f"{file.name}   {file.facts}", "; ".join(file.faults())
        figure.text(left, top + 0.22 / height, facts, fontsize=9, weight="bold", va="bottom", parse_math=False)
        figure.text(left, top + 0.05 / height, faults, fontsize=8, color="tab:red", va="bottom", parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_planes(axes: Sequence[Axes], file: Surveyed, grey: tuple[float, float]) -> None:
    stretch = file.voxel_um[0] / file.voxel_um[2] if file.voxel_um else 1.0
    labels = (("XY", "x →", "y ↓", 1.0), ("XZ", "x →", "z ↓", stretch), ("YZ", "y →", "z ↓", stretch))
    for image, plane, (name, right, down, aspect) in zip(axes, file.planes, labels, strict=True):
        image.imshow(plane, cmap="gray", vmin=grey[0], vmax=grey[1], aspect=aspect, interpolation="none")
        image.set(xticks=[], yticks=[])
        image.set_xlabel(f"{name}   {right}", fontsize=8)
        image.set_ylabel(down, fontsize=8)


def _draw_histogram(axes: Axes, file: Surveyed, grey: tuple[float, float]) -> None:
    values = np.concatenate([plane.ravel() for plane in file.planes]).astype(np.float64)
    axes.hist(values[np.isfinite(values)], bins=80, color="0.4", log=True, histtype="stepfilled")
    axes.axvspan(*grey, color="tab:green", alpha=0.15)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("grey value; green: 0.1 to 99.9 %", fontsize=8)
    axes.tick_params(labelsize=7)


def _draw_spectra(axes: Axes, spectra: Anisotropy | None) -> None:
    if spectra is None:
        axes.text(0.5, 0.5, "no spectra:\ntoo thin or constant", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    for name, frequency, power, cutoff in zip("zyx", spectra.frequency, spectra.power, spectra.cutoff, strict=True):
        axes.semilogy(frequency, power, color=_AXIS_COLOURS[name], label=f"{name}: {cutoff:.2f}")
        axes.axvline(cutoff, color=_AXIS_COLOURS[name], linestyle=":", linewidth=1)
    axes.axhline(SIGNAL * spectra.floor, color="0.6", linewidth=1)
    axes.legend(fontsize=7, title="cut-off", title_fontsize=7)
    axes.set_xlabel("cycles per voxel; grey: three times the noise floor", fontsize=8)
    axes.tick_params(labelsize=7)
