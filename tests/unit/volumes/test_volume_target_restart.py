"""Outputs that several processes fill: restartable, never half finished under their own name."""

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from target_volumes import SHAPE, begin, fill, random_values, write_volume

from utils.errors import UserError
from volumes.block_array import BlockArray
from volumes.open import open_volume
from writing import pyramid
from writing import target as target_module
from writing.pyramid import halved
from writing.target import VolumeTarget
from writing.target_plan import estimate_bytes, free_space, partial_path

ROOT = Path(__file__).resolve().parents[3]


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
    begin(tmp_path / "v.ome.zarr", voxel_um=None).finish()
    np.testing.assert_array_equal(open_volume(tmp_path / "v.ome.zarr")[:], random_values())
    assert [p.name for p in tmp_path.iterdir()] == ["v.ome.zarr"]


def test_ranks_finish_together(tmp_path):
    import threading

    barrier = threading.Barrier(3)
    target = begin(tmp_path / "v.zarr", np.uint8, shape=(300, 300, 40), shard=(64, 64, 64), voxel_um=None)
    values = random_values((300, 300, 40), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: fill(target, values, [n]), range(len(target.boxes))))
        ranks = [VolumeTarget(target.output, target.plan) for _ in range(3)]
        done = [pool.submit(t.finish, rank=k, world=3, barrier=barrier.wait) for k, t in enumerate(ranks)]
        assert {future.result() for future in done} == {target.output}
    np.testing.assert_array_equal(open_volume(target.output)[:], values)
    np.testing.assert_array_equal(open_volume(target.output, level=1)[:], halved(values, (2, 2, 2)))
    with pytest.raises(ValueError, match="pass barrier"):
        begin(tmp_path / "w.zarr").finish(world=2)


