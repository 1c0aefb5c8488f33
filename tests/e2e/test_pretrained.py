"""The runs of pretrained/: whole, small, with a card; on real volumes (set ISOSCOPE_SAMPLES) each does what its card says."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from infer_commands import command, read, refused
from infer_runs import ROOT, grey
from safetensors.torch import load_file

import evaluate
from evaluation.spectra import detail_shape
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

PRETRAINED = ROOT / "pretrained"
RUNS = sorted(path for path in PRETRAINED.iterdir() if path.is_dir())
SAMPLES = Path(os.environ.get("ISOSCOPE_SAMPLES", "nowhere"))
real = pytest.mark.skipif(not SAMPLES.is_dir(), reason="ISOSCOPE_SAMPLES names no folder with real volumes")
FIB25 = (0.08, 0.01, 0.01)  # µm, of its sections


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_it_is_whole_small_and_says_what_it_is(run, caplog):
    caplog.set_level("INFO")
    command("info", run)
    assert "every file is as it was written" in caplog.text
    assert size(run) <= 2_500_000 and size(PRETRAINED) <= 6_000_000
    card = (run / "README.md").read_text()
    for said in ("Licence of the data", "minutes", "`evaluate.py` on", "never trained on", "--init FOLDER"):
        assert said in card, said
    for path in run.glob("*.json"):
        assert not any(place in path.read_text() for place in ("/home", "/tmp", "/work")), path
    assert f"`pretrained/{run.name}`" in (PRETRAINED / "README.md").read_text()


def judged(tmp_path, run, sections, *words, **about):
    """What evaluate.py says of the enhanced sections."""
    write_tiff(tmp_path / "in.tif", sections, **about)
    command("enhance", "--run", PRETRAINED / run, "--input", tmp_path / "in.tif", "--output", tmp_path / "out.tif")
    files = ["--reconstruction", tmp_path / "out.tif", "--input", tmp_path / "in.tif", "--output", tmp_path / "report"]
    evaluate.main([str(word) for word in [*files, *words]])
    return json.loads((tmp_path / "report" / "metrics.json").read_text())["volumes"]


@real
def test_membranes_are_closer_to_the_truth_than_any_interpolation(tmp_path):
    truth = open_volume(SAMPLES / "fibsem_fib25_dev.tif")[96:160, 60:156, 60:156]
    write_tiff(tmp_path / "truth.tif", truth, voxel_um=(0.01, 0.01, 0.01))
    found = judged(tmp_path, "fib25", truth[4::8], "--truth", tmp_path / "truth.tif", voxel_um=FIB25)
    best = max(found[how]["psnr_db"] for how in ("nearest", "linear", "cubic"))
    assert found["reconstruction"]["psnr_db"] > best + 1
    assert found["reconstruction"]["ssim"]["xz"] > max(found[how]["ssim"]["xz"] for how in ("nearest", "linear", "cubic")) + 0.04


@real
def test_nuclei_become_as_long_as_wide(tmp_path):
    unseen = open_volume(SAMPLES / "mesospim_nuclei_c5.tif")[86:]
    found = judged(tmp_path, "mesospim", unseen)["reconstruction"]["detail"]
    assert long(found) == pytest.approx(1, abs=0.1) and long(detail_shape(unseen)) > 1.8


def long(detail):
    """How long detail is along z, of how wide it is."""
    return 2 * detail["z"]["half_width"] / (detail["y"]["half_width"] + detail["x"]["half_width"])


@pytest.mark.parametrize(
    ("values", "about", "words"),
    [
        (grey((4, 32, 32)), {}, "trained on .*; map its own range with --normalise"),
        (np.arange(4096, dtype=np.uint8).reshape(4, 32, 32), {"voxel_um": (0.04, 0.01, 0.01)}, "0.04 .*but .*trained on 0.08"),
    ],
    ids=["16 bit", "factor 4"],
)
def test_what_it_has_not_learnt_is_said_before_work(tmp_path, values, about, words):
    write_tiff(tmp_path / "in.tif", values, **about)
    refused(words, "enhance", "--run", PRETRAINED / "fib25", "--input", tmp_path / "in.tif", "--output", tmp_path / "o.tif")
    assert not (tmp_path / "o.tif").exists()


def test_two_channels_are_refused(tmp_path):
    pair = np.full((4, 2, 32, 32), 90, np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", pair, imagej=True, metadata={"axes": "ZCYX"})
    words = ("--run", PRETRAINED / "fib25", "--input", tmp_path / "in.tif", "--output", tmp_path / "o.tif")
    refused("channel", "enhance", *words)
    command("enhance", *words, "--channel", 1)
    assert read(tmp_path / "o.tif").shape == (32, 32, 32)


def test_a_training_starts_from_it_by_the_line_of_its_card(workspace):
    folder = PRETRAINED / "fib25"
    [line] = [line for line in (folder / "README.md").read_text().splitlines() if "--init FOLDER" in line]
    given = shlex.split(line.partition("FOLDER")[2])
    small = ("--models", "lateral", "--cropsize", 40, "--crops_per_volume", 2, "--n_epochs", 1, "--epoch_save", 1)
    made = workspace.train("tuned", *small, *given, "--init", folder, "--lr", 1e-9, "--ema", 0)
    state = torch.load(made.component("net_g", 1), weights_only=True)
    before = load_file(next(folder.glob("checkpoints/*.safetensors")))
    assert all(torch.allclose(state[key], before[key], atol=1e-6) for key in before)
    with pytest.raises(UserError, match=r"\(uprate 8.0, fine_width"):
        workspace.train("other", *small, "--init", folder, "--uprate", 4, "--ngf", 32)
