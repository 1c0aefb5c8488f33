"""What a training says: what it is about to do, how far it is, how to go on, and what comes next."""

import io
import logging
import math
import re
import shlex
import sys

import pytest
import tqdm as of_tqdm
from infer_commands import command

import evaluate
import prepare
import train
from tests.workspace import signalled, write_volume
from training.shown import Progress, sparkline
from utils import command_line
from utils.units import as_time


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def validated(workspace):
    for number, name in enumerate(("a.tif", "b.tif")):
        write_volume(workspace.data / "val" / "x3d0" / name, number)
        write_volume(workspace.data / "truth" / "x3d0" / name, number, shape=(96, 48, 40))


@pytest.mark.parametrize(
    ("variant", "options", "geometry"),
    [
        ("vq", "--n_epochs 1", "4 slices of 32² pixels; 4 · 8 planes each (8·1/1) = a cube of 32³ voxels"),
        ("isoref_nocyc", "--n_epochs 1", "4 slices of 32² pixels; 4 · 8 planes each (32/4) = a cube of 32³ voxels"),
        (
            "isoref_nocyc",
            "--n_epochs 1 --cropz 8 --usp 2 --dsp 2",
            "8 planes · usp 2 / dsp 2 = 8 slices of 32² pixels; 8 · 4 planes each (32/8) = a cube of",
        ),
        (
            "lateral",
            "--n_epochs 1",
            "4 slices of 40² pixels, made as coarse along one side as sections 4 pixels apart (mean, blurred); a section",
        ),
    ],
)
def test_the_summary_names_model_geometry_data_device_and_memory(workspace, said, variant, options, geometry):
    run = workspace.train("one", *workspace.variant(variant), *options.split(), "--crops_per_volume", 2)
    lines = said()
    text = "\n".join(lines)
    assert f"geometry: {geometry}" in text
    (model,) = (line for line in lines if line.startswith("model: "))
    counts = [float(number) for number in re.findall(r"([\d.]+) M", model)]
    assert counts[0] == pytest.approx(sum(counts[1:]), abs=0.01 * len(counts))
    batch = 2 if variant == "lateral" else 1
    assert f"data: 2 volumes in {workspace.data / 'train' / 'x3d0'}, none for validation, 96.3 kB" in text
    assert f"2 crops of each volume in batches of {batch} = {4 // batch} steps an epoch, {4 // batch} in 1 epochs" in text
    assert re.search(r"device: 1 x cpu, 32-true; a step needs [\d.]+ [MG]B of memory", text)
    assert f"run folder: {run.path}" in lines


def test_a_log_file_stays_calm(workspace, said, capfd, monkeypatch):
    monkeypatch.setattr(Progress, "FIRST", 1e9)  # seconds, which a busy machine may take
    workspace.train("one", "--picture_epochs", 9, "--n_epochs", 3)
    assert not [line for line in said() if "left" in line] and "\r" not in capfd.readouterr().err
    monkeypatch.setattr(Progress, "FIRST", 0)
    monkeypatch.setattr(Progress, "PAUSE", 0)
    monkeypatch.setattr(Progress, "SHARE", 0)
    monkeypatch.setattr(Progress, "LOOK", 0)
    workspace.train("two", "--picture_epochs", 9, "--crops_per_volume", 2)
    steps = [line for line in said() if line.endswith(" left")]
    assert len(steps) == 7  # the last step has nothing left
    assert re.fullmatch(
        r"epoch 2 of 2, step 7 of 8, loss/generator/projection [\d.e-]+, .*; [\d.]+ m?s a step, [\d.]+ m?s left", steps[-1]
    )
    assert len({line.split(",")[2] for line in steps}) > 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_losses_in_the_bar_move_within_an_epoch(workspace, monkeypatch, said):
    terminal = Terminal()
    monkeypatch.setattr("training.shown.tqdm", lambda **how: of_tqdm.tqdm(**{**how, "file": terminal, "mininterval": 0}))
    monkeypatch.setattr(Progress, "LOOK", 0)
    workspace.train("one", "--crops_per_volume", 2, "--picture_epochs", 9)
    shown = terminal.getvalue()
    assert "epoch 1/2" in shown and "epoch 2/2" in shown and "8/8" in shown
    assert len(set(re.findall(r"generator/projection=([\d.e-]+)", shown))) > 4
    assert not [line for line in said() if line.endswith(" left")]


