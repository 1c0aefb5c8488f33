"""numpy's .npy, HDF5 (Imaris and others) and zipped Zarr: read lazily and exactly, or refused by name."""

import json
import os
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from format_volumes import SHAPE, VALUES, check
from target_volumes import write_volume

from utils.errors import UserError
from volumes.open import open_volume

TWO = np.stack([VALUES, VALUES[::-1]])


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["uint16", ">u2", "float32"])
def test_npy(order, dtype, tmp_path):
    values = VALUES.astype(dtype)
    np.save(tmp_path / "v.npy", np.asarray(values, order=order))
    check(open_volume(tmp_path / "v.npy"), VALUES.astype(np.dtype(dtype).newbyteorder("=")))
    np.save(tmp_path / "one.npy", np.asarray(values[None], order=order))
    check(open_volume(tmp_path / "one.npy"), VALUES.astype(np.dtype(dtype).newbyteorder("=")))


def test_faulty_npy(tmp_path):
    path = tmp_path / "v.npy"
    for array, message in ((VALUES[0], "without names of its axes"), (TWO, "without names"), (VALUES.astype("c8"), "complex64")):
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            open_volume(path)
    np.save(path, np.array([[[{}]]], object))
    with pytest.raises(UserError, match="object are not supported"):
        open_volume(path)
    np.save(path, VALUES)
    data = path.read_bytes()
    (path.with_name("b.npy")).write_bytes(data.replace(b"}", b"{"))
    with pytest.raises(UserError, match=r"not a readable \.npy"):
        open_volume(path.with_name("b.npy"))
    for cut, message in ((-1, "truncated"), (60, "not a readable .npy"), (7, "not a readable .npy")):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=message):
            open_volume(path)


def imaris(path):
    def text(value):
        return np.frombuffer(str(value).encode(), "S1")

    with h5py.File(path, "w") as file:
        about = file.create_group("DataSetInfo/Image")
        for k, (low, high) in enumerate(((10.0, 10 + 53 * 0.4), (-5.0, -5 + 45 * 0.5), (0.0, 14.0))):  # x, y, z
            about.attrs[f"ExtMin{k}"], about.attrs[f"ExtMax{k}"] = text(low), text(high)
        about.attrs["Unit"] = text("um")
        for level, step in enumerate((1, 2)):
            for time in range(2):
                for channel in range(2):
                    values = (TWO[channel] + time)[:, ::step, ::step]
                    group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {time}/Channel {channel}")
                    for axis, size in zip("ZYX", values.shape, strict=True):
                        group.attrs[f"ImageSize{axis}"] = text(size)
                    padded = np.pad(values, [(0, -size % 8) for size in values.shape])
                    group.create_dataset("Data", data=padded, chunks=(8, 8, 8), compression="gzip")
    return path


@pytest.mark.parametrize("name", ["v.ims", "misnamed.tif"])
def test_imaris(name, tmp_path):
    path = imaris(tmp_path / name)
    volume = open_volume(path, channel=1, time=1)
    check(volume, VALUES[::-1] + 1)
    assert (volume.channels, volume.times, volume.levels, volume.block_planes, volume.block_rows) == (2, 2, 2, 8, 8)
    assert volume.voxel_um == pytest.approx((2, 0.5, 0.4))
    assert volume.translation_um == pytest.approx((1, -4.75, 10.2))
    coarse = open_volume(path, channel=0, time=0, level=1)
    np.testing.assert_array_equal(coarse[:], VALUES[:, ::2, ::2])
    no_level = {"time": 0, "channel": 0, "level": 2}
    for choice, message in (({}, "2 time points"), ({"time": 0}, "2 channels"), (no_level, "level 2 of 2")):
        with pytest.raises(UserError, match=message):
            open_volume(path, **choice)


def test_hdf5(tmp_path):
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = VALUES
        file["raw"].attrs["element_size_um"] = (2, 0.5, 0.4)
        file["about"] = np.zeros(3)
    check(open_volume(path))
    assert open_volume(path).voxel_um == (2, 0.5, 0.4)
    with h5py.File(path, "a") as file:
        both = file.create_dataset("exported", data=np.moveaxis(TWO, 0, -1).transpose(2, 1, 0, 3), chunks=(16, 16, 7, 1))
        both.attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "xyzc"]})
        file["labelled"] = VALUES.transpose(1, 2, 0)
        for axis, label in zip(file["labelled"].dims, "yxz", strict=True):
            axis.label = label
    with pytest.raises(UserError, match=r"3 scenes \(data sets; 0: /exported .*; 1: /labelled .*; 2: /raw"):
        open_volume(path)
    check(open_volume(path, scene=0, channel=1), VALUES[::-1])
    check(open_volume(path, scene=1))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(UserError, match="not a readable HDF5"):
        open_volume(path)
    with h5py.File(tmp_path / "no.h5", "w") as file:
        file["flat"] = VALUES[0]
    with pytest.raises(UserError, match="without an array of three axes"):
        open_volume(tmp_path / "no.h5")


@pytest.mark.parametrize("inside", ["", "v.ome.zarr/"])
@pytest.mark.parametrize("name", ["v.ome.zarr.zip", "v.ozx"])
def test_zipped_zarr(name, inside, tmp_path):
    folder = write_volume(tmp_path / "v.ome.zarr", VALUES, voxel_um=(2, 0.5, 0.4), translation_um=(1, 2, 3))
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        for part in sorted(folder.rglob("*")):
            file.write(part, inside + str(part.relative_to(folder)))
    open_volume(folder)[:]
    shutil.rmtree(folder)
    before = set(os.listdir("/proc/self/fd"))
    volume = open_volume(tmp_path / name)
    check(volume)
    assert (volume.voxel_um, volume.translation_um, volume.shape) == ((2, 0.5, 0.4), (1, 2, 3), SHAPE)
    assert set(os.listdir("/proc/self/fd")) <= before
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable zip file"):
        open_volume(tmp_path / name)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "v.zarr.zip", "w") as file:
        file.writestr("a.txt", "no image")
    with pytest.raises(UserError, match=r"v\.zarr\.zip: its Zarr metadata cannot be read"):
        open_volume(tmp_path / "v.zarr.zip")
