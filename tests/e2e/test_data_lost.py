"""Data that go away, change or come back while a training reads them, and worker processes that are killed."""

import errno
import multiprocessing
import os
import shutil
import signal

import pytest
import tifffile
import torch
from test_bad_input import volume
from workspace import made_in

import dataloader.steady
import train
from dataloader.data_multi import PairedImageDataset
from dataloader.steady import DataLost
from models.base import BaseModel
from utils.errors import UserError, reported

OPTIONS = ("--n_epochs", 2, "--epoch_save", 1, "--crops_per_volume", 3, "--workers")


def same(*runs):
    states = [torch.load(run.last, weights_only=True)["state_dict"] for run in runs]
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def quickly(name, *first, slowly):
    """Some values always, the others among the slow tests."""
    return pytest.mark.parametrize(name, [*first, *(pytest.param(other, marks=pytest.mark.slow) for other in slowly)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbs."""
    return made_in(tmp_path_factory.mktemp("whole")).train("whole", *OPTIONS, 0)


@pytest.fixture
def at_batch(monkeypatch):
    """Something is done before a batch of an epoch of the training that follows, once."""
    original = BaseModel.on_train_batch_start

    def arrange(act, batch=2, epoch=1):
        acts = [act]

        def acted(self, data, batch_idx):
            if (self.current_epoch, batch_idx) >= (epoch, batch) and acts:
                acts.pop()()
            original(self, data, batch_idx)

        monkeypatch.setattr(BaseModel, "on_train_batch_start", acted)

    return arrange


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(dataloader.steady, "WAITS", (0.01, 0.02))


def deleted(path):
    path.unlink()
    return "a.tif cannot be read \\(No such file or directory; tried 3 times"


def other_shape(path):
    values = tifffile.imread(path)
    tifffile.imwrite(path, values.reshape(24, 24, 40))
    return r"a.tif cannot be read \(it is \(24, 24, 40\) uint16 now, was \(12, 48, 40\) uint16; tried"


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)
    return "a.tif cannot be read \\(.*a.tif: .*(truncated|ends at byte)"


def emptied(path):
    path.write_bytes(b"")
    return "a.tif cannot be read \\(.*empty file"


def no_file_any_more(path):
    path.unlink()
    path.mkdir()
    return "a.tif cannot be read"


@quickly("spoil", deleted, other_shape, cut_short, slowly=[emptied, no_file_any_more])
def test_a_lost_file_is_named_and_the_training_goes_on_from_the_very_step(workspace, whole, at_batch, capsys, spoil):
    """To the weights of an undisturbed one, once the file is back."""
    path, kept = volume(workspace), workspace.root / "kept.tif"
    shutil.copy2(path, kept)
    says = []
    at_batch(lambda: says.append(spoil(path)))
    with pytest.raises(UserError) as error:
        workspace.train("broken", *OPTIONS, 0)
    assert error.match(f"{says[0]}.*go on with --resume; --unreadable_files N")
    step = torch.load(workspace.run("broken").last, weights_only=True)["generator_steps"]
    assert 9 <= step < 12
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copy2(kept, path)
    assert same(whole, workspace.train("broken", "--resume"))


def test_data_lost_between_two_epochs(workspace, whole, at_batch):
    """After the last step of one, noticed before the first of the next."""
    at_batch(lambda: (workspace.data / "train").rename(workspace.root / "aside"), batch=5, epoch=0)
    with pytest.raises(UserError, match="cannot be read"):
        workspace.train("broken", *OPTIONS, 0, "--save_minutes", 100, "--epoch_save", 2)
    assert torch.load(workspace.run("broken").last, weights_only=True)["generator_steps"] == 6
    (workspace.root / "aside").rename(workspace.data / "train")
    assert same(whole, workspace.train("broken", "--resume"))


def test_a_file_that_is_back_in_time_changes_nothing(workspace, whole, at_batch, monkeypatch, caplog):
    """A disc that fails twice, as network discs do; and a copy put over the file."""
    preadv, failures = os.preadv, [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]

    def failing(handle, buffers, start):
        if failures:
            raise failures.pop(0)
        return preadv(handle, buffers, start)

    def trouble():
        monkeypatch.setattr(os, "preadv", failing)
        os.utime(volume(workspace), (1, 1))
        os.utime(volume(workspace, "b.tif"), (1, 1))

    at_batch(trouble)
    assert same(whole, workspace.train("broken", *OPTIONS, 0)) and not failures
    said = " ".join(caplog.messages)
    assert "tif: Stale file handle; read after another try" in said and "it was written anew while in use; read after" in said


@pytest.mark.parametrize("workers", [0, 2])
def test_as_many_files_as_asked_may_be_missed_and_others_stand_in(workspace, at_batch, caplog, workers):
    """Whichever process draws the crops: what one has missed is known to all."""
    for name in ("b.tif", "c.tif"):
        shutil.copy(volume(workspace), volume(workspace, name))
    options = (*OPTIONS, workers, "--unreadable_files", 1)
    at_batch(lambda: volume(workspace).unlink(), batch=0, epoch=1)
    run = workspace.train("one", *options)
    assert run.epochs() == [1, 2]
    if not workers:  # else a worker process says it, where this test does not listen
        [said] = [message for message in caplog.messages if "left out" in message]
        assert "a.tif cannot be read" in said and "file 1 of at most 1" in said
    at_batch(lambda: [volume(workspace, name).unlink() for name in ("b.tif", "c.tif")], batch=0, epoch=2)
    with pytest.raises(UserError, match=r"(b|c).tif cannot be read \(No such file.*\(now 1\) are missed"):
        workspace.train("one", "--resume", "--n_epochs", 4)
    assert "data are not those that this training had: missing train/x3d0/a.tif" in caplog.text


def test_who_comes_after_the_last_file_was_left_out_is_told_too(workspace):
    """Of two worker processes the slower one: anything else would end the epoch as if it were done."""
    shutil.copy(volume(workspace), volume(workspace, "b.tif"))
    data = PairedImageDataset(workspace.data / "train", ["x3d0"], cropsize=16, cropz=2, nm="11", unreadable_files=1)
    for number, name in enumerate(data.names):
        data[number]
        volume(workspace, name).unlink()
    for _ in range(2):
        with pytest.raises(DataLost, match=r"tif cannot be read .*\(now 1\) are missed"):
            data[0]


def test_a_training_goes_on_with_what_is_left(workspace, at_batch, caplog):
    """Stopped within an epoch by a lost file that never comes back."""
    at_batch(lambda: volume(workspace).unlink(), batch=3)
    with pytest.raises(UserError, match=r"a\.tif cannot be read"):
        workspace.train("one", *OPTIONS, 0)
    assert workspace.train("one", "--resume").epochs()[-1] == 2
    assert "missing train/x3d0/a.tif; what it becomes differs" in caplog.text


def test_a_lost_validation_file_is_named(workspace, at_batch):
    shutil.copytree(workspace.data / "train", workspace.data / "val")
    at_batch(lambda: (workspace.data / "val" / "x3d0" / "b.tif").unlink())
    with pytest.raises(UserError, match=r"val/x3d0/b\.tif cannot be read"):
        workspace.train("one", *OPTIONS, 0)
    shutil.copy(volume(workspace, "b.tif"), workspace.data / "val" / "x3d0" / "b.tif")
    assert workspace.train("one", "--resume").epochs()[-1] == 2


def kill_worker(number=signal.SIGKILL):
    os.kill(multiprocessing.active_children()[0].pid, number)


@quickly("number", signal.SIGKILL, slowly=[signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_worker_is_replaced_and_changes_nothing(workspace, whole, at_batch, caplog, number):
    at_batch(lambda: kill_worker(number), batch=1)
    assert same(whole, workspace.train("broken", *OPTIONS, 2))
    assert "a process that prepares crops was killed" in caplog.text


def test_workers_that_are_killed_again_and_again_are_named_and_nothing_is_lost(workspace, whole, at_batch, monkeypatch, capsys):
    monkeypatch.setattr("dataloader.batches.MOST_KILLED", 0)
    at_batch(kill_worker)
    with pytest.raises(SystemExit) as end, reported(debug=False):
        workspace.train("broken", *OPTIONS, 1)
    message = capsys.readouterr().err.rpartition("error: ")[2]
    assert end.value.code == 2 and "killed 1 times in an epoch" in message and "--workers" in message
    assert "Traceback" not in message
    assert torch.load(workspace.run("broken").last, weights_only=True)["generator_steps"] in range(9, 12)
    assert same(whole, workspace.train("broken", "--resume"))


@quickly("number", signal.SIGUSR1, slowly=[signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_all_processes_of_a_job(workspace, whole, at_batch, number):
    """As Ctrl-C in a terminal and schedulers have it: the first process stops, saves and says so."""
    at_batch(lambda: [os.kill(pid, number) for pid in (os.getpid(), *(w.pid for w in multiprocessing.active_children()))])
    code = train.main(workspace.arguments("stopped", *OPTIONS, 2))
    assert code == (130 if number == signal.SIGINT else 75)
    assert same(whole, workspace.train("stopped", "--resume"))
