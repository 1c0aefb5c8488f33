"""Output volumes of every format: exact, described, refused where they cannot be, of bounded memory."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from target_volumes import PLACE, SHAPE, VOXEL, begin, fill, random_values, write_volume

from utils.errors import UserError
from volumes.block_array import BlockArray, sharded
from volumes.open import open_volume
from writing.pyramid import halved, plan_levels

ROOT = Path(__file__).resolve().parents[3]
OUTPUTS = ["v.ome.zarr", "v.zarr", "v.ome.tif", "v.tif", "v.nii", "v.nii.gz"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_format_comes_back_with_voxel_size_position_and_attributes(name, tmp_path):
    values = random_values()
    target = begin(tmp_path / name, attributes={"made": "a/b", "sides": [1, 2], "factor": 8.0})
    fill(target, values)
    assert target.finish(extra={"skipped": 3, "name": "µ\udcff"}) == tmp_path / name
    volume = open_volume(tmp_path / name)
    for this in (volume, pickle.loads(pickle.dumps(volume))):
        np.testing.assert_array_equal(this[:], values)
        np.testing.assert_array_equal(this[1:30:7, 3:40, 5:9], values[1:30:7, 3:40, 5:9])
    assert (volume.dtype, volume.shape) == (np.uint16, SHAPE)
    assert volume.voxel_um == pytest.approx(VOXEL)
    assert volume.translation_um == pytest.approx(PLACE)
    assert volume.attributes == {"made": "a/b", "sides": [1, 2], "factor": 8.0, "skipped": 3, "name": "µ\udcff"}
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", OUTPUTS[1:4:2])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "float32", "float64"])
def test_dtypes(name, dtype, tmp_path):
    values = (random_values(dtype=np.int16) - (100 if dtype[0] != "u" else 0)).astype(dtype)
    write_volume(tmp_path / name, values)
    volume = open_volume(tmp_path / name)
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume[:], values)
    assert volume.voxel_um is None and volume.translation_um is None and volume.attributes == {}


@pytest.mark.parametrize("name", ["v.zarr", "v.ome.tif"])
def test_channels(name, tmp_path):
    values = random_values((2, *SHAPE))
    looks = [("0000FF", (0, 255)), ("FF8000", None)]
    target = begin(tmp_path / name, channel_names=["nuclei", "cells"], channel_looks=looks)
    fill(target, values)
    target.finish()
    for channel in (0, 1):
        volume = open_volume(tmp_path / name, channel=channel)
        np.testing.assert_array_equal(volume[:], values[channel])
        assert (volume.channel_name, volume.colour) == (("nuclei", "cells")[channel], looks[channel][0])
        assert (volume.channels, volume.voxel_um, volume.translation_um) == (2, pytest.approx(VOXEL), pytest.approx(PLACE))
    with pytest.raises(UserError, match=r"2 channels.*choose one"):
        open_volume(tmp_path / name)
    if name == "v.ome.tif":
        with tifffile.TiffFile(tmp_path / name) as tif:
            assert tif.series[0].axes == "CZYX"
            assert 'Name="nuclei"' in tif.ome_metadata
            np.testing.assert_array_equal(tif.asarray(), values)
    else:
        omero = json.loads((tmp_path / name / "zarr.json").read_text())["attributes"]["ome"]["omero"]
        assert [channel["label"] for channel in omero["channels"]] == ["nuclei", "cells"]
        windows = [[channel["window"][key] for key in ("min", "max", "start", "end")] for channel in omero["channels"]]
        assert windows == [[0, 65535, 0, 255], [0, 65535, 0, 65535]]
        yaozarrs.validate_zarr_store(tmp_path / name)


def test_the_metadata_are_valid_and_every_level_lies_where_it_says(tmp_path):
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in (40, 600, 300)], indexing="ij", sparse=True)
    place = [np.broadcast_to(a, (40, 600, 300)) for a in (z * 2 + 10, y * 0.5 - 3, x * 0.5)]
    target = begin(
        tmp_path / "v.ome.zarr",
        "float32",
        shape=(40, 600, 300),
        voxel_um=(2, 0.5, 0.5),
        translation_um=(10, -3, 0),
        channel_names=["z", "y", "x"],
        shard=None,
    )
    fill(target, np.stack(place).astype(np.float32))
    target.finish()
    yaozarrs.validate_zarr_store(tmp_path / "v.ome.zarr")
    levels = open_volume(tmp_path / "v.ome.zarr", channel=0).levels
    assert levels == 3
    for level in range(levels):
        for axis, channel in enumerate("zyx"):
            volume = open_volume(tmp_path / "v.ome.zarr", channel="zyx".index(channel), level=level)
            line = volume[:][tuple(slice(None) if k == axis else 0 for k in range(3))]
            stated = volume.translation_um[axis] + volume.voxel_um[axis] * np.arange(volume.shape[axis])
            np.testing.assert_allclose(line, stated, atol=1e-4)  # values are positions: the mean of positions is the position
    assert volume.voxel_um == (2, 2, 2)


def test_the_pyramid_halves_short_axes_until_voxels_are_cubic():
    levels = plan_levels((100, 4000, 3001), (4.0, 1.0, 1.0))
    assert [level.factor for level in levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)]
    assert levels[-1].shape == (25, 250, 188)
    assert [level.factor for level in plan_levels((1, 600, 300))] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert len(plan_levels((100, 200, 256))) == 1


def test_halving_is_the_rounded_mean():
    values = random_values((5, 4, 7), np.uint8)
    padded = np.pad(values.astype(float), ((0, 1), (0, 0), (0, 1)), mode="edge")
    mean = padded.reshape(3, 2, 2, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(halved(values, (2, 2, 2)), np.floor(mean + 0.5))
    np.testing.assert_allclose(halved(values.astype(np.float32), (2, 2, 2)), mean, rtol=1e-6)
    for dtype in (np.uint8, np.int8, np.uint16, np.int16):
        for extreme in (np.iinfo(dtype).min, np.iinfo(dtype).max):
            np.testing.assert_array_equal(halved(np.full((2, 2, 2), extreme, dtype), (2, 2, 2)), np.array(extreme, dtype))
    np.testing.assert_array_equal(halved(np.array([[[-3, -4]]], np.int16), (1, 1, 2)), -3)


def test_other_programs_read_the_shards(tmp_path):
    for dtype in ("uint8", "float32"):
        values = random_values((9, 20, 31), dtype)
        values[:, 8:16] = 0  # chunks and a shard of nothing but zeros
        array = BlockArray(tmp_path / dtype, values.shape, np.dtype(dtype), (4, 8, 16))
        array.create(sharded((2, 4, 8), array.dtype.itemsize), "zyx")
        for box in array.boxes:
            array.write(box, values[box])
        np.testing.assert_array_equal(zarr.open_array(str(tmp_path / dtype), mode="r")[:], values)
        np.testing.assert_array_equal(array.read((slice(1, 8), slice(3, 19), slice(15, 31))), values[1:8, 3:19, 15:31])
        assert all(file.is_file() for box in array.boxes for file in array.files(box))  # zeros have files, too


def test_anything_but_whole_shards_is_refused(tmp_path):
    target = begin(tmp_path / "v.zarr")
    values = random_values()
    for box in (
        np.s_[0:8, 0:32, 0:32],
        np.s_[0:16, 0:32, 16:53],
        np.s_[0:16, 0:32, 0:50],
        np.s_[0:16, 0:32, 0:64],
        np.s_[0:0, 0:32, 0:32],
    ):
        with pytest.raises(ValueError, match="whole shards"):
            target.write_region(box, values[box])
    with pytest.raises(ValueError, match="for a box of"):
        target.write_region(np.s_[0:16, 0:32, 0:32], values[:15, :32, :32])
    with pytest.raises(ValueError, match="for a box of"):
        target.write_region(np.s_[0:16, 0:32, 0:32], values[:16, :32, :32].astype(np.uint8))
    assert len(target.pending()) == len(target.boxes) == 3 * 2 * 2
    target.write_region(np.s_[16:37, 0:45, 32:53], values[16:, :, 32:])  # several shards and the volume's end
    assert target.pending() == [0, 1, 2, 3, 4, 6, 8, 10]


def test_damaged_shards_are_named(tmp_path):
    write_volume(tmp_path / "v.zarr", random_values())
    (shard,) = (p for p in (tmp_path / "v.zarr" / "0" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"v\.zarr/0/c/0/0/0: this chunk cannot be read .* damaged"):
        open_volume(tmp_path / "v.zarr")[:]
    array = BlockArray(tmp_path / "v.zarr" / "0", SHAPE, np.dtype(np.uint16), SHAPE)
    with pytest.raises(UserError, match=r"v\.zarr/0 is damaged .*c/0/0/0.*copy or write the volume again"):
        array.read(array.boxes[0])


BAD = {
    "v.png": ({}, "choose one of these endings"),
    ".zarr": ({}, "choose one of these endings"),
    "v.partial.zarr": ({}, "choose one of these endings"),
    "missing/v.zarr": ({}, "does not exist; create it"),
    "v.nii.gz": ({"channel_names": ["a", "b"]}, "one channel"),
    "v.nii": ({"dtype": "float16"}, "does not know float16"),
    "v.ome.tif": ({"dtype": "float16"}, "does not know float16"),
    "folder.tif": ({"overwrite": True}, "is a folder"),
    "file.zarr": ({"overwrite": True}, "is a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_outputs_that_cannot_be(name, tmp_path):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "file.zarr").touch()
    options, message = BAD[name]
    with pytest.raises(UserError, match=message):
        begin(tmp_path / name, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.zarr", "folder.tif"]


@pytest.mark.parametrize(
    "options",
    [
        {"voxel_um": (1, 0, 1)},
        {"voxel_um": (1, 1)},
        {"translation_um": (0, 0, float("nan"))},
        {"compression": "lzw"},
        {"channel_names": []},
        {"dtype": "uint32"},
        {"shape": (3, 0, 3)},
    ],
)
def test_arguments_that_make_no_sense(options, tmp_path):
    with pytest.raises(ValueError, match=r"must be|name every"):
        begin(tmp_path / "v.zarr", **options)


MEMORY = """
import resource, sys, numpy as np
from target_volumes import begin
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = np.random.default_rng(0).integers(0, 4, (64, 128, 128)).astype(np.uint8)
target = begin("warm." + sys.argv[1], np.uint8, shape=values.shape, shard=values.shape, voxel_um=None)
target.write_region(target.boxes[0], values); target.finish(); start = peak()
target = begin("big." + sys.argv[1], np.uint8, shape=(192, 1024, 1024), shard=values.shape, voxel_um=None)
for box in target.boxes: target.write_region(box, values)
target.finish(); print(peak() - start)
"""


@pytest.mark.parametrize("suffix", ["zarr", "ome.tif", "nii.gz"])
def test_memory_does_not_grow_with_the_volume(suffix, tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, "-c", MEMORY, suffix], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024, "KiB, for 192 MiB of voxels"
    assert open_volume(tmp_path / f"big.{suffix}").shape == (192, 1024, 1024)
