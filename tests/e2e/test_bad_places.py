"""Folders, files and locks in a state that a user has to be told about; further cases are in test_bad_input.py."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from test_bad_input import refused, volume

from dataloader.crops import CropSettings, places, random_crop
from experiment.runs import RunFolder
from utils.errors import UserError, reported


@pytest.mark.parametrize("prj", ["", ".", "a/../b", "/tmp/x", "a//b"])
def test_a_run_gets_a_folder_of_its_own(workspace, prj):
    with pytest.raises(UserError, match="must be the name of a folder"):
        workspace.train(prj)
    assert not (workspace.root / "logs").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [(("--logs", __file__), "cannot be made.*--logs"), (("--seed", 2**32), "--seed=.*4294967295")],
)
def test_values_that_no_machine_takes(workspace, options, match):
    refused(workspace, match, *options)


def test_a_dangling_link_is_missed(workspace):
    volume(workspace).unlink()
    volume(workspace).symlink_to("/media/unplugged/a.tif")
    refused(workspace, "a.tif: no such file.*link to /media/unplugged/a.tif")


def test_a_single_nan_is_found_before_training(workspace):
    """Under nm 00 too, where no range is needed, and in a corner that no crop of the first look touches."""
    values = np.zeros((12, 48, 40), np.float32)
    tifffile.imwrite(volume(workspace, "b.tif"), values)
    values[11, 47, 39] = np.nan
    tifffile.imwrite(volume(workspace), values)
    refused(workspace, "a.tif.*1 NaN or infinite", "--nm", "00", "--no-rotate")


def test_what_a_worker_process_raises_is_told_without_its_traceback(workspace, capsys):
    """Values beyond the interval in all planes but those of the first looks: only the crops of the training meet them."""
    crop = CropSettings(32, 4, rotate=False)
    first = random_crop(places((12, 48, 40), crop), crop, np.random.default_rng([123, 0, 0]))
    values = np.full((12, 48, 40), 7, np.float32)
    values[first.z : first.z + 4] = values[4:8] = 0
    tifffile.imwrite(volume(workspace), values)
    tifffile.imwrite(volume(workspace, "b.tif"), np.zeros_like(values))
    raised = []
    with pytest.raises(SystemExit) as end, reported(debug=False):
        try:
            workspace.train("one", "--nm", "00", "--no-rotate", "--workers", 1)
        except UserError as error:
            raised.append(str(error))
            raise
    message = capsys.readouterr().err.rpartition("error: ")[2]
    assert raised[0] == message.rstrip("\n") and end.value.code == 2
    assert message.startswith(str(volume(workspace))) and "--nm 11" in message and "Traceback" not in message


@pytest.fixture
def locked_by(tmp_path):
    """A run's folder with the lock of a process of this host."""

    def write(pid, age=0.0):
        lock = tmp_path / "run.lock"
        lock.write_text(json.dumps({"host": os.uname().nodename, "pid": pid, "start": "then"}))
        os.utime(lock, (time.time() - age,) * 2)
        return RunFolder(tmp_path)

    return write


def test_a_lock_with_the_number_of_this_process_is_stale(locked_by):
    with locked_by(os.getpid()).locked():
        pass


def test_a_process_that_started_after_the_lock_does_not_hold_it(locked_by):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(UserError, match=f"in use by process {other.pid}"), locked_by(other.pid).locked():
            pass
        with locked_by(other.pid, age=3600).locked():
            pass
    finally:
        other.kill()
        other.wait()


def test_a_trained_folder_is_refused_before_the_data_are_looked_at(workspace):
    run = workspace.train("one", "--n_epochs", 1)
    volume(workspace).unlink()
    volume(workspace, "b.tif").write_bytes(b"")
    with pytest.raises(UserError, match="already holds a training"):
        workspace.train("one")
    assert run.last.is_file()