KILLED = """
import sys, time, numpy as np
from target_volumes import begin, random_values
target = begin(sys.argv[1]); values = random_values()
for number in target.pending():
    target.write_region(target.boxes[number], values[target.boxes[number]])
    print(number, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("name", ["v.ome.zarr", "v.ome.tif"])
def test_a_killed_command_continues_where_it_was(name, tmp_path):
    output = tmp_path / name
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    command = [sys.executable, "-c", KILLED, output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
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
    values = random_values()
    for number in (10, 11):
        target.blocks(number)[0][0].write(target.boxes[number], values[target.boxes[number]])
    (partial_path(output) / ".work" / "torn.done").write_text("0 10\n0 11")  # a line cut off by the kill does not count
    assert 10 not in target.pending() and 11 in target.pending()
    (partial_path(output) / ".work" / "torn.done").unlink()
    fill(target, random_values())
    target.finish()
    np.testing.assert_array_equal(open_volume(output)[:], random_values())


def test_finishing_can_be_killed_and_repeated(tmp_path, monkeypatch):
    target = begin(tmp_path / "v.zarr", np.uint8, shape=(300, 300, 40), shard=(64, 64, 64), voxel_um=None)
    values = random_values((300, 300, 40), np.uint8)
    fill(target, values)
    calls, reduced = count(1), pyramid.reduced

    def killed(*arguments):
        if next(calls) > 3:
            raise KeyboardInterrupt
        return reduced(*arguments)

    monkeypatch.setattr(target_module, "reduced", killed)
    with pytest.raises(KeyboardInterrupt):
        target.finish()
    again = []
    monkeypatch.setattr(target_module, "reduced", lambda *arguments: again.append(1) or reduced(*arguments))
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        VolumeTarget(target.output, target.plan).finish()
    monkeypatch.undo()
    assert len(again) == 3 * 3 - 3  # finished shards of the pyramid are not computed again
    with pytest.raises(UserError, match="not finished"):
        open_volume(target.partial)
    VolumeTarget(target.output, target.plan).finish()
    np.testing.assert_array_equal(open_volume(target.output, level=1)[:], halved(values, (2, 2, 2)))


def test_what_is_left_of_a_command_that_was_killed_once_its_file_was_there_is_removed(tmp_path, monkeypatch):
    output = tmp_path / "v.tif"
    target = begin(output)
    fill(target, random_values())
    monkeypatch.setattr(target_module, "discard", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        target.finish()
    monkeypatch.undo()
    assert output.exists() and target.partial.exists()
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        begin(output)
    assert [p.name for p in tmp_path.iterdir()] == ["v.tif"]
    again = begin(output, overwrite=True)  # one that is still to replace it is not
    fill(again, random_values(seed=2))
    monkeypatch.setattr(target_module, "write_single_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        again.finish()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        begin(output)
    VolumeTarget(output, again.plan, overwrite=True).finish()
    np.testing.assert_array_equal(open_volume(output)[:], random_values(seed=2))


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
        begin(output)  # by a command that was not told to
    target.finish()
    np.testing.assert_array_equal(open_volume(output)[:], new)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    target = begin(tmp_path / "v.tif")
    fill(target, random_values())
    target.output.touch()
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        target.finish()
    assert target.output.stat().st_size == 0 and target.partial.exists()


def test_left_overs_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".v[1].tif.99.partial").touch()
    write_volume(tmp_path / "v[1].tif", random_values())
    assert [p.name for p in tmp_path.iterdir()] == ["v[1].tif"]


def test_an_unfinished_output_of_an_earlier_version_is_continued(tmp_path):
    target = begin(tmp_path / "v.zarr")
    fill(target, random_values(), [0])
    plan = target.partial / ".work" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "levels": None}))  # an entry that there was
    again = begin(tmp_path / "v.zarr")
    assert 0 not in again.pending()
    fill(again, random_values())
    np.testing.assert_array_equal(open_volume(again.finish())[:], random_values())


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
    (other.partial / ".work" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"holds no plan that can be read .* delete it"):
        begin(tmp_path / "v.zarr")


def test_a_disc_that_refuses_is_a_message(tmp_path, monkeypatch):
    target = begin(tmp_path / "v.zarr")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes of a file
    try:
        with pytest.raises(UserError, match=r"v\.zarr.* cannot be written \(\[Errno 27\].*File too large"):
            fill(target, random_values(), [0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 in target.pending()
    monkeypatch.setattr(BlockArray, "_store", property(full_disc))
    with pytest.raises(UserError, match=r"the disc is full.*continues"):
        fill(target, random_values(), [0])
    monkeypatch.undo()
    assert 0 in target.pending()
    fill(target, random_values())
    (target.partial / "0" / "c" / "0" / "0" / "0_12ab.__lock").touch()  # left by a process that was killed in between
    target.finish()
    assert not list(target.output.rglob("*lock")) and not (target.output / ".work").exists()


def full_disc(_):
    raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")


@pytest.mark.parametrize("name", ["v.zarr", "v.ome.tif", "v.nii.gz"])
def test_finishing_shows_a_bar_of_known_length(name, tmp_path, capfd):
    values = random_values((300, 300, 40), np.uint8)
    target = begin(tmp_path / name, np.uint8, shape=values.shape, shard=(64, 64, 64), voxel_um=None)
    fill(target, values)
    target.finish()
    bars = capfd.readouterr().err
    size = r"450k/450k" if name == "v.zarr" else r"3\.60M/3\.60M"
    assert re.search(rf"{name}.*100%.*{size}", bars.split("\r")[-1]) and bars.count("\n") == 1


def test_room_is_looked_for_before_writing(tmp_path):
    with pytest.raises(UserError, match="B free; make room"):
        free_space(tmp_path / "not" / "there", 10**18)
    free_space(tmp_path, 1)
    assert estimate_bytes("v.ome.tif", SHAPE, "uint16") == 4 * np.prod(SHAPE)
    assert 1 < estimate_bytes("v.zarr", SHAPE, "uint8", channels=2) / (2 * np.prod(SHAPE)) < 1.15


@pytest.mark.parametrize("name", ["v.ome.zarr", "v.tif"])
def test_a_second_command_on_an_output_says_that_the_first_has_finished_it(tmp_path, name):
    first, second = begin(tmp_path / name), begin(tmp_path / name)
    fill(first, random_values())
    first.finish()
    with pytest.raises(UserError, match=r"v\.\S+: another command has finished or removed it meanwhile; let one command"):
        fill(second, random_values(), [0])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(open_volume(tmp_path / name)[:], random_values())


def test_an_output_that_is_finished_while_a_second_command_writes(tmp_path, monkeypatch):
    first, second = begin(tmp_path / "v.ome.zarr"), begin(tmp_path / "v.ome.zarr")
    fill(first, random_values())
    write = BlockArray.write

    def late(array, box, values):
        monkeypatch.undo()
        first.finish()
        return write(array, box, values)

    monkeypatch.setattr(BlockArray, "write", late)
    with pytest.raises(UserError, match="another command has finished or removed it meanwhile"):
        fill(second, random_values(), [0])
    np.testing.assert_array_equal(open_volume(tmp_path / "v.ome.zarr")[:], random_values())
