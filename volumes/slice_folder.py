"""A folder of 2-D greyscale images, one for each plane, as a volume; and images that only Pillow reads: PNG, stacks of frames."""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from volumes.contiguous import MOST_PACKED
from volumes.stated import Choice
from volumes.tiff_reader import open_tiff
from volumes.volume import PlaneVolume, Volume, check_dtype, reading

# Planes of 10⁸ pixels are everyday microscopy; Pillow takes them for an attack.
Image.MAX_IMAGE_PIXELS = None
_DTYPES = {"1": "bool", "L": "uint8", "I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16", "F": "float32"}
SLICE_SUFFIXES = (".tif", ".tiff", ".png")
_NUMBER = re.compile(r"(\d+)")


class PillowVolume(PlaneVolume):
    """A greyscale file of one frame or more; every frame is one plane, and is decoded as a whole.

    Args:
        path: the file.
        flat: whether an image of one frame is taken as a volume of one plane; else a UserError refuses it.
        reason: why it is no TIFF, for messages.
    """

    def __init__(self, path: Path, flat: bool, reason: Exception | None):
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Pillow only warns about truncated directories
                with Image.open(path) as image:
                    frames = getattr(image, "n_frames", 1)
                    self._mode, self.shape = image.mode, (frames, image.height, image.width)
                    kind = image.format
        except (OSError, SyntaxError, ValueError, EOFError, TypeError, UserWarning) as error:
            what = f"not a readable image ({reason or error});"
            if reason and isinstance(error, UnidentifiedImageError):
                what = f"of no format that is read here ({reason}): save it as OME-TIFF or OME-Zarr; if it was an image, it is"
            raise UserError(f"{path}: {what} truncated or damaged, copy it again") from error
        if self._mode not in _DTYPES:
            raise UserError(f"{path}: a {kind} of mode {self._mode}; save greyscale images of 8 or 16 bits, a stack as TIFF")
        if frames < 2 and not flat:
            raise UserError(f"{path}: a 2-D image; a volume is a stack of planes (Z, Y, X) in one file")
        self.dtype = check_dtype(path, np.dtype(_DTYPES[self._mode]))
        if kind == "PNG" and math.prod(self.shape) // 8 > MOST_PACKED * path.stat().st_size:  # 1 bit per pixel at least
            raise UserError(f"{path}: truncated: its {self.shape} pixels cannot be in so few bytes; copy it again")
        self.block_rows = self.shape[1]
        if reason:
            self[frames - 1 :]  # the last frame is where a truncated file fails

    def _planes(self, planes: range, rows: slice, columns: slice) -> Iterator[np.ndarray]:
        with Image.open(self.path) as image:
            for z in planes:
                size = math.prod(self.shape[1:]) * self.dtype.itemsize
                with reading(self.path, f"frame {z} cannot be read", "damaged, copy it again", size):
                    image.seek(z)
                    frame = np.asarray(image)
                if image.mode != self._mode or frame.shape != self.shape[1:]:
                    raise UserError(f"{self.path}: frame {z} ({image.mode}, {frame.shape}) is unlike the first; save it as TIFF")
                yield frame[rows, columns]


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Key that sorts names as people do: slice_9 before slice_10, Slice_2 before slice_3 (tifffile's puts capitals first)."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in _NUMBER.split(path.name.lower())]


def listed(folder: Path) -> list[Path]:
    """The images of a folder in natural order; other and hidden files are passed over. A UserError: one is a link to nothing."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in SLICE_SUFFIXES and path.name[0] != "."]
    if lost := [path for path in images if path.is_symlink() and not path.exists()]:
        raise UserError(f"{lost[0]}: a link to {os.readlink(lost[0])}, which is not there; copy it, or remove the link")
    return sorted(filter(Path.is_file, images), key=natural)


class SliceFolder(PlaneVolume):
    """The images of a folder, sorted naturally, as the planes of a volume; of images with channels or times the chosen ones.

    A UserError says that it holds no images, images of different kinds, shapes or dtypes, stacks instead of planes, or that its
    numbering has gaps or counts two things.
    """

    def __init__(self, path: Path, choice: Choice):
        self.path = path
        self._slices = listed(path)
        self._choice = choice
        if not self._slices:
            raise UserError(f"{path}: not a file, and a folder without slices ({', '.join(SLICE_SUFFIXES)}) or Zarr metadata")
        kinds = {"png" if p.suffix.lower() == ".png" else "tif" for p in self._slices}
        if len(kinds) > 1:
            raise UserError(f"{path}: holds PNG and TIFF images; a volume is a folder of one kind")
        check_numbering(path, self._slices)
        first = open_image(self._slices[0], choice, flat=True)
        self.dtype, self.channels, self.times, self.block_rows = first.dtype, first.channels, first.times, first.block_rows
        self.shape = (len(self._slices), first.shape[1], first.shape[2])
        for file in self._slices:
            plane = open_image(file, choice, flat=True)
            if plane.shape[0] != 1:
                raise UserError(
                    f"{path}: {plane.path.name} is a stack of {plane.shape[0]} planes; a folder of slices holds 2-D images, "
                    "and volumes are named one by one or as a folder of volumes"
                )
            if (plane.shape, plane.dtype) != (first.shape, first.dtype):
                raise UserError(
                    f"{path}: {plane.path.name} ({plane.shape[1:]}, {plane.dtype}) is unlike {first.path.name} "
                    f"({first.shape[1:]}, {first.dtype}); all slices of a volume have one shape and dtype"
                )

    def _planes(self, planes: range, rows: slice, columns: slice) -> Iterator[np.ndarray]:
        for z in planes:
            yield open_image(self._slices[z], self._choice, flat=True)[:, rows, columns][0]


def open_image(path: Path, choice: Choice, flat: bool = False) -> Volume:
    """A TIFF, or what else Pillow reads; only with ``flat`` an image of one plane is one. A UserError says why it is none."""
    reason = None
    if path.suffix.lower() != ".png":
        try:
            return open_tiff(path, choice, flat)
        except UserError:
            raise
        except Exception as error:  # a damaged directory fails in many ways inside the parser
            with path.open("rb") as file:
                if file.read(2) in (b"II", b"MM"):  # for Pillow every page would be a plane
                    raise UserError(f"{path}: not a readable TIFF ({error}); truncated or damaged, copy it again") from error
            reason = error
    return PillowVolume(path, flat, reason)


def check_numbering(folder: Path, files: Sequence[Path]) -> None:
    """The numbers in the names must count planes, and nothing else: a slice that is missing would shift all behind it.

    A UserError names images that are no slices, says that two numbers vary in the names, a number occurs twice, or the steps
    between them are unequal.
    """
    parts = [_NUMBER.split(path.stem.lower()) for path in files]
    words = Counter(tuple(p[::2]) for p in parts if len(p) > 1)
    if not words:
        return
    usual, count = words.most_common(1)[0]
    like = [path.name for path, part in zip(files, parts, strict=True) if tuple(part[::2]) == usual]
    several = 2 * count > len(files)  # else the words around the numbers differ by rule
    odd = [p.name for p, part in zip(files, parts, strict=True) if len(part) == 1 or (several and p.name not in like)]
    if odd:
        names = f"{', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}"
        raise UserError(
            f"{folder}: {names} (of {len(files)} images) not numbered like the slices ({like[0]}); move other images away"
        )
    counting = -2  # the last number, where the words around differ
    if len(words) == 1:
        varying = [k for k in range(1, len(parts[0]), 2) if len({int(p[k]) for p in parts}) > 1]
        if len(varying) > 1:
            raise UserError(
                f"{folder}: two numbers vary in the names ({files[0].name} … {files[-1].name}), as of several channels or "
                "series; put the slices of one volume into a folder of their own"
            )
        counting = varying[0] if varying else counting
    numbers = sorted((int(p[counting]), path.name) for p, path in zip(parts, files, strict=True))
    steps = [after[0] - before[0] for before, after in pairwise(numbers)]
    if 0 in steps:
        twice = steps.index(0)
        raise UserError(f"{folder}: {numbers[twice][1]} and {numbers[twice + 1][1]} have one number; keep one series of slices")
    for step, (number, before) in zip(steps, numbers, strict=False):
        if step != min(steps):
            missing = ", ".join(map(str, range(number + min(steps), number + step, min(steps))[:5]))
            missing += " …" if step > 6 * min(steps) else ""
            advance = f"numbers advance by {step} there, else by {min(steps)}"
            raise UserError(f"{folder}: slices are missing after {before}: {missing} ({advance}); copy them too")
