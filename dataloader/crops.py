"""Where a crop lies and how it is cut out: z window, thinning, resizing, rotation about the crop's own centre.

Geometry only; values stay those of the file. File order is (Z, rows, columns); a crop is (X=rows, Y=columns, Z).
"""

import math
from dataclasses import dataclass
from functools import cache

import albumentations as A
import cv2
import numpy as np

from utils.axes import to_memory
from utils.boxes import Box, overlap, reflected, sample, whole_box
from utils.errors import UserError
from volumes.volume import Volume

MAX_ANGLE = 45  # degrees; every square orientation up to the symmetries of the grid
_CELL = 8, 128, 128  # least sides (z, y, x) of a neighbourhood: their multiples are borders of most chunks and tiles, too
cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork of a worker process


@dataclass(frozen=True)
class CropSettings:
    """Size and sampling of a crop.

    Attributes:
        cropsize: in-plane side in pixels (after ``resize``).
        cropz: raw planes that a crop spans.
        dsp: every dsp-th plane is kept (``dsp_how`` pick) or every dsp planes are averaged (mean).
        dsp_how: pick | mean.
        usp: factor by which the kept planes are interpolated along Z.
        precrop: side of the centred square that crops come from; 0 = the whole plane.
        resize: side to which planes (after precrop) are resized; 0 = not at all.
        rotate: rotate by a random angle within ±45° (training only).
    """

    cropsize: int
    cropz: int
    dsp: int = 1
    dsp_how: str = "pick"
    usp: float = 1
    precrop: int = 0
    resize: int = 0
    rotate: bool = True

    def __post_init__(self) -> None:
        for name in ("precrop", "resize"):
            value = getattr(self, name)
            if value and value < self.cropsize:
                raise UserError(f"{name}={value} is smaller than cropsize={self.cropsize}; raise it, or set it to 0 for none")
        if self.kept < 1 or self.slices < 1:
            least = max(self.dsp, math.ceil(self.dsp / self.usp))
            raise UserError(f"cropz={self.cropz} leaves no slice with dsp={self.dsp}, usp={self.usp}; raise cropz to {least}")

    @property
    def kept(self) -> int:
        """Planes that remain after dsp."""
        return self.cropz // self.dsp

    @property
    def slices(self) -> int:
        """Slices of a finished crop, ``int(cropz * usp / dsp)`` (the same as utils.geometry.Geometry)."""
        return int(self.cropz * self.usp / self.dsp)

    def check(self, volume: Volume) -> None:
        """Raise a UserError if a volume is too small for a crop."""
        depth, height, width = volume.shape
        where = f"{volume.path} has (Z, Y, X) = {volume.shape}"
        if depth < self.cropz:
            raise UserError(f"{where}: fewer planes than cropz={self.cropz}; lower cropz or remove the file")
        if self.precrop > min(height, width):
            raise UserError(f"{where}: smaller than precrop={self.precrop}; lower precrop or remove the file")
        if not self.resize and min(height, width) < self.cropsize:
            raise UserError(f"{where}: smaller in-plane than cropsize={self.cropsize}; lower cropsize or remove the file")


@dataclass(frozen=True)
class Crop:
    """Position of one crop: first raw plane, plane picked of every dsp, corner (row, column) on the resized grid.

    ``rotation`` seeds the angle; None = not rotated.
    """

    z: int
    offset: int
    row: int
    column: int
    rotation: int | None = None


def places(shape: tuple[int, int, int], settings: CropSettings) -> Box:
    """Where crops of a volume of shape (Z, Y, X) may begin: first plane, row and column."""
    side = settings.resize or settings.precrop
    depth, height, width = (shape[0], side, side) if side else shape
    return whole_box((depth - settings.cropz + 1, height - settings.cropsize + 1, width - settings.cropsize + 1))


