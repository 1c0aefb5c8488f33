"""Pictures that a microscopist can read: orthogonal planes, labelled, on one common scale of grey values.

Which axis is what: volumes in memory are (X, Y, Z) with X the rows and Y the columns of the file. The pictures speak the user's
language, as in Fiji: x runs along the columns to the right, y down the rows, z through the stack. Memory X is the user's y:

    picture   to the right   downwards   plane
    XY        x (memory Y)   y (memory X)   the middle z
    XZ        x (memory Y)   z              the middle row
    YZ        y (memory X)   z              the middle column

z runs downwards in both XZ and YZ, so that missing axial resolution shows as the same vertical smear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from utils.axes import transposed
from utils.files import replaced

_DPI = 100
_TARGET = 256  # planes are magnified to about this many pixels
_LARGEST = 768  # larger planes are thinned to at most this
_CHANNELS = (("magenta", (1.0, 0.0, 1.0)), ("green", (0.0, 1.0, 0.0)))
_BAD = np.array([255, 0, 0], np.uint8)  # NaN and infinite values

RGB = NDArray[np.uint8]
Range = tuple[float, float]


class _Layout(NamedTuple):
    """Pixels."""

    magnify: int
    thin: int
    widths: tuple[int, int, int]  # of the three columns
    heights: tuple[int, int, int]
    row: int  # height of a row with its labels
    left: int = 52
    gap: int = 40
    top: int = 62

    @property
    def bars(self) -> int:
        """Where the planes end and the colour bars begin."""
        return self.left + sum(self.widths) + 2 * self.gap

    def column(self, index: int) -> int:
        return self.left + sum(self.widths[:index]) + index * self.gap


def orthogonal_planes(
    panels: Mapping[str, NDArray],
    *,
    title: str = "",
    voxel_um: tuple[float, float, float] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> RGB:
    """Draw the middle XY, XZ and YZ planes of volumes, one row per volume, with labels and one common scale.

    Pixels are shown as they are: magnified by a whole number without interpolation; planes wider than 768 pixels are thinned
    by a whole number, and the column titles say so. A panel with fewer planes than the others (encoded slices) is drawn with
    each slice repeated.

    Args:
        panels: name of the row -> volume (X, Y, Z) or (C, X, Y, Z). Two channels become a composite, the first magenta and
            the second green (white where both are bright); a panel with one channel is grey, on the scale of the first.
        title: one line above.
        voxel_um: voxel size (z, y, x) in µm, adds a scale bar. If z is coarser by n, slices are drawn n pixels high.
        low: value shown as black, by default the 0.2nd percentile of all planes shown (per channel).
        high: value shown as white, by default the 99.8th percentile.

    Returns:
        RGB picture (height, width, 3) uint8. Values that are not finite are red.

    Raises:
        ValueError: no panels, or panels whose shapes do not fit together.
    """
    volumes = _common_grid(panels, voxel_um)
    size = next(iter(volumes.values())).shape[1:]
    channels = max(len(volume) for volume in volumes.values())
    planes = {name: [_plane(volume, index) for index in range(3)] for name, volume in volumes.items()}
    shown = [[p[c] for row in planes.values() for p in row if c < len(p)] for c in range(channels)]
    ranges = [_value_range(values, low, high) for values in shown]
    layout = _lay_out((size[0], size[1], size[2]))
    width = max(layout.bars + 150, layout.left + 9 * max(map(len, [title, *planes])))  # long names are not cut
    figure = Figure(figsize=(width / _DPI, (layout.top + len(planes) * layout.row) / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    titles = _column_titles((size[0], size[1], size[2]), layout.thin)
    for row, (name, triple) in enumerate(planes.items()):
        top = layout.top + row * layout.row
        _text(figure, layout.left, top - 6, name, weight="bold")
        for column, plane in enumerate(triple):
            image = _colour(plane[:, :: layout.thin, :: layout.thin], ranges)
            axes = _draw_plane(figure, layout, column, top, image)
            axes.set_xlabel(("x →", "x →", "y →")[column], fontsize=8, labelpad=2)
            axes.set_ylabel(("y\n↓", "z\n↓", "z\n↓")[column], fontsize=8, labelpad=8, rotation=0, va="center")
            if row == 0:
                _text(figure, layout.column(column), layout.top - 24, titles[column])
                if voxel_um is not None:
                    _scale_bar(axes, layout, column, voxel_um)
    _text(figure, layout.left, 18, title, size=11)
    _colour_bars(figure, layout, len(planes), ranges)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _common_grid(panels: Mapping[str, NDArray], voxel_um: tuple[float, float, float] | None) -> dict[str, NDArray]:
    """All volumes as (C, X, Y, Z) of one shape; slices are repeated along z."""
    if not panels:
        raise ValueError("no panels to draw")
    volumes = {name: np.asarray(v)[None] if np.ndim(v) == 3 else np.asarray(v) for name, v in panels.items()}
    depth = max(v.shape[-1] for v in volumes.values())
    first = next(iter(volumes.values()))
    for name, volume in volumes.items():
        fits = volume.ndim == 4 and volume.shape[1:3] == first.shape[1:3] and 0 not in volume.shape
        if not fits or depth % volume.shape[3] or len(volume) > 2:
            raise ValueError(
                f"panel {name!r} of shape {np.shape(panels[name])} must be (X, Y, Z) or (1 or 2, X, Y, Z) and fit "
                f"the first panel, {first.shape}; its planes must divide {depth}"
            )
    stretch = 1 if voxel_um is None else max(1, round(voxel_um[0] / voxel_um[2]))
    return {name: np.repeat(v, depth // v.shape[3] * stretch, axis=3) for name, v in volumes.items()}


def _plane(volume: NDArray, column: int) -> NDArray:
    """The middle XY, XZ or YZ plane (C, downwards, to the right) of (C, X, Y, Z)."""
    _, rows, columns, depth = volume.shape
    if column == 0:
        return volume[:, :, :, depth // 2]
    plane = volume[:, rows // 2, :, :] if column == 1 else volume[:, :, columns // 2, :]
    return transposed(plane, 1)


def _value_range(planes: list[NDArray], low: float | None, high: float | None) -> Range:
    values = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    values = values[np.isfinite(values)]
    ends = np.percentile(values, (0.2, 99.8)) if values.size else np.array([0.0, 1.0])
    first = float(ends[0]) if low is None else low
    last = float(ends[1]) if high is None else high
    return first, last if last > first else first + 1


def _lay_out(size: tuple[int, int, int]) -> _Layout:
    rows, columns, depth = size
    thin = -(-max(size) // _LARGEST)
    magnify = max(1, round(_TARGET / max(size))) if thin == 1 else 1
    y, x, z = (-(-length // thin) * magnify for length in (rows, columns, depth))
    return _Layout(magnify, thin, (x, x, y), (y, z, z), max(y, z) + 48)


def _column_titles(size: tuple[int, int, int], thin: int) -> list[str]:
    rows, columns, depth = size
    note = f", every {thin}{'nd' if thin == 2 else 'rd' if thin == 3 else 'th'} pixel" if thin > 1 else ""
    return [f"XY  (z = {depth // 2}{note})", f"XZ  (y = {rows // 2})", f"YZ  (x = {columns // 2})"]


def _colour(plane: NDArray, ranges: list[Range]) -> RGB:
    """(C, rows, columns) -> RGB (rows, columns, 3): grey, or magenta and green."""
    finite = np.isfinite(plane).all(0)
    levels = []
    for values, (low, high) in zip(plane, ranges, strict=False):
        scaled = (np.where(finite, values, low).astype(np.float64) - low) / (high - low)
        levels.append(np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8))
    image = np.stack([levels[0], levels[-1], levels[0]], axis=-1)  # one channel: three times the same
    image[~finite] = _BAD
    return image


def _draw_plane(figure: Figure, layout: _Layout, column: int, top: int, image: RGB) -> Axes:
    """One plane in axes that are exactly as large as the magnified image."""
    width, height = figure.get_size_inches() * _DPI
    left = layout.column(column)
    wide, high = layout.widths[column], layout.heights[column]
    axes = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))
    axes.set(xticks=[], yticks=[], xlim=(0, wide), ylim=(high, 0))
    for spine in axes.spines.values():
        spine.set_visible(False)
    magnified = np.kron(image, np.ones((layout.magnify, layout.magnify, 1), np.uint8))
    axes.imshow(magnified, interpolation="none", extent=(0, wide, high, 0))
    return axes


def _scale_bar(axes: Axes, layout: _Layout, column: int, voxel_um: tuple[float, float, float]) -> None:
    """A white bar with a round length of about a quarter of the plane."""
    pixel_um = (voxel_um[1] if column == 2 else voxel_um[2]) * layout.thin / layout.magnify
    wide, high = layout.widths[column], layout.heights[column]
    length = _round_length(pixel_um * wide / 4)
    bar = length / pixel_um
    axes.add_patch(Rectangle((wide - 8 - bar, high - 10), bar, 4, facecolor="white", edgecolor="black", linewidth=0.8))
    label = axes.text(wide - 8 - bar / 2, high - 13, f"{length:g} µm", color="white", fontsize=8, ha="center", va="bottom")
    label.set_bbox({"facecolor": "black", "alpha": 0.5, "pad": 1, "linewidth": 0})


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)))


def _colour_bars(figure: Figure, layout: _Layout, rows: int, ranges: list[Range]) -> None:
    """One bar per channel at the right of the first row; arrows mean that values beyond are shown alike."""
    width, height = figure.get_size_inches() * _DPI
    left = layout.bars + 18
    length = (layout.row - 48 - 24 * (len(ranges) - 1)) / len(ranges)
    for channel, (low, high) in enumerate(ranges):
        top = layout.top + channel * (length + 24)
        axes = figure.add_axes((left / width, 1 - (top + length) / height, 14 / width, length / height))
        bar = figure.colorbar(ScalarMappable(Normalize(low, high), _colour_map(channel, len(ranges))), cax=axes, extend="both")
        bar.ax.tick_params(labelsize=8)
        name = "grey value" if len(ranges) == 1 else f"{_CHANNELS[channel][0]}: channel {channel}"
        _text(figure, left, top - 6, name, size=8)


def _colour_map(channel: int, channels: int) -> Colormap:
    name, colour = ("grey", (1.0, 1.0, 1.0)) if channels == 1 else _CHANNELS[channel]
    return LinearSegmentedColormap.from_list(name, [(0.0, 0.0, 0.0), colour])


def _text(figure: Figure, left: float, bottom: float, text: str, *, size: float = 9, weight: str = "normal") -> None:
    width, height = figure.get_size_inches() * _DPI
    figure.text(left / width, 1 - bottom / height, text, fontsize=size, weight=weight, ha="left", va="bottom", parse_math=False)


def save_png(path: Path | str, image: RGB) -> None:
    """Write a picture (height, width, 3) or (height, width) uint8 as PNG; the file appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def keep_newest(folder: Path | str, pattern: str, number: int) -> None:
    """Delete all but the newest files of a folder that match a pattern (by time of change, then by name).

    Raises:
        ValueError: negative number.
    """
    if number < 0:
        raise ValueError(f"number={number} must not be negative")
    files = sorted((p for p in Path(folder).glob(pattern) if p.is_file()), key=lambda p: (p.stat().st_mtime_ns, p.name))
    for path in files[: len(files) - number]:
        path.unlink(missing_ok=True)
