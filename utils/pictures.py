"""Pictures that a microscopist can read: orthogonal planes, labelled, on one common scale of grey values.

Which axis is what: volumes in memory are (X, Y, Z) with X the rows and Y the columns of the file. The pictures speak the user's
language, as in Fiji: x runs along the columns to the right, y down the rows, z through the stack. Memory X is the user's y:

    picture   to the right   downwards   plane
    XY        x (memory Y)   y (memory X)   the middle z
    XZ        x (memory Y)   z              the middle row
    YZ        y (memory X)   z              the middle column

z runs downwards in both XZ and YZ, so that missing axial resolution shows as the same vertical smear.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from utils.axes import transposed
from utils.errors import printable
from utils.files import replaced
from utils.units import as_length

_TARGET = 256  # planes are magnified to about this many pixels
_LARGEST = 768  # larger planes are thinned to at most this
_TALLEST = 4 * _LARGEST  # pixels to which slices are repeated at most: a header may state any distance
_CHANNELS = (("magenta", (1, 0, 1)), ("green", (0, 1, 0)))
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
    limits: Range | None = None,
    scale_of: str | None = None,
) -> RGB:
    """Draw the middle XY, XZ and YZ planes of volumes, one row per volume, with labels and one common scale.

    Pixels are shown as they are: magnified by a whole number without interpolation; planes wider than 768 pixels are thinned
    by a whole number, and the column titles say so. A panel with fewer planes than the others (encoded slices) is drawn with
    each slice repeated.

    Args:
        panels: name of the row -> volume (X, Y, Z) or (C, X, Y, Z), of one X and Y; each Z divides the largest. Two channels
            become a composite, the first magenta and the second green (white where both are bright); one channel is grey, on
            the scale of the first.
        title: one line above.
        voxel_um: voxel size (z, y, x) in µm, adds a scale bar. If z is coarser by n, slices are drawn n pixels high.
        limits: values shown as black and as white, by default percentiles 0.2 and 99.8 of all planes shown (per channel).
        scale_of: the row whose planes alone give these percentiles.

    Returns:
        RGB picture (height, width, 3) uint8. Values that are not finite are red.
    """
    volumes = _common_grid(panels, voxel_um)
    size = next(iter(volumes.values())).shape[1:]
    channels = max(len(volume) for volume in volumes.values())
    planes = {name: _middle_planes(volume) for name, volume in volumes.items()}
    measured = planes if scale_of is None else {scale_of: planes[scale_of]}
    shown = [[p[c] for row in measured.values() for p in row if c < len(p)] for c in range(channels)]
    ranges = [limits or _value_range(values) for values in shown]
    layout = _lay_out((size[0], size[1], size[2]))
    width = max(layout.bars + 150, layout.left + 9 * max(map(len, [title, *planes])))  # long names are not cut
    picture = Image.new("RGB", (width, layout.top + len(planes) * layout.row), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((layout.left, 18), printable(title), "black", _font(15), "ls")
    ordinal = {2: "2nd", 3: "3rd"}.get(layout.thin, f"{layout.thin}th")
    note = f", every {ordinal} pixel" if layout.thin > 1 else ""
    places = (f"XY  (z = {size[2] // 2}{note})", f"XZ  (y = {size[0] // 2})", f"YZ  (x = {size[1] // 2})")
    for column, place in enumerate(places):
        draw.text((layout.column(column), layout.top - 24), place, "black", _font(12), "ls")
    for row, (name, triple) in enumerate(planes.items()):
        top = layout.top + row * layout.row
        draw.text((layout.left, top - 6), name, "black", _font(12, "-Bold"), "ls")
        for column, plane in enumerate(triple):
            left, wide, high = layout.column(column), layout.widths[column], layout.heights[column]
            image = _colour(plane[:, :: layout.thin, :: layout.thin], ranges)
            magnified = np.kron(image, np.ones((layout.magnify, layout.magnify, 1), np.uint8))
            picture.paste(Image.fromarray(magnified), (left, top))
            draw.text((left + wide / 2, top + high + 4), ("x →", "x →", "y →")[column], "black", _font(11), "mt")
            draw.text((left - 12, top + high / 2), ("y\n↓", "z\n↓", "z\n↓")[column], "black", _font(11), "mm")
            if row == 0 and voxel_um is not None:
                pixel_um = (voxel_um[1] if column == 2 else voxel_um[2]) * layout.thin / layout.magnify
                _scale_bar(draw, left + wide, top + high, wide / 4, pixel_um)
    _colour_bars(picture, layout, ranges)
    return np.asarray(picture).copy()


def _common_grid(panels: Mapping[str, NDArray], voxel_um: tuple[float, float, float] | None) -> dict[str, NDArray]:
    """All volumes as (C, X, Y, Z) of one shape; slices are repeated along z."""
    volumes = {name: np.asarray(v)[None] if np.ndim(v) == 3 else np.asarray(v) for name, v in panels.items()}
    depth = max(v.shape[-1] for v in volumes.values())
    stretch = 1 if voxel_um is None else max(1, round(min(voxel_um[0] / voxel_um[2], _TALLEST / depth)))
    return {name: np.repeat(v, depth // v.shape[3] * stretch, axis=3) for name, v in volumes.items()}


def _middle_planes(volume: NDArray) -> list[NDArray]:
    """The middle XY, XZ and YZ planes, each (C, downwards, to the right), of (C, X, Y, Z)."""
    _, rows, columns, depth = volume.shape
    return [volume[..., depth // 2], transposed(volume[:, rows // 2], 1), transposed(volume[:, :, columns // 2], 1)]


def _value_range(planes: list[NDArray]) -> Range:
    values = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = map(float, np.percentile(values, (0.2, 99.8))) if values.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _lay_out(size: tuple[int, int, int]) -> _Layout:
    rows, columns, depth = size
    thin = -(-max(size) // _LARGEST)
    magnify = max(1, round(_TARGET / max(size))) if thin == 1 else 1
    y, x, z = (-(-length // thin) * magnify for length in (rows, columns, depth))
    return _Layout(magnify, thin, (x, x, y), (y, z, z), max(y, z) + 48)


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


def _scale_bar(draw: ImageDraw.ImageDraw, right: int, bottom: int, longest: float, pixel_um: float) -> None:
    """A white bar in the corner of a plane: 1, 2 or 5 times a power of ten µm, and no longer than so many pixels."""
    power = 10.0 ** np.floor(np.log10(longest * pixel_um))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= longest * pixel_um * (1 + 1e-9)))
    left, label = right - 8 - length / pixel_um, as_length(length)
    draw.rectangle((min(left, right - 9), bottom - 10, right - 9, bottom - 7), "white")
    middle = ((left + right - 8) / 2, bottom - 14)
    draw.text(middle, label, "white", _font(11), "ms", stroke_width=2, stroke_fill="black")


def _colour_bars(picture: Image.Image, layout: _Layout, ranges: list[Range]) -> None:
    """One bar per channel at the right of the first row; values beyond its ends are shown as they are."""
    draw, left = ImageDraw.Draw(picture), layout.bars + 18
    length = (layout.row - 48 - 24 * (len(ranges) - 1)) // len(ranges)
    for channel, (low, high) in enumerate(ranges):
        top = layout.top + channel * (length + 24)
        name, colour = ("grey value", (1, 1, 1)) if len(ranges) == 1 else _CHANNELS[channel]
        ramp = np.linspace(255, 0, length)[:, None, None] * np.ones((1, 14, 1)) * colour
        picture.paste(Image.fromarray(np.rint(ramp).astype(np.uint8)), (left, top))
        draw.rectangle((left, top, left + 13, top + length - 1), outline="black")
        draw.text((left, top - 6), name if len(ranges) == 1 else f"{name}: channel {channel}", "black", _font(11), "ls")
        for place, text in ((0, f"≥ {high:.3g}"), (length / 2, f"{(low + high) / 2:.3g}"), (length - 1, f"≤ {low:.3g}")):
            draw.text((left + 19, top + place), text, "black", _font(11), "lm")


@cache
def _font(size: int, kind: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; it has arrows and µ."""
    import matplotlib  # .15 s, which commands without pictures do not take

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{kind}.ttf"), size)


def save_png(path: Path | str, image: RGB) -> None:
    """Write a picture (height, width, 3) or (height, width) uint8 as PNG; the file appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def keep_newest(folder: Path | str, pattern: str, number: int) -> None:
    """Delete all but the newest files of a folder that match a pattern (by time of change, then by name)."""
    files = sorted((p for p in Path(folder).glob(pattern) if p.is_file()), key=lambda p: (p.stat().st_mtime_ns, p.name))
    for path in files[:-number]:
        path.unlink(missing_ok=True)
