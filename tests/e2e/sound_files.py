"""A small sound file of every format that is read, each by a maker of a path."""

import gzip
import json
import zipfile

import h5py
import mrcfile
import nibabel
import numpy as np
import tifffile
import zarr
from PIL import Image

from codes.store import CodeTarget, Packed
from tests.unit.codes.test_coded_store import about, smooth, stored
from tests.unit.volumes.format_volumes import nifti
from tests.unit.volumes.microscope_files import values as scenes
from tests.unit.volumes.microscope_files import write_czi, write_lif, write_nd2
from tests.unit.volumes.target_volumes import write_volume

VALUES = np.random.default_rng(0).integers(0, 1000, (6, 20, 24)).astype(np.uint16)
VOXEL = (2.0, 0.5, 0.5)
_PLACE = {"origin": [0.0, 0.0, 0.0], "step": [0.25, 1.0, 1.0]}
_SLICES = {"first": 0.0, "spacing": 1.0, "thinned": 1, "how": "pick", "first_kept": 0.0}
_GREY = {"normalisation": "11", "low": 0.0, "high": 1000.0}
RECORD = {  # what infer.py enhance writes
    "run": "a/b@2",
    "weights": "0" * 64,
    "factor": 4,
    "axial_taps": [1.0],
    "intensities": [{"into": [_GREY], "out": [_GREY]}],
    "lattice": {"decoding": {"core": [16, 16, 16], "halo": [3, 4, 4]}, "encoding": {"core": [3, 3]}},
    "input": {"files": ["a.tif"], "shape": [6, 20, 24], "dtype": "uint16"},
    "slices": _SLICES,
    "place": _PLACE,
    "region": [[0, 6], [0, 20], [0, 24]],
    "seams": {"encoding": 1.0},
}


def ours(path):
    write_volume(path, VALUES, voxel_um=VOXEL, translation_um=(1.0, 2.0, 3.0), attributes=RECORD)


def imagej(path):
    tifffile.imwrite(path, VALUES, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"})


def ome(path):
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", VOXEL, strict=True)}
    tifffile.imwrite(path, VALUES, ome=True, metadata={"axes": "ZYX", **sizes}, compression="zlib", predictor=True)


def tiled(path):
    tifffile.imwrite(path, VALUES, tile=(16, 16), compression="lzw", bigtiff=True)


def strips(path):
    tifffile.imwrite(path, VALUES, rowsperstrip=7, metadata=None, byteorder=">")


def one_by_one(path):
    with tifffile.TiffWriter(path) as file:
        for plane in VALUES:
            file.write(plane, contiguous=False, metadata=None, compression="zstd")


def zarr_2(path):
    array = zarr.create_array(path, shape=VALUES.shape, chunks=(4, 16, 16), dtype="uint16", zarr_format=2, attributes={"a": 1})
    array[:] = VALUES


def zarr_3(path):
    array = zarr.create_array(path, shape=VALUES.shape, chunks=(4, 16, 16), dtype="uint16", dimension_names=["z", "y", "x"])
    array[:] = VALUES


def ome_zarr(path):
    write_volume(path, VALUES, voxel_um=VOXEL, translation_um=(1.0, 2.0, 3.0), attributes=RECORD)


def ome_zarr_4(path):
    group = zarr.create_group(path, zarr_format=2)
    for level, step in enumerate((1, 2)):
        part = VALUES[:, ::step, ::step]
        group.create_array(str(level), data=part, chunks=(4, 8, 8))
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    levels = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0, 0.5 * step, 0.5 * step]}]}
        for n, step in enumerate((1, 2))
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "name": "x", "axes": axes, "datasets": levels}]


def zipped(path):
    folder = path.with_name("to_zip.ome.zarr")
    ome_zarr_4(folder)
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(folder.rglob("*")):
            if entry.is_file():
                file.write(entry, entry.relative_to(folder))


def packed_nifti(path):
    write_volume(path, VALUES, voxel_um=VOXEL, translation_um=(1.0, 2.0, 3.0), attributes=RECORD)


def turned_nifti(path):
    affine = np.array([[0, 4e-4, 0, 1], [5e-4, 0, 0, 2], [0, 0, -2e-3, 3], [0, 0, 0, 1]])
    nifti(path, VALUES.astype(np.float32), affine, kind=nibabel.Nifti2Image)


def mrc(path):
    with mrcfile.new(path, VALUES) as file:
        file.voxel_size = (5, 5, 20)


def npy(path):
    np.save(path, VALUES)


def fortran(path):
    np.save(path, np.asfortranarray(VALUES.astype(">f4")))


def hdf5(path):
    with h5py.File(path, "w") as file:
        array = file.create_dataset("volume", data=VALUES, chunks=(4, 8, 8), compression="gzip")
        array.attrs["element_size_um"] = VOXEL
        array.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in "zyx"]})
        file.create_dataset("table", data=np.arange(5))


def imaris(path):
    with h5py.File(path, "w") as file:
        about = file.create_group("DataSetInfo/Image")
        place = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        for axis, size, number in zip("ZYX", VALUES.shape, (2, 1, 0), strict=True):
            place.attrs[f"ImageSize{axis}"] = np.array(list(str(size)), "S1")
            about.attrs[f"ExtMin{number}"] = np.array(list("0"), "S1")
            about.attrs[f"ExtMax{number}"] = np.array(list(str(size)), "S1")
        about.attrs["Unit"] = np.array(list("um"), "S1")
        place.create_dataset("Data", data=VALUES, chunks=(2, 20, 24))


def czi(path):
    write_czi(path, scenes()[:1, :1, :1])


def lif(path):
    write_lif(path, scenes()[:1, :1, :1])


def nd2(path):
    write_nd2(path, scenes()[:1, :1, :1])


def slices(path):
    path.mkdir()
    for k, plane in enumerate(VALUES):
        Image.fromarray(plane).save(path / f"slice_{k:03}.png")


def codes(path):
    vectors = np.random.default_rng(0).standard_normal((1, 64, 4)).astype(np.float32)
    stored(path, smooth((6, 20, 24), vectors[0]), vectors, intensities=RECORD["intensities"])


def gaussian(path):
    values = np.random.default_rng(0).standard_normal((6, 8, 9, 4)).astype(np.float16)
    settings = {"kind": "gaussian", "dtype": "float16", "intensities": RECORD["intensities"]}
    target = CodeTarget(path, about(values, 0, **settings), None)
    for box in target.units:
        target.write(box, Packed(values[box], np.zeros(values.shape[:3], bool)))
    target.finish()


def nrrd(path):
    head = (
        "NRRD0005\n# by hand\ntype: unsigned short\ndimension: 3\nspace: left-posterior-superior\nsizes: 24 20 6\n"
        "space directions: (0.1,0,0) (0,0.1,0) (0,0,0.4)\nkinds: domain domain domain\nendian: little\nencoding: gzip\n"
        'space origin: (1,2,3)\nspace units: "um" "um" "um"\n\n'
    )
    path.write_bytes(head.encode() + gzip.compress(VALUES.tobytes(), 1))
