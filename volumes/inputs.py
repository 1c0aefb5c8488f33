"""What a command means by its inputs: files, folders of slices, Zarr folders, folders of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from volumes.microscope_formats import MICROSCOPES
from volumes.optional_formats import MRC, NIFTI
from volumes.output_files import PARTIAL
from volumes.slice_folder import SLICE_SUFFIXES, listed, natural, open_plane
from volumes.zarr_volume import is_zarr

VOLUME_SUFFIXES = (*NIFTI, *MRC, *MICROSCOPES)


def expand_inputs(paths: Sequence[Path | str]) -> list[Path]:
    """The volumes that some paths stand for, each to be opened by volumes.volume_io.open_volume.

    A file, a Zarr folder and a folder of 2-D slices are one volume. Any other folder stands for the volumes in it (stacks,
    Zarr folders, folders of slices), in natural order; the files of an OME-TIFF set count once.

    Args:
        paths: files and folders.

    Returns:
        Paths without repetition, in the order given.

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
    images = listed(folder)
    flat, stacks = _sorted_out(images)
    others = [p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(VOLUME_SUFFIXES) and p.name[0] != "."]
    folders = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and _is_volume_folder(p)]
    volumes = sorted([*stacks, *others, *folders], key=natural)
    if flat and volumes:
        raise UserError(
            f"{folder}: holds 2-D slices ({flat[0].name}, {len(flat)} in all) and volumes ({volumes[0].name}, {len(volumes)} in "
            "all); put them into folders of their own"
        )
    if flat:
        return [folder]
    if not volumes:
        raise UserError(f"{folder}: a folder without volumes or slices ({', '.join((*SLICE_SUFFIXES, *VOLUME_SUFFIXES))}, .zarr)")
    return volumes


def _sorted_out(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images of one plane, and stacks; of an OME-TIFF set only the first file."""
    flat: list[Path] = []
    stacks: list[Path] = []
    counted: set[Path] = set()
    for path in images:
        if path.suffix.lower() == ".png":
            flat.append(path)
            continue
        if path.resolve() in counted:
            continue
        opened = open_plane(path, 0, 0)
        counted.update(file.resolve() for file in opened.files)
        (flat if opened.shape[0] == 1 and len(opened.files) == 1 else stacks).append(path)
    return flat, stacks


def _is_volume_folder(folder: Path) -> bool:
    return not folder.name.endswith(PARTIAL) and (is_zarr(folder) or bool(listed(folder)))
