"""Outputs that several processes fill: exact, restartable, never half finished under their own name."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr

from utils.errors import UserError
from utils.volumes.output_files import estimate_bytes, free_space, partial_path
from utils.volumes.pyramid import halved, plan_levels
from utils.volumes.sharded_array import ShardedArray
from utils.volumes.volume_io import create_target, open_target, open_volume, write_volume

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (37, 45, 53)
VOXEL, PLACE = (2.0, 0.5, 0.4), (10.0, -3.0, 0.25)
OUTPUTS = ["v.ome.zarr", "v.zarr", "v.ome.tif", "v.tif", "v.nii", "v.nii.gz"]


def random_values(shape=SHAPE, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def begin(path, dtype=np.uint16, **options):
    settings = {"shape": SHAPE, "dtype": dtype, "voxel_um": VOXEL, "translation_um": PLACE, "shard": (16, 32, 32), **options}
    return create_target(path, **settings)


def fill(target, values, numbers=None):
    for number in target.pending() if numbers is None else numbers:
        target.write_region(target.boxes[number], values[(..., *target.boxes[number])])


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_format_comes_back_with_voxel_size_position_and_attributes(name, tmp_path):
    values = random_values()
    target = begin(tmp_path / name, attributes={"run": "a/b", "lattice": [1, 2], "factor": 8.0})
    fill(target, values)
    assert target.finish(extra={"skipped": 3, "name": "µ"}) == tmp_path / name
    volume = open_volume(tmp_path / name)
    for this in (volume, pickle.loads(pickle.dumps(volume))):
        np.testing.assert_array_equal(this[:], values)
        np.testing.assert_array_equal(this[1:30:7, 3:40, 5:9], values[1:30:7, 3:40, 5:9])
    assert (volume.dtype, volume.shape) == (np.uint16, SHAPE)
    assert volume.voxel_um == pytest.approx(VOXEL)
    assert volume.translation_um == pytest.approx(PLACE)
    assert volume.attributes == {"run": "a/b", "lattice": [1, 2], "factor": 8.0, "skipped": 3, "name": "µ"}
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
    target = begin(tmp_path / name, channel_names=["nuclei", "cells"])
    fill(target, values)
    target.finish()
    for channel in (0, 1):
        volume = open_volume(tmp_path / name, channel=channel)
        np.testing.assert_array_equal(volume[:], values[channel])
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
        yaozarrs.validate_zarr_store(tmp_path / name)


def test_the_metadata_are_valid_and_every_level_lies_where_it_says(tmp_path):
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in (40, 600, 300)], indexing="ij", sparse=True)
    place = [np.broadcast_to(a, (40, 600, 300)) for a in (z * 2 + 10, y * 0.5 - 3, x * 0.5)]
    target = create_target(
        tmp_path / "v.ome.zarr", shape=(40, 600, 300), dtype="float32", voxel_um=(2, 0.5, 0.5), translation_um=(10, -3, 0),
        channel_names=["z", "y", "x"],
    )  # fmt: skip
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
    assert len(plan_levels((4000, 4000, 4000), most=2)) == 2


def test_halving_is_the_rounded_mean():
    values = random_values((5, 4, 7), np.uint8)
    padded = np.pad(values.astype(float), ((0, 1), (0, 0), (0, 1)), mode="edge")
    mean = padded.reshape(3, 2, 2, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(halved(values, (2, 2, 2)), np.floor(mean + 0.5))
    np.testing.assert_allclose(halved(values.astype(np.float32), (2, 2, 2)), mean, rtol=1e-6)
    np.testing.assert_array_equal(halved(np.full((2, 2, 2), 2**16 - 1, np.uint16), (2, 2, 2)), 2**16 - 1)
    np.testing.assert_array_equal(halved(np.array([[[-3, -4]]], np.int16), (1, 1, 2)), -3)


def test_other_programs_read_the_shards(tmp_path):
    for dtype in ("uint8", "float32"):
        values = random_values((9, 20, 31), dtype)
        values[:, 8:16] = 0  # chunks and a shard of nothing but zeros
        array = ShardedArray.create(
            tmp_path / dtype, values.shape, dtype, shard=(4, 8, 16), chunk=(2, 4, 8), dimension_names=("z", "y", "x")
        )
        for number in range(array.count):
            array.write(array.box(number), values[array.box(number)], tmp_path)
        np.testing.assert_array_equal(zarr.open_array(str(tmp_path / dtype), mode="r")[:], values)
        np.testing.assert_array_equal(array.read((slice(1, 8), slice(3, 19), slice(15, 31))), values[1:8, 3:19, 15:31])
        assert ShardedArray.open(tmp_path / dtype) == array
        assert len(list((tmp_path / dtype / "c").rglob("*/*/*"))) == 3 * 2 * 2


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
    with pytest.raises(ValueError, match="multiple of chunk"):
        begin(tmp_path / "w.zarr", chunk=(5, 32, 32))


def work(folder, rank):
    target = begin(folder / "v.ome.zarr", voxel_um=None)
    fill(target, random_values(), [n for n in target.pending() if n % 2 == rank])


def test_several_processes_share_one_output(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(tmp_path, rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    open_target(tmp_path / "v.ome.zarr").finish()
    np.testing.assert_array_equal(open_volume(tmp_path / "v.ome.zarr")[:], random_values())
    assert [p.name for p in tmp_path.iterdir()] == ["v.ome.zarr"]


def test_ranks_finish_together(tmp_path):
    import threading

    barrier = threading.Barrier(3)
    target = create_target(tmp_path / "v.zarr", shape=(300, 300, 40), dtype="uint8", shard=(64, 64, 64))
    values = random_values((300, 300, 40), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: fill(target, values, [n]), range(len(target.boxes))))
        ranks = [open_target(target.output) for _ in range(3)]
        done = [pool.submit(t.finish, rank=k, world=3, barrier=barrier.wait) for k, t in enumerate(ranks)]
        assert {future.result() for future in done} == {target.output}
    np.testing.assert_array_equal(open_volume(target.output)[:], values)
    np.testing.assert_array_equal(open_volume(target.output, level=1)[:], halved(values, (2, 2, 2)))
    with pytest.raises(ValueError, match="pass barrier"):
        begin(tmp_path / "w.zarr").finish(world=2)


KILLED = """
import sys, time, numpy as np
from tests_unit import begin, random_values
target = begin(sys.argv[1]); values = random_values()
for number in target.pending():
    target.write_region(target.boxes[number], values[target.boxes[number]])
    print(number, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("name", ["v.ome.zarr", "v.ome.tif"])
def test_a_killed_command_continues_where_it_was(name, tmp_path):
    output = tmp_path / name
    code = KILLED.replace("tests_unit", Path(__file__).stem)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    process = subprocess.Popen([sys.executable, "-c", code, output], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    finished = [int(process.stdout.readline()) for _ in range(4)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    with pytest.raises(UserError, match="not finished"):
        open_volume(partial_path(output))
    target = begin(output)
    assert not set(finished) & set(target.pending()) and target.pending()
    with pytest.raises(UserError, match="shards are not written"):
        target.finish()
    renamed = partial_path(output).rename(tmp_path / "renamed.zarr")  # by someone who takes it for finished
    with pytest.raises(UserError, match="not finished"):
        open_volume(renamed)
    renamed.rename(partial_path(output))
    (partial_path(output) / ".work" / "torn.done").write_text("0 11\n0 1")  # a line cut off by the kill does not count
    assert 11 not in target.pending()
    (partial_path(output) / ".work" / "torn.done").unlink()
    fill(target, random_values())
    target.finish()
    np.testing.assert_array_equal(open_volume(output)[:], random_values())


def test_finishing_can_be_killed_and_repeated(tmp_path, monkeypatch):
    target = create_target(tmp_path / "v.zarr", shape=(300, 300, 40), dtype="uint8", shard=(64, 64, 64))
    values = random_values((300, 300, 40), np.uint8)
    fill(target, values)
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.finish(progress=stop)
    again = []
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_target(target.output).finish(progress=lambda *now: again.append(now))
    monkeypatch.undo()
    assert again[-1][1] == calls[-1][1] - 3  # finished shards of the pyramid are not computed again
    with pytest.raises(UserError, match="not finished"):
        open_volume(target.partial)
    open_target(target.output).finish()
    np.testing.assert_array_equal(open_volume(target.output, level=1)[:], halved(values, (2, 2, 2)))


@pytest.mark.parametrize("name", ["v.zarr", "v.tif"])
def test_existing_outputs_are_replaced_only_at_the_end_and_when_asked(name, tmp_path):
    old, new = random_values(seed=1), random_values(seed=2)
    output = tmp_path / name
    write_volume(output, old, attributes={"n": 1})
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        begin(output)
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        write_volume(output, new)
    target = begin(output, overwrite=True)
    fill(target, new)
    np.testing.assert_array_equal(open_volume(output)[:], old)
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        open_target(output).finish()  # by a command that was not told to
    target.finish()
    np.testing.assert_array_equal(open_volume(output)[:], new)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_left_overs_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".v[1].tif.99.partial").touch()
    write_volume(tmp_path / "v[1].tif", random_values())
    assert [p.name for p in tmp_path.iterdir()] == ["v[1].tif"]


def test_an_unfinished_output_of_another_command_is_named(tmp_path):
    fill(begin(tmp_path / "v.zarr", attributes={"weights": "abc", "run": {"id": 1}}), random_values(), [0])
    with pytest.raises(UserError, match=r"another command \(attributes.run.id: 1 there, 2 here\).*--overwrite"):
        begin(tmp_path / "v.zarr", attributes={"weights": "abc", "run": {"id": 2}})
    with pytest.raises(UserError, match="dtype: uint16 there, uint8 here"):
        begin(tmp_path / "v.zarr", np.uint8, attributes={"weights": "abc", "run": {"id": 1}})
    same = begin(tmp_path / "v.zarr", attributes={"weights": "abc", "run": {"id": 1}}, overwrite=True)
    assert 0 not in same.pending()
    other = begin(tmp_path / "v.zarr", np.uint8, overwrite=True)
    assert len(other.pending()) == len(other.boxes)
    assert [p.name for p in tmp_path.iterdir()] == ["v.zarr.partial.zarr"]
    with pytest.raises(UserError, match="does not exist; begin"):
        open_target(tmp_path / "none.zarr")


def test_skipped_background_is_zero_and_takes_no_room(tmp_path):
    target = begin(tmp_path / "v.zarr")
    for box in target.boxes:
        target.mark_done(box)
    target.finish()
    assert not open_volume(tmp_path / "v.zarr")[:].any()
    assert not list((tmp_path / "v.zarr").glob("*/c"))


def test_damaged_shards_are_named(tmp_path):
    write_volume(tmp_path / "v.zarr", random_values())
    (shard,) = (p for p in (tmp_path / "v.zarr" / "0" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"v\.zarr/0/c/0/0/0: this chunk cannot be read .* damaged"):
        open_volume(tmp_path / "v.zarr")[:]
    with pytest.raises(UserError, match=r"c/0/0/0: chunk \(0, 0, 0\) of this shard is damaged"):
        ShardedArray.open(tmp_path / "v.zarr" / "0").read(tuple(slice(0, n) for n in SHAPE))


def test_a_full_disc_is_a_message(tmp_path, monkeypatch):
    target = begin(tmp_path / "v.zarr")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"the disc is full.*continues"):
        fill(target, random_values(), [0])
    monkeypatch.undo()
    assert 0 in target.pending()
    with pytest.raises(UserError, match="GB free; make room"):
        free_space(tmp_path / "not" / "there", 10**18)
    free_space(tmp_path, 1)
    assert estimate_bytes("v.ome.tif", SHAPE, "uint16") == 4 * np.prod(SHAPE)
    assert 1 < estimate_bytes("v.zarr", SHAPE, "uint8", channels=2) / (2 * np.prod(SHAPE)) < 1.15


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
    "options", [{"voxel_um": (1, 0, 1)}, {"voxel_um": (1, 1)}, {"translation_um": (0, 0, float("nan"))}, {"compression": "lzw"},
                {"channel_names": []}, {"dtype": "uint32"}, {"shape": (3, 0, 3)}]
)  # fmt: skip
def test_arguments_that_make_no_sense(options, tmp_path):
    with pytest.raises(ValueError, match=r"must be|name every"):
        begin(tmp_path / "v.zarr", **options)


MEMORY = """
import resource, sys, numpy as np
from utils.volumes.volume_io import create_target
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = np.random.default_rng(0).integers(0, 4, (64, 128, 128)).astype(np.uint8)
target = create_target("warm." + sys.argv[1], shape=values.shape, dtype=np.uint8, shard=values.shape)
target.write_region(target.boxes[0], values); target.finish(); start = peak()
target = create_target("big." + sys.argv[1], shape=(192, 1024, 1024), dtype=np.uint8, shard=values.shape)
for box in target.boxes: target.write_region(box, values)
target.finish(); print(peak() - start)
"""


@pytest.mark.parametrize("suffix", ["zarr", "ome.tif", "nii.gz"])
def test_memory_does_not_grow_with_the_volume(suffix, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEMORY, suffix], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024, "KiB, for 192 MiB of voxels"
    assert open_volume(tmp_path / f"big.{suffix}").shape == (192, 1024, 1024)
