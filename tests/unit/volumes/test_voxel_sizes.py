"""Voxel sizes that no microscope has: what a format cannot hold is said, what is no image's is not taken, no work is lost."""

import struct

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from format_volumes import VALUES, nifti
from target_volumes import write_volume

from codes.record import _RULES
from inference.options import Options
from utils.command_line import voxel_size
from utils.errors import UserError
from utils.pictures import orthogonal_planes
from volumes.open import open_volume
from writing.write import write_tiff

SMALL = VALUES[:5]
NAMES = ("v.ome.tif", "v.nii", "v.nii.gz", "v.ome.zarr")
EXTREMES = [(8e-8, 4e-8, 4e-8), (2e-6, 2.4e-6, 2.4e-6), (1e-15,) * 3, (1e15,) * 3, (4e13, 5e13, 5e13), (1e4, 1.0, 1.0)]


@pytest.mark.parametrize("voxel", EXTREMES)
@pytest.mark.parametrize("name", NAMES)
def test_every_output_holds_them(name, voxel, tmp_path, caplog):
    write_volume(tmp_path / name, SMALL, voxel_um=voxel, translation_um=(1.0, 2.0, 3.0))
    held = 1e4 / (2**32 - 1) < voxel[2] < 1e4 * (2**32 - 1)  # pixels per centimetre, as a quotient of 32-bit numbers
    assert ("OME metadata only" in caplog.text) == (name.endswith("tif") and not held)
    volume = open_volume(tmp_path / name)
    np.testing.assert_allclose(volume.voxel_um, voxel, rtol=1e-6)
    np.testing.assert_allclose(volume.translation_um, (1, 2, 3), rtol=1e-6)
    np.testing.assert_array_equal(volume[:], SMALL)


@pytest.mark.parametrize("voxel", [*EXTREMES, (1.0, 1e-11, 1e-11)])
def test_a_volume_of_a_data_set_holds_them(voxel, tmp_path):
    write_tiff(tmp_path / "v.tif", SMALL, voxel_um=voxel)
    if min(voxel) > 1e-14:
        with tifffile.TiffFile(tmp_path / "v.tif") as file:
            assert file.is_imagej == (1 / (2**32 - 1) < voxel[2] < 2**32 - 1)
    volume = open_volume(tmp_path / "v.tif")
    if max(voxel) <= 1e4 * min(voxel):
        np.testing.assert_allclose(volume.voxel_um, voxel, rtol=1e-6)
    np.testing.assert_array_equal(volume[:], SMALL)


def of_mrc(path, z):
    with mrcfile.new(path, VALUES) as file:
        file.voxel_size = (5e3, 5e3, z * 1e4)


def of_nifti(path, z):
    data = bytearray(nifti(path).read_bytes())
    data[88:92] = struct.pack("<f", z / 1000)  # pixdim[3], mm
    data[252:256] = bytes(4)  # no qform, no sform
    path.write_bytes(data)


def of_ome_tiff(path, z):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": z}
    tifffile.imwrite(path, VALUES, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes})


def of_imagej(path, z):
    tifffile.imwrite(path, VALUES, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "spacing": z, "unit": "um"})


def of_hdf5(path, z):
    with h5py.File(path, "w") as file:
        file.create_dataset("v", data=VALUES).attrs["element_size_um"] = (z, 0.5, 0.5)


def of_ome_zarr(path, z):
    write_volume(path, VALUES, voxel_um=(0.5, 0.5, 0.5))
    file = path / "zarr.json"
    file.write_text(file.read_text().replace("0.5,", f"{z!r},", 1))


STATED = {
    "v.mrc": of_mrc,
    "v.nii": of_nifti,
    "v.ome.tif": of_ome_tiff,
    "v.tif": of_imagej,
    "v.h5": of_hdf5,
    "v.ome.zarr": of_ome_zarr,
}


@pytest.mark.parametrize("z", [1e-20, 1e20, 1e6, 1e-6])
@pytest.mark.parametrize("name", STATED)
def test_what_is_no_voxel_of_an_image_is_not_known(name, z, tmp_path, caplog):
    STATED[name](tmp_path / name, z)
    volume = open_volume(tmp_path / name)
    assert volume.voxel_um is None and volume.translation_um is None and volume.space is None
    assert f"{name}: states voxels of (" in caplog.text and "not known" in caplog.text
    np.testing.assert_array_equal(volume[:], VALUES)


@pytest.mark.parametrize("name", STATED)
def test_thick_sections_are_voxels(name, tmp_path, caplog):
    STATED[name](tmp_path / name, 1000.0)
    np.testing.assert_allclose(open_volume(tmp_path / name).voxel_um[0], 1000, rtol=1e-6)
    assert "states voxels" not in caplog.text


def test_a_place_that_no_image_has(tmp_path, caplog):
    write_volume(tmp_path / "v.ome.zarr", SMALL, voxel_um=(1.0, 1.0, 1.0), translation_um=(0.0, 1e300, 0.0))
    assert open_volume(tmp_path / "v.ome.zarr").voxel_um is None
    assert "1e+300" in caplog.text


@pytest.mark.parametrize(
    "said", ["0,1,1", "-1,1,1", "nan,1,1", "inf,1,1", "1e-300,1e-300,1e-300", "1e300,1e300,1e300", "1e5,1,1"]
)
def test_sizes_that_a_user_gives_are_refused_before_any_work(said):
    with pytest.raises(UserError, match=r"sizes must be between 1e-15 and 1e\+15 µm, none more than 10000 times another"):
        voxel_size(said)
    with pytest.raises(UserError, match="sizes"):
        Options(voxel_um=tuple(map(float, said.split(","))))
    assert not _RULES["slice_voxel_um"][1]([float(size) for size in said.split(",")])


def test_a_picture_of_far_sections_has_its_limits():
    planes = np.random.default_rng(0).random((16, 16, 8))
    picture = orthogonal_planes({"a": planes}, voxel_um=(1e4, 1.0, 1.0))
    assert max(picture.shape) < 3000
