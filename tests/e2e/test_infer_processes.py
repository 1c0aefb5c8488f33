"""infer.py in several processes, killed and started again."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from infer_commands import VOXEL, command, quiet, read
from infer_runs import ROOT, grey

from volumes.open import open_volume
from writing.write import write_tiff


def arguments(run, source, output):
    return ["enhance", "--run", str(run), "--input", str(source), "--output", str(output), "--tile", "128"]


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.tif"
    write_tiff(path, grey((2, 140, 540)), voxel_um=VOXEL)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_same(run, large, tmp_path, world):
    command(*arguments(run, large, tmp_path / "one.ome.zarr"))
    # without the lone -- torchrun takes our --run for an abbreviation of an option of its own
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world), "--", str(ROOT / "infer.py")]
    subprocess.run([*launch, *arguments(run, large, tmp_path / "many.ome.zarr")], check=True, env=quiet(), timeout=300)
    np.testing.assert_array_equal(read(tmp_path / "many.ome.zarr"), read(tmp_path / "one.ome.zarr"))


@pytest.mark.slow
def test_tasks_of_srun_write_the_same(run, large, tmp_path):
    command(*arguments(run, large, tmp_path / "one.ome.zarr"))
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NODELIST": "localhost", **quiet()}
    words = [sys.executable, str(ROOT / "infer.py"), *arguments(run, large, tmp_path / "two.ome.zarr")]
    tasks = [subprocess.Popen(words, env={**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0]
    np.testing.assert_array_equal(read(tmp_path / "two.ome.zarr"), read(tmp_path / "one.ome.zarr"))
    assert open_volume(tmp_path / "two.ome.zarr").attributes["work"]["processes"] == 2


@pytest.mark.slow
def test_killed_and_started_again(run, large, tmp_path):
    command(*arguments(run, large, tmp_path / "one.ome.zarr"))
    output = tmp_path / "again.ome.zarr"
    process = subprocess.Popen([sys.executable, str(ROOT / "infer.py"), *arguments(run, large, output)], env=quiet())
    partial = output.with_name(output.name + ".partial.zarr")
    deadline = time.monotonic() + 200
    while not shards(partial) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in shards(partial)}
    assert before and not output.exists()
    command(*arguments(run, large, output))
    np.testing.assert_array_equal(read(output), read(tmp_path / "one.ome.zarr"))
    kept = [path for path, when in before.items() if (output / path.relative_to(partial)).stat().st_mtime_ns == when]
    assert len(kept) >= len(before) - 1  # the last one may not have been noted yet


def shards(partial):
    return [path for path in (partial / "0" / "c").rglob("*") if path.is_file()] if partial.exists() else []