def neighbourhood(everywhere: Box, settings: CropSettings, rng: np.random.Generator) -> Box:
    """Places no farther apart than a crop is large, or 8 x 128 x 128; all places are equally likely to be among them."""
    crop = random_crop(everywhere, settings, rng)
    sides = np.maximum(_CELL, (settings.cropz, settings.cropsize, settings.cropsize))
    z, y, x = (slice(n * side, (n + 1) * side) for n, side in zip((crop.z, crop.row, crop.column) // sides, sides, strict=True))
    return overlap((z, y, x), everywhere)


def random_crop(within: Box, settings: CropSettings, rng: np.random.Generator) -> Crop:
    """A crop that begins at one of these places: all are equally likely, the last ones too."""
    z, rows, columns = within
    return Crop(
        z=int(rng.integers(z.start, z.stop)),
        offset=int(rng.integers(settings.dsp)),
        row=int(rng.integers(rows.start, rows.stop)),
        column=int(rng.integers(columns.start, columns.stop)),
        rotation=int(rng.integers(2**31)) if settings.rotate else None,
    )


def centre_crop(shape: tuple[int, int, int], settings: CropSettings) -> Crop:
    """The crop in the middle of a volume of shape (Z, Y, X), for validation."""
    z, row, column = ((part.stop - 1) // 2 for part in places(shape, settings))
    return Crop(z, 0, row, column)


def read_crop(volume: Volume, crop: Crop, settings: CropSettings) -> np.ndarray:
    """Cut a crop out of a volume, reading no more than it needs: float32 (cropsize, cropsize, slices) of the file's own values.

    Axes are (X, Y, Z).
    """
    margin = rotation_margin(settings.cropsize) if crop.rotation is not None else 0
    rows = _source_positions(slice(crop.row, crop.row + 1), volume.shape[1], margin, settings)
    columns = _source_positions(slice(crop.column, crop.column + 1), volume.shape[2], margin, settings)
    y, x = _span(rows), _span(columns)
    stop = crop.z + settings.kept * settings.dsp
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which the intensity check reports
        if settings.dsp_how == "pick":
            planes = volume[crop.z + crop.offset : stop : settings.dsp, y, x].astype(np.float32, copy=False)
        else:
            planes = volume[crop.z : stop, y, x]
            planes = planes.reshape(settings.kept, settings.dsp, *planes.shape[1:]).mean(axis=1, dtype=np.float32)
    planes = sample(sample(planes, rows - y.start, axis=1), columns - x.start, axis=2)
    image = np.ascontiguousarray(to_memory(planes))
    if crop.rotation is not None:
        turn = _rotation(settings.cropsize)
        turn.set_random_seed(crop.rotation)
        image = np.ascontiguousarray(turn(image=image)["image"])
    if settings.usp != 1:
        image = sample(image, (np.arange(settings.slices) + 0.5) / settings.usp - 0.5, axis=2)
    return image


def box_under(within: Box, shape: tuple[int, int, int], settings: CropSettings) -> Box:
    """What crops that begin at these places read of a volume of shape (Z, Y, X)."""
    margin = rotation_margin(settings.cropsize) if settings.rotate else 0
    z, *corners = within
    y, x = (_span(_source_positions(at, size, margin, settings)) for at, size in zip(corners, shape[1:], strict=True))
    return slice(z.start, z.stop - 1 + settings.kept * settings.dsp), y, x


def rotation_margin(cropsize: int) -> int:
    """Pixels around a crop that a rotation by up to 45° about its centre can reach, and one for interpolation."""
    return math.ceil(cropsize * (math.sqrt(2) - 1) / 2) + 1


def _source_positions(corners: slice, size: int, margin: int, settings: CropSettings) -> np.ndarray:
    """Pixels of the file (fractional when resized) under the pixels of crops with their margin, along one axis."""
    region = settings.precrop or size
    grid = settings.resize or region
    pixels = reflected((corners.start - margin, corners.stop - 1 + settings.cropsize + margin), grid)
    inside = np.clip((pixels + 0.5) * region / grid - 0.5, 0, region - 1)
    return inside + (size - region) // 2


def _span(positions: np.ndarray) -> slice:
    return slice(int(np.floor(positions.min())), int(np.ceil(positions.max())) + 1)


@cache
def _rotation(cropsize: int) -> A.Compose:
    turn = A.Rotate(limit=(-MAX_ANGLE, MAX_ANGLE), interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_REFLECT_101, p=1)
    return A.Compose([turn, A.CenterCrop(cropsize, cropsize)])
