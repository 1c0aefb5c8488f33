"""The one door to volumes on disc: which format opens a file, and which volumes the inputs of a command stand for.

A new format is a module with an opener (path, choice) → Volume, and its suffixes in ``FORMATS``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.errors import UserError
from volumes.microscope_formats import CziVolume, LifVolume, Nd2Volume
from volumes.nifti_mrc import open_mrc, open_nifti
from volumes.ome_zarr import ZarrVolume, is_zarr
from volumes.slice_folder import SLICE_SUFFIXES, SliceFolder, listed, natural, open_image
from volumes.stated import Choice, choose
from volumes.target_plan import PARTIAL
from volumes.volume import Volume

Opener = Callable[[Path, Choice], Volume]
# Everything else is opened as a TIFF, or by Pillow.
FORMATS: Mapping[str, Opener] = {
    ".nii": open_nifti,
    ".nii.gz": open_nifti,
    ".mrc": open_mrc,
    ".mrcs": open_mrc,
    ".rec": open_mrc,
    ".st": open_mrc,
    ".ali": open_mrc,
    ".map": open_mrc,
    ".ccp4": open_mrc,
    ".mrc.gz": open_mrc,
    ".czi": CziVolume,
    ".lif": LifVolume,
    ".nd2": Nd2Volume,
}


def open_volume(
    path: Path | str, *, channel: int | None = None, time: int | None = None, scene: int | None = None, level: int = 0
) -> Volume:
    """Open a volume without reading its values.

    Args:
        path: one greyscale volume. A TIFF file: contiguous, stripped or tiled, any compression that imagecodecs knows, ImageJ
            hyperstack, OME-TIFF, one page per plane; any multi-frame file that Pillow reads; a folder of 2-D slices (TIFF or
            PNG, sorted naturally); an OME-Zarr image (0.4, 0.5) or a Zarr array; with the extra ``formats`` NIfTI, MRC,
            CZI, LIF and ND2.
        channel: which channel of a multi-channel file, counted from 0.
        time: which time point of a time series, counted from 0.
        scene: which scene, position or series of a CZI, LIF or ND2 file, counted from 0.
        level: which level of resolution of an OME-Zarr image, 0 the finest.

    Returns:
        Volume of shape (Z, Y, X); memory use does not depend on the size of the file.

    Raises:
        UserError: the file is missing, empty, truncated, unreadable, 2-D, RGB, of an unsupported dtype, an output that is not
            finished, or has several channels, time points or scenes and none was chosen, or contradicts itself.
    """
    file = Path(path)
    if not file.exists():
        link = f" (a link to {os.readlink(file)}, which is not there)" if file.is_symlink() else ""
        raise UserError(f"{file}: no such file or folder{link}")
    if file.is_file() and file.stat().st_size == 0:
        raise UserError(f"{file}: empty file (0 bytes); copy it again")
    if file.is_dir():
        opener: Opener = ZarrVolume if is_zarr(file) else SliceFolder
    else:
        opener = next((known for suffix, known in FORMATS.items() if file.name.lower().endswith(suffix)), open_image)
    volume = opener(file, Choice(channel, time, scene, level))
    for what, number, count in (
        ("channel", channel, volume.channels),
        ("time point", time, volume.times),
        ("scene", scene, volume.scenes),
    ):
        choose(file, what, number, count)
    if not 0 <= level < volume.levels:
        raise UserError(f"{file}: level {level} of {volume.levels}; only OME-Zarr images have several")
    return volume


def stem_of(path: Path) -> str:
    """A volume's name without the ending of its format: ``scan`` for scan.ome.zarr."""
    endings = "|".join(map(re.escape, (*FORMATS, ".tif", ".tiff", ".zarr")))
    return re.sub(rf"(\.ome)?({endings})$", "", path.name, flags=re.IGNORECASE)


def expand_inputs(paths: Sequence[Path | str]) -> list[Path]:
    """The volumes that some paths stand for, each to be opened by :func:`open_volume`.

    A file, a Zarr folder and a folder of 2-D slices are one volume. Any other folder stands for the volumes in it (stacks,
    Zarr folders, folders of slices), in natural order; the files of an OME-TIFF set count once. No path is repeated.

    Raises:
        UserError: a path does not exist, or a folder is empty or holds both slices and volumes.
    """
    if not paths:
        raise UserError("no input: name a volume file, a folder of slices, or a folder of volumes")
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        for volume in _inside(path) if path.is_dir() and not is_zarr(path) else [path]:
            found.setdefault(volume.resolve(), volume)
    return list(found.values())


def _inside(folder: Path) -> list[Path]:
    """The volumes of a folder that is no Zarr folder; the folder itself where it holds slices."""
    flat: list[Path] = []
    volumes: list[Path] = []
    counted: set[Path] = set()  # of an OME-TIFF set only the first file stands for the volume
    for path in listed(folder):
        if path.suffix.lower() == ".png":
            flat.append(path)
        elif path.resolve() not in counted:
            opened = open_image(path, Choice(channel=0, time=0), flat=True)
            counted.update(file.resolve() for file in opened.files)
            (flat if opened.shape[0] == 1 and len(opened.files) < 2 else volumes).append(path)
    for path in folder.iterdir():
        known = path.is_file() and path.name.lower().endswith(tuple(FORMATS))
        if known or (path.is_dir() and not path.name.endswith(PARTIAL) and (is_zarr(path) or listed(path))):
            volumes += [path] if path.name[0] != "." else []
    volumes.sort(key=natural)
    if flat and volumes:
        raise UserError(
            f"{folder}: holds 2-D slices ({flat[0].name}, {len(flat)} in all) and volumes ({volumes[0].name}, {len(volumes)} in "
            "all); put them into folders of their own"
        )
    if not flat and not volumes:
        raise UserError(f"{folder}: a folder without volumes or slices ({', '.join((*SLICE_SUFFIXES, *FORMATS))}, .zarr)")
    return [folder] if flat else volumes
