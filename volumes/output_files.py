"""Names, room and replacement of the files that a command writes: nothing existing is touched before its successor is whole."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError


@dataclass(frozen=True)
class Format:
    """What a file format for volumes can hold; volumes.single_file has a writer for each that is one file.

    Attributes:
        suffixes: endings of its names.
        chunk: (z, y, x) voxels that an output is compressed by as it grows: flat where its planes are read back in order.
        float16: whether it knows that dtype.
        channels: whether several volumes fit into one.
        package: an optional package that writes it.
    """

    suffixes: tuple[str, ...]
    chunk: tuple[int, int, int] = (2, 256, 256)
    float16: bool = False
    channels: bool = True
    package: str | None = None


FORMATS = {
    "zarr": Format((".zarr",), chunk=(64, 64, 64), float16=True),
    "tiff": Format((".ome.tif", ".ome.tiff", ".tif", ".tiff")),
    "nifti": Format((".nii", ".nii.gz"), channels=False, package="nibabel"),
}
SUFFIXES = tuple(suffix for format_ in FORMATS.values() for suffix in format_.suffixes)
PARTIAL = ".partial.zarr"
_PYRAMID = 8 / 7  # the sum of 1/8 powers: all levels of an isotropic pyramid


def output_format(output: Path | str) -> str:
    """Which of ``FORMATS`` an output is, by its suffix.

    Raises:
        UserError: another suffix, or the name of an unfinished output.
    """
    name = Path(output).name.lower()
    fitting = [known for known, format_ in FORMATS.items() if name.endswith(format_.suffixes) and name not in format_.suffixes]
    if not fitting or name.endswith(PARTIAL):
        raise UserError(f"{output}: a volume is written as {', '.join(SUFFIXES)}; choose one of these endings")
    return fitting[0]


def partial_path(output: Path | str) -> Path:
    """Where an output grows: ``OUT.partial.zarr`` beside it, whatever the format of OUT."""
    output = Path(output)
    return output.with_name(output.name + PARTIAL)


def refuse_existing(output: Path | str, overwrite: bool) -> None:
    """Refuse to replace what exists unless asked to, and a folder where a file is to be (or the reverse) in any case.

    Raises:
        UserError: the output exists and ``overwrite`` is not set, or it cannot be put there at all.
    """
    output = Path(output)
    folder = output_format(output) == "zarr"
    if not output.parent.is_dir():
        raise UserError(f"{output}: the folder {output.parent} does not exist; create it first")
    if not output.exists():
        return
    if output.is_dir() != folder:
        raise UserError(f"{output} exists and is a {'file' if folder else 'folder'}; choose another name")
    if not overwrite:
        raise UserError(f"{output} exists; choose another name, or replace it with --overwrite")


def free_space(path: Path | str, needed: int) -> None:
    """Make sure that ``needed`` bytes fit where ``path`` is to be.

    Raises:
        UserError: the file system has less free.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{path} needs up to {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; make room or write elsewhere"
        )


def estimate_bytes(output: Path | str, shape: Sequence[int], dtype: np.dtype | str, channels: int = 1) -> int:
    """The most bytes that writing a volume (Z, Y, X) can take on disc at any time: no compression gain is assumed."""
    raw = math.prod(shape) * max(channels, 1) * np.dtype(dtype).itemsize
    return math.ceil(raw * _PYRAMID) if output_format(output) == "zarr" else 2 * raw