def test_every_picture_comes_with_the_course_of_the_loss(workspace, said, monkeypatch):
    validated(workspace)
    monkeypatch.setattr(Progress, "LOOK", 0)
    run = workspace.train("one", "--n_epochs", 4, "--picture_epochs", 2, "--monitor", "val/recon")
    lines = [line for line in said() if line.startswith("after epoch")]
    assert [line.split(":")[0] for line in lines] == ["after epoch 2", "after epoch 4"]
    for line, epoch in zip(lines, (2, 4), strict=True):
        found = re.fullmatch(r"after epoch \d: loss/generator/total ([▁-█]+) [\d.]+, validation/recon [\d.]+, (\S+)", line)
        assert found and found[2] == str(run.picture(epoch)) and len(found[1]) <= 16


def test_after_ctrl_c_the_command_that_goes_on_is_said(workspace, said, monkeypatch):
    signalled(monkeypatch, 0)
    workspace.settings(dataset="another")
    assert train.main(workspace.arguments("one", "--ema", 0.9, "--dataset", "tiny")) == 75
    monkeypatch.undo()
    how = said()[-1]
    assert how.startswith("stopped by SIGTERM: 0 of 2 epochs are in ") and "go on with\n" in how
    words = shlex.split(how.splitlines()[-1])
    assert words[-1] == "--resume" and "--ema" not in words
    assert train.main(words[words.index("--jsn") :]) == 0
    assert workspace.run("one").epochs()[-1] == 2


def test_at_the_end_stand_the_commands_that_come_next(workspace, said):
    validated(workspace)
    run = workspace.train("one", "--n_epochs", 1)
    enhance, judge, encode = (shlex.split(line) for line in said()[-1].splitlines() if line.startswith("  "))
    command(*enhance[enhance.index("enhance") :])
    assert (run.path / "enhanced.ome.tif").is_file() and str(workspace.data / "truth" / "x3d0" / "a.tif") in judge
    evaluate.main(judge[judge.index("--reconstruction") :])
    assert "PSNR" in (run.path / "report" / "report.html").read_text()
    assert encode[encode.index("encode") :][:3] == ["encode", "--run", str(run.path)]


def test_what_comes_next_is_said_of_the_file_that_prepare_has_read(workspace, said, tmp_path):
    (tmp_path / "raw").mkdir()
    write_volume(tmp_path / "raw" / "scan.tif", 0)
    where = ("volumes", "--data_root", workspace.data.parent, "--dataset", "mine", "--input", tmp_path / "raw" / "scan.tif")
    prepare.main(list(map(str, where)))
    workspace.train("one", "--n_epochs", 1, "--dataset", "mine", "--nm", "00")
    enhance, judge, *_ = (shlex.split(line) for line in said()[-1].splitlines() if line.startswith("  "))
    assert enhance[enhance.index("--input") + 1] == judge[judge.index("--input") + 1] == str(tmp_path / "raw" / "scan.tif")
    command(*enhance[enhance.index("enhance") :])


def test_of_an_autoencoder_alone_codes_come_next(workspace, said):
    workspace.train("one", "--n_epochs", 1, "--adv", 0, "--lamb", 0)
    assert " encode --run " in said()[-1] and "enhance" not in said()[-1]


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 8, ""),
        ([3.0], 8, "▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 7, 0, 0], 2, "█▁"),
        ([math.nan, 1, math.inf, 0], 8, "█▁"),
    ],
)
def test_sparkline(values, width, drawn):
    assert sparkline(values, width) == drawn


def test_durations_in_words():
    found = [as_time(value) for value in (0.0123, 0.5, 30, 119, 120, 7200, 100000, 172800)]
    assert found == ["0.012 s", "0.5 s", "30 s", "119 s", "2 min", "2.0 h", "27.8 h", "2.0 d"]


def test_a_command_is_written_as_one_types_it_here(monkeypatch, tmp_path):
    monkeypatch.setattr(command_line.shutil, "which", lambda name: sys.executable)
    assert command_line.command("infer", "enhance", "--run", "a b") == "python infer.py enhance --run 'a b'"
    monkeypatch.setattr(command_line.shutil, "which", lambda name: None)
    monkeypatch.setattr(command_line, "REPOSITORY", tmp_path)
    monkeypatch.delenv("ISOSCOPE_VENV", raising=False)
    assert command_line.command("train") == f"{shlex.quote(sys.executable)} train.py"
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert command_line.command("train", "--resume") == "./run.sh train --resume"
