"""What was made by an earlier version still works: a run resumes, enhances and encodes, a code store decodes.

tests/data/made_by_6ea4a28 holds a tiny run, the volume that commit 6ea4a28 restored with it, and a code store;
tests/data/made_by_459a6d9 a run whose checkpoints have a manifest, with averaged weights, and a region that it restored;
tests/data/made_by_5e0afa0 an autoencoder of slices trained with the retired codebook.rate_weight, a store of its codes, and
what that decodes to.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import infer
from experiment.reading import SETTINGS_VERSION
from inference import Run
from models.options import MODEL_OPTIONS
from utils.errors import UserError

MADE = Path(__file__).parents[1] / "data" / "made_by_6ea4a28"
ON_CPU = ["--device", "cpu", "--precision", "32"]


@pytest.fixture
def old(workspace):
    """The old run beside the data that it was trained on."""
    shutil.copytree(MADE / "run", workspace.run("old").path)
    (workspace.root / "tiny.json").write_text(json.dumps({"train": {"dataset": "tiny"}}))
    return workspace


def close(path, expected):
    """Equal but for the last bits, which a processor may round otherwise, and the few codes that flip with them."""
    made, wanted = tifffile.imread(path).astype(float), tifffile.imread(expected).astype(float)
    assert made.shape == wanted.shape
    assert np.percentile(np.abs(made - wanted), 99) <= 1


def test_an_old_run_enhances_as_it_did(old, tmp_path):
    source = old.data / "train" / "x3d0" / "a.tif"
    words = ["--run", old.run("old").path, "--input", source, "--output", tmp_path / "iso.tif", "--voxel", "0.8,0.1,0.1"]
    infer.main(["enhance", *map(str, words), *ON_CPU])
    close(tmp_path / "iso.tif", MADE / "enhanced.tif")


def test_an_old_run_knows_nothing_of_newer_options(old, tmp_path):
    """Its settings as of a version before some of today's options: defaults are taken for them, in resume and enhance."""
    path = old.run("old").path / "0.json"
    settings = json.loads(path.read_text())
    for inside, key in ((settings, "adv_planes"), (settings, "monitor"), (settings["autoencoder"]["codebook"], "grid")):
        del inside[key]
    path.write_text(json.dumps(settings))
    test_an_old_run_enhances_as_it_did(old, tmp_path)
    test_an_old_run_resumes(old)
    assert json.loads((path.parent / "1.json").read_text())["adv_planes"] == 0


def test_an_old_code_store_decodes_as_it_did(tmp_path):
    words = ["--codes", MADE / "a.codes.zarr", "--run", MADE / "run", "--output", tmp_path / "iso.tif"]
    infer.main(["decode", *map(str, words), *ON_CPU])
    close(tmp_path / "iso.tif", MADE / "enhanced.tif")


def test_an_old_run_resumes(old):
    run = old.train("old", "--resume", "--n_epochs", 3, "--epoch_save", 1)
    assert run.epochs() == [2, 3]
    state = torch.load(run.component("net_g", 3), weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state.values())
    stored = json.loads((run.path / "1.json").read_text())
    assert (stored["n_epochs"], stored["settings_version"]) == (3, SETTINGS_VERSION)
    assert run.stored_settings(MODEL_OPTIONS) == {key: value for key, value in stored.items() if key != "settings_version"}


LISTED = MADE.with_name("made_by_459a6d9")


@pytest.fixture
def listed(workspace):
    """The run with a manifest, beside the data that it was trained on."""
    shutil.copytree(LISTED / "run", workspace.run("listed").path)
    (workspace.root / "tiny.json").write_text(json.dumps({"train": {"dataset": "tiny", "models": "IsoREF"}}))
    return workspace


def test_a_run_with_a_manifest_enhances_as_it_did(listed, tmp_path):
    source = listed.data / "train" / "x3d0" / "a.tif"
    words = ["--run", listed.run("listed").path, "--input", source, "--output", tmp_path / "iso.tif", "--voxel", "0.8,0.1,0.1"]
    infer.main(["enhance", *map(str, words), "--region", "8:24,0:24,0:24", *ON_CPU])
    close(tmp_path / "iso.tif", LISTED / "enhanced.tif")


def test_a_run_with_a_manifest_resumes_and_its_damage_is_named(listed):
    run = listed.train("listed", "--resume", "--n_epochs", 3, "--epoch_save", 1)
    assert run.epochs() == [2, 3] and run.manifest.previous.read_bytes() == (LISTED / "run/checkpoints/last.ckpt").read_bytes()
    run.component("net_g", 2).write_bytes(run.component("net_g", 3).read_bytes())
    with pytest.raises(UserError, match=r"net_g_model_epoch_2.pth is damaged or of another save"):
        Run.load(run.path, 2)


WEIGHED = MADE.with_name("made_by_5e0afa0")


def test_a_run_with_a_retired_entry_of_the_codebook_decodes_encodes_and_can_be_trained_on(workspace, tmp_path, caplog):
    """The sum of the weights, which the store names, is over counts that only that entry had a use for."""
    run = ["--run", WEIGHED / "run", *ON_CPU]
    raw = ["--grid", "raw", "--output"]
    infer.main([*map(str, ["decode", "--codes", WEIGHED / "a.codes.zarr", *raw, tmp_path / "old.tif", *run])])
    assert "autoencoder.codebook.rate_weight: retired, ignored" in caplog.text
    close(tmp_path / "old.tif", WEIGHED / "raw.tif")
    source, store = workspace.data / "train" / "x3d0" / "a.tif", tmp_path / "a.codes.zarr"
    infer.main([*map(str, ["encode", "--input", source, "--output", store, *run])])
    infer.main([*map(str, ["decode", "--codes", store, *raw, tmp_path / "new.tif", *run])])
    truth = tifffile.imread(source).astype(float)
    errors = [np.square(tifffile.imread(path) - truth).mean() for path in (tmp_path / "new.tif", WEIGHED / "raw.tif")]
    assert errors[0] < errors[1]  # the nearest code, no matter how rare
    (workspace.root / "tiny.yaml").write_text(
        "extends: vqlinear\nn_embed: 16\nembed_dim: 4\nddconfig: {ch: 2, z_channels: 4, num_res_blocks: 1}\n"
        "codebook: {levels: 2, rate_weight: [0.05, 0.02]}\n"
    )
    caplog.clear()
    trained = workspace.train("on", "--adv", 0, "--lamb", 0, "--ema", 0.9, "--init", WEIGHED / "run")
    assert f"{workspace.root / 'tiny.yaml'}: codebook.rate_weight: retired, ignored" in caplog.text
    assert trained.epochs() == [2]
