"""The one door to volumes on disc: which format opens a file, and which volumes the inputs of a command stand for.

A new format is a module with an opener (path, choice) → Volume, and its suffixes in ``FORMATS``.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.far import LINK, FarPath, existing, linked, path_of
from utils.files import PARTIAL
from utils.units import LARGEST_UM, SIZES, are_sizes
from volumes.array_files import Hdf5Volume, open_npy
from volumes.microscope_formats import CziVolume, LifVolume, Nd2Volume
from volumes.nifti_mrc import open_mrc, open_nifti
from volumes.nrrd import open_nrrd
from volumes.ome_zarr import ZarrVolume, is_zarr
from volumes.run_record import run_record
from volumes.slice_folder import SLICE_SUFFIXES, SliceFolder, listed, natural, open_image
from volumes.stated import Choice, choose
from volumes.volume import Volume

log = logging.getLogger("isoscope")

Opener = Callable[[Path, Choice], Volume]
# By the ending of the name, or by the first bytes; everything else is opened as a TIFF, or by Pillow.
FORMATS: Mapping[str, Opener] = {
    **dict.fromkeys((".nii", ".nii.gz"), open_nifti),
    **dict.fromkeys((".mrc", ".mrcs", ".rec", ".st", ".ali", ".map", ".ccp4", ".mrc.gz"), open_mrc),
    **dict.fromkeys((".ims", ".h5", ".hdf5"), Hdf5Volume),
    **dict.fromkeys((".zarr.zip", ".ozx"), ZarrVolume),
    ".npy": open_npy,
    **dict.fromkeys((".nrrd", ".nhdr"), open_nrrd),
    LINK: lambda file, choice: ZarrVolume(linked(file), choice),
    ".czi": CziVolume,
    ".lif": LifVolume,
    ".nd2": Nd2Volume,
}
_BIOFORMATS = ".oib .oif .oir .vsi .dv .r3d .dm3 .dm4 .zvi .sld .ser .emd .lei .scn .ndpi .afi .mvd2 .xdce .klb .xml".split()
_REFUSED: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys((".mha", ".mhd"), ("a MetaImage of ITK", "SimpleITK writes it as .nii.gz")),
    **dict.fromkeys((".dcm", ".ima"), ("a DICOM file", "dcm2niix turns the series into .nii.gz")),
    **dict.fromkeys((".img", ".hdr"), ("an Analyze file or NIfTI pair", "nibabel.save(nibabel.load(…), 'x.nii.gz') joins it")),
    **dict.fromkeys((".mgz", ".mgh"), ("a FreeSurfer volume", "mri_convert writes it as .nii.gz")),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz"), ("a packed file", "unpack it first")),
    **dict.fromkeys((".npz", ".mat", ".pkl", ".pt"), ("a file of several arrays or objects", "save one array as .npy or TIFF")),
    **dict.fromkeys((".avi", ".mp4", ".mov", ".jpg", ".jpeg"), ("a lossy film or photo", "save the recording itself as TIFF")),
    **dict.fromkeys((".raw", ".vol", ".bin", ".dat"), ("values without a description", "Fiji (Import, Raw) saves it as TIFF")),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), ("an image of JPEG 2000", "Fiji or opj_decompress writes it as TIFF")),
    **dict.fromkeys((".am", ".vtk", ".vti", ".mnc"), ("a file of a program for 3-D views", "that program, or Fiji, saves TIFF")),
    **dict.fromkeys(_BIOFORMATS, ("a microscope's own format", "Fiji or Bio-Formats' bfconvert writes it as .ome.tif")),
    ".companion.ome": ("the description of a set of OME-TIFF files", "name one of these"),
}
_FIRST_BYTES = (
    *((0, b"\x89HDF\r\n\x1a\n", ".h5"), (0, b"\x93NUMPY", ".npy"), (208, b"MAP ", ".mrc"), (344, b"n+1\0", ".nii")),
    *((344, b"ni1\0", ".hdr"), (128, b"DICM", ".dcm"), (0, b"NRRD", ".nrrd"), (0, b"ObjectType", ".mha"), (0, b"NDims", ".mha")),
    *((0, b"PK\3\4", ".zip"), (0, b"\x1f\x8b", ".gz"), (0, b"BZh", ".bz2"), (0, b"ZISRAWFILE", ".czi")),
)


def _opener(file: Path) -> Opener:
    """What opens a file or folder; a UserError says what a file of a format that is not read is, and how it is converted."""
    if isinstance(file, FarPath):
        if not is_zarr(file):
            raise UserError(
                f"{file}: no OME-Zarr image or Zarr array is there (it has no zarr.json, .zattrs or .zarray); volumes of other "
                "formats are not read from afar, copy them to this machine"
            )
        return ZarrVolume
    if file.is_dir():
        return ZarrVolume if is_zarr(file) else SliceFolder
    with file.open("rb") as opened:
        head = opened.read(512)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # a TIFF, whatever its name
        return open_image
    name = file.name.lower()
    stated = sorted((suffix for suffix in (*FORMATS, *_REFUSED) if name.endswith(suffix)), key=len)[-1:]
    found = [suffix for place, first, suffix in _FIRST_BYTES if head[place : place + len(first)] == first]
    if readable := [suffix for suffix in (*found, *stated) if suffix in FORMATS]:
        return FORMATS[readable[0]]
    for suffix in (*stated, *found):
        what, how = _REFUSED[suffix]
        raise UserError(f"{file}: {what}, which is not read here; {how}. Read are TIFF, OME-Zarr, {', '.join(FORMATS)}")
    return open_image


def open_volume(
    path: Path | str, *, channel: int | None = None, time: int | None = None, scene: int | None = None, level: int = 0
) -> Volume:
    """Open a volume without reading its values.

    Args:
        path: one greyscale volume. A TIFF file: contiguous, stripped or tiled, any compression that imagecodecs knows, ImageJ
            hyperstack, OME-TIFF, one page per plane; any multi-frame file that Pillow reads; a folder of 2-D slices (TIFF or
            PNG, sorted naturally); an OME-Zarr image (0.4 to 0.6) or a Zarr array, zipped too, or at an http://, https:// or
            s3:// address (or a .url file that names one); .npy; NRRD; with the extra
            ``formats`` NIfTI, MRC, Imaris, HDF5, CZI, LIF and ND2.
        channel: which channel of a multi-channel file, counted from 0.
        time: which time point of a time series, counted from 0.
        scene: which scene, position, series or data set of a CZI, LIF, ND2, TIFF or HDF5 file, counted from 0.
        level: which level of resolution of an OME-Zarr image, 0 the finest.

    Returns:
        Volume of shape (Z, Y, X); memory use does not depend on the size of the file.

    Raises:
        UserError: the file is missing, empty, truncated, unreadable, 2-D, RGB, of an unsupported dtype, an output that is not
            finished, or has several channels, time points or scenes and none was chosen, or contradicts itself.
    """
    file = path_of(path)
    far = isinstance(file, FarPath)
    if not far and not file.exists():
        link = f" (a link to {os.readlink(file)}, which is not there)" if file.is_symlink() else ""
        raise UserError(f"{file}: no such file or folder{link}")
    if not far and file.is_file() and file.stat().st_size == 0:
        raise UserError(f"{file}: empty file (0 bytes); copy it again")
    volume = _opener(file)(file, Choice(channel, time, scene, level))
    _check_place(volume)
    if volume.attributes:
        volume.attributes = run_record(file, volume.attributes)
    for what, number, count in (
        ("channel", channel, volume.channels),
        ("time point", time, volume.times),
        ("scene", scene, volume.scenes),
    ):
        choose(file, what, number, count)
    if not 0 <= level < volume.levels:
        raise UserError(f"{file}: level {level} of {volume.levels}; only OME-Zarr and Imaris images have several")
    return volume


def _check_place(volume: Volume) -> None:
    """What a file states of its place is taken as not known, with a warning, where no image has such voxels."""
    sizes, place = volume.voxel_um or (1.0, 1.0, 1.0), volume.translation_um or (0.0, 0.0, 0.0)
    if not are_sizes(sizes) or max(map(abs, place)) > LARGEST_UM:
        said = "%s: states voxels of %s µm at %s µm, which is taken as not known: sides of an image's voxels are %s"
        log.warning(said, volume.path, sizes, place, SIZES)
        volume.voxel_um = volume.translation_um = volume.space = None


def open_channels(path: Path | str, count: int, **which: Any) -> list[Volume]:
    """The channels of a file that must have so many; ``which`` as of :func:`open_volume`, without channels.

    Raises:
        UserError: it has another number of them, or as for :func:`open_volume`.
    """
    if count == 1:
        return [open_volume(path, **which)]
    first = open_volume(path, channel=0, **which)
    if first.channels != count:
        how = (
            "say which, in the order of the training, such as --channel 0 1"
            if first.channels > count
            else "give a file for each, in that order"
        )
        raise UserError(f"{path} has {first.channels} channel(s), {count} are needed; {how}")
    return [first, *(open_volume(path, channel=channel, **which) for channel in range(1, count))]


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
    for path in map(existing, paths):
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
