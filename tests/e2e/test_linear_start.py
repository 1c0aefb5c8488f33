"""An autoencoder with a linear start (ldm/vqlinear.yaml), trained alone and with the volume decoder."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from test_ddp import TWO, states
from test_training import same
from workspace import write_volume

import evaluate
import infer
import models.ae0iso0tccutvqq as vq
from codes.store import CodeStore
from inference import Options, Run, decode, encode, enhance
from models import linear_start, slice2volume
from models.base import BaseModel
from sharing.view import opened
from taming.codebook import kmeans
from utils.boxes import whole_box
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")

LINEAR = "extends: vqlinear\nn_embed: 16\nembed_dim: 6\nddconfig: {ch: 4, z_channels: 6, num_res_blocks: 1}\n"
ALONE = ("--adv", 0, "--lamb", 0)
PARTS = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")


@pytest.fixture
def linear(workspace, monkeypatch):
    monkeypatch.setattr(vq, "FIRST_BLOCKS", 1280)
    (workspace.root / "tiny.yaml").write_text(LINEAR)
    return workspace


def parts(run, epoch):
    states = {name: torch.load(run.component(name, epoch), weights_only=True) for name in PARTS}
    return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}


def untrained(monkeypatch):
    """A training that stays where it starts; what it was started from."""
    seen = []
    monkeypatch.setattr(BaseModel, "training_step", lambda self, batch, number: None)
    start = linear_start.start_linearly
    monkeypatch.setattr(linear_start, "start_linearly", lambda *given: seen.append(given[-1]) or start(*given))
    return seen


def test_it_starts_at_principal_components_and_k_means(linear, monkeypatch, tmp_path):
    seen = untrained(monkeypatch)
    run = Run.load(linear.train("start", *ALONE).path)
    rows = seen[0].double().numpy()  # blocks of 8x8
    assert len(rows) >= vq.FIRST_BLOCKS
    mean = rows.mean()
    components = np.linalg.svd(rows - mean, full_matrices=False)[2][:6]
    found = run.model.G["encoder"].linear.weight.flatten(1).double().numpy()
    np.testing.assert_allclose(np.abs(np.sum(found * components, axis=1)), 1, atol=1e-3)
    # the codebook: k-means of the coefficients, as seeded
    coefficients = torch.from_numpy((rows - mean) @ found.T).float()
    centres = kmeans(coefficients, 16, torch.Generator().manual_seed(run.settings["seed"]))
    (book,) = run.codebook()
    np.testing.assert_allclose(book, centres.numpy(), atol=1e-3)
    # what decode gives back of a file's slices: for each block the nearest centre, as pixels
    values = tifffile.imread(linear.data / "train" / "x3d0" / "a.tif")
    store = encode(run, values, tmp_path / "x.codes.zarr")
    shown = decode(store, run, grid="raw")
    low, high = (run.record["directions"]["x3d0"]["pooled"][key] for key in ("low", "high"))
    unit = (values.astype(float) - low) / (high - low) * 2 - 1
    n, h, w = values.shape
    blocks = unit.reshape(n, h // 8, 8, w // 8, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 64)
    nearest = np.square(((blocks - mean) @ found.T)[:, None] - book).sum(axis=2).argmin(axis=1)
    expected = (book[nearest] @ found + mean).reshape(n, h // 8, w // 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(n, h, w)
    grey = (expected + 1) / 2 * (high - low) + low
    assert np.abs(shown - grey).max() < 1
    assert (shown - values.astype(float)).var() < values.var() / 2


@pytest.mark.parametrize("codebook", ["levels: 1", "levels: 2"])
def test_a_broken_training_ends_with_the_same_weights(linear, codebook):
    (linear.root / "tiny.yaml").write_text(LINEAR + f"codebook: {{{codebook}, revive_after: 1}}\n")
    whole = linear.train("whole", *ALONE, "--ema", 0.9)
    linear.train("broken", *ALONE, "--ema", 0.9, "--n_epochs", 1)
    broken = linear.train("broken", "--n_epochs", 2, "--resume")
    assert same(parts(whole, 2), parts(broken, 2))


GAUSSIAN = "extends: kllinear\nembed_dim: 6\nddconfig: {ch: 4, z_channels: 6, num_res_blocks: 1}\n"


def test_the_gaussian_model_starts_there_too(linear, monkeypatch):
    monkeypatch.setattr(slice2volume, "FIRST_BLOCKS", 1280)
    (linear.root / "tiny.yaml").write_text(GAUSSIAN)
    options = ("--models", "ae0iso0tccut", "--lbNCE", 0)
    whole = linear.train("whole", *options)
    linear.train("broken", *options, "--n_epochs", 1)
    broken = linear.train("broken", "--n_epochs", 2, "--resume")
    names = ("encoder", "decoder", "quant_conv", "net_g")
    assert all(same(*(torch.load(run.component(name, 2), weights_only=True) for run in (whole, broken))) for name in names)
    seen = untrained(monkeypatch)
    run = Run.load(linear.train("start", *options, *ALONE).path)
    values = tifffile.imread(linear.data / "train" / "x3d0" / "a.tif")
    shown = decode(encode(run, values, linear.root / "x.codes.zarr"), run, grid="raw")
    blocks = seen[0].double().numpy()
    components = np.linalg.svd(blocks - blocks.mean(), full_matrices=False)[2][:6]
    low, high = (run.record["directions"]["x3d0"]["pooled"][key] for key in ("low", "high"))
    n, h, w = values.shape
    unit = ((values.astype(float) - low) / (high - low) * 2 - 1).reshape(n, h // 8, 8, w // 8, 8).transpose(0, 1, 3, 2, 4)
    rows = unit.reshape(-1, 64) - blocks.mean()
    expected = (rows @ components.T @ components + blocks.mean()).reshape(n, h // 8, w // 8, 8, 8).transpose(0, 1, 3, 2, 4)
    grey = (expected.reshape(n, h, w) + 1) / 2 * (high - low) + low
    assert np.abs(shown - grey).max() < 2  # codes are float16
    with pytest.raises(UserError, match=r"set ddconfig\.branch_point z"):
        linear.train("mid", *options, "--hbranch", "mid")


def test_two_processes_start_and_stay_alike(linear):
    first, second = states(linear, "double", "adam", *TWO, *ALONE, ranks=2)
    assert first.keys() == second.keys() and first["revival.initialised"]
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(key.startswith("G.encoder.linear") for key in first)


def test_the_autoencoder_alone_has_no_volume_and_says_so(linear, tmp_path, capsys):
    run = linear.train("codec", *ALONE).path
    assert not list(run.glob("checkpoints/net_*"))
    volume, store = tmp_path / "in.tif", tmp_path / "x.codes.zarr"
    write_volume(volume, 5, shape=(5, 21, 18))
    infer.main(["encode", "--run", str(run), "--input", str(volume), "--output", str(store)])
    infer.main(["decode", "--codes", str(store), "--grid", "raw", "--output", str(tmp_path / "raw.tif")])
    slices = tifffile.imread(tmp_path / "raw.tif")
    assert slices.shape == (5, 21, 18)
    shown = opened([store])[0]
    assert shown.name == "x.codes decoded" and np.array_equal(shown.read((slice(0, 5), slice(0, 21), slice(0, 18))), slices)
    for command in (
        ["decode", "--codes", str(store), "--output", str(tmp_path / "iso.tif")],
        ["enhance", "--run", str(run), "--input", str(volume), "--output", str(tmp_path / "iso.tif")],
    ):
        with pytest.raises(UserError, match=r"trained without a volume decoder .* --init "):
            infer.main(command)
    assert not (tmp_path / "iso.tif").exists()
    infer.main(["info", str(run)])
    found = [str(word) for word in ("compress", "--run", run, "--input", volume, "--output", tmp_path / "rates")]
    evaluate.main(found)
    points = json.loads((tmp_path / "rates" / "compression.json").read_text())["points"]
    assert points[0]["codec"] == "codes" and points[0]["slices"]["psnr_db"] > 10
    with pytest.raises(SystemExit):
        evaluate.main([*found, "--truth", str(volume), "--factor", "1", "--input-position", "pick", "--overwrite"])
    assert "trained without a volume decoder" in capsys.readouterr().err


def test_the_volume_decoder_is_trained_from_it(linear):
    codec = linear.train("codec", *ALONE)
    both = linear.train("both", "--init", codec.path, "--lr", 1e-12)
    assert both.component("net_g", 2).is_file()
    before, after = parts(codec, 2), parts(both, 2)
    assert all(torch.allclose(value, after[key], atol=1e-6) for key, value in before.items())
    assert enhance(both.path, np.full((2, 16, 24), 1000, np.uint16)).shape == (16, 16, 24)


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 1)])
def test_slices_smaller_than_a_block_come_back(linear, tmp_path, shape):
    run = linear.train("codec", *ALONE).path
    values = np.random.default_rng(0).integers(800, 1200, shape).astype(np.uint16)
    store = encode(run, values, tmp_path / "x.codes.zarr")
    assert decode(store, run, grid="raw").shape == shape


def test_fewer_levels_of_a_store_are_decoded(linear, tmp_path, caplog):
    (linear.root / "tiny.yaml").write_text(LINEAR + "codebook: {levels: 3}\n")
    run = Run.load(linear.train("codec", *ALONE).path)
    values = tifffile.imread(linear.data / "train" / "x3d0" / "a.tif")[:5]
    store = encode(run, values, tmp_path / "x.codes.zarr")
    command = ["decode", "--codes", str(store.path), "--grid", "raw", "--output"]
    errors, indices = [], torch.from_numpy(store.read(whole_box(store.shape)).codes.astype(np.int64))
    for levels in (1, 2, 3):
        infer.main([*command, str(tmp_path / f"{levels}.ome.tif"), "--levels", str(levels)])
        shown = tifffile.imread(tmp_path / f"{levels}.ome.tif")
        with torch.no_grad():
            slices = run.model.reconstruct(run.model.unpack(indices[..., :levels]))[:, 0].numpy()
        np.testing.assert_allclose(shown, store.intensities[0].to_grey(slices), atol=1)
        assert open_volume(tmp_path / f"{levels}.ome.tif").attributes["levels"] == levels
        errors.append(np.square(shown - values.astype(float)).mean())
    assert errors[0] > errors[1] > errors[2]
    infer.main([*command, str(tmp_path / "all.ome.tif")])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "all.ome.tif"), shown)
    for levels in (0, 4):
        with pytest.raises(UserError, match=rf"has 3 level\(s\) of codes; --levels {levels} must lie between 1 and 3"):
            infer.main([*command, str(tmp_path / "not.ome.tif"), "--levels", str(levels)])


CODEBOOKS = {
    "plain": LINEAR,
    "levels": LINEAR + "codebook: {levels: 2}\n",
    "fewer levels": LINEAR + "codebook: {levels: 2, fewer: 0.5}\n",
    "scalars": "extends: vqlinear_fsq\nddconfig: {ch: 4, num_res_blocks: 1}\n",
}


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_effort_chooses_codes_that_decode_closer(linear, tmp_path, codebook):
    (linear.root / "tiny.yaml").write_text(CODEBOOKS[codebook])
    run = Run.load(linear.train("codec", *ALONE, "--lr", 1e-3).path)
    values = tifffile.imread(linear.data / "train" / "x3d0" / "a.tif")[:5, :45, :37]  # no multiples of 8
    tifffile.imwrite(tmp_path / "in.tif", values)
    command = ["encode", "--run", str(run.path), "--input", str(tmp_path / "in.tif"), "--dsp", "1"]
    paid, stores = [], []
    for effort in (0, 2):
        infer.main([*command, "--output", str(path := tmp_path / f"{effort}.codes.zarr"), "--effort", str(effort)])
        stores.append(CodeStore.open(path))
        counts = (1, 2) if codebook == "fewer levels" else (None,)
        shown = np.stack([decode(stores[-1], run, grid="raw", levels=count) for count in counts])
        paid.append(np.square(shown - values.astype(float)).sum(axis=(1, 2, 3)))
    assert stores[1].about["effort"] == 2 and "effort" not in stores[0].about
    assert (paid[1] < paid[0]).all()
    with pytest.raises(UserError, match="--effort -1 must be at least 0"):
        infer.main([*command, "--output", str(tmp_path / "y.codes.zarr"), "--effort", "-1"])


def test_effort_is_for_codes(linear, monkeypatch, tmp_path):
    monkeypatch.setattr(slice2volume, "FIRST_BLOCKS", 1280)
    (linear.root / "tiny.yaml").write_text(GAUSSIAN)
    run = linear.train("gaussian", "--models", "ae0iso0tccut", "--lbNCE", 0, *ALONE)
    with pytest.raises(UserError, match=r"--effort 1 is for runs with a codebook; .* has a Gaussian code"):
        encode(run.path, np.full((2, 16, 24), 1000, np.uint16), tmp_path / "x.codes.zarr", Options(effort=1))


LADDER = "extends: vqlinear_ladder\nn_embed: 16\nembed_dim: 6\nddconfig: {ch: 4, z_channels: 6, num_res_blocks: 1}\n"


def test_a_ladder_has_codes_of_16x16_pixels(linear, tmp_path, caplog):
    (linear.root / "tiny.yaml").write_text(LADDER)
    run = linear.train("ladder", *ALONE)
    values = tifffile.imread(linear.data / "train" / "x3d0" / "a.tif")
    write_tiff(tmp_path / "in.ome.tif", values, voxel_um=(4.0, 1.0, 1.0))
    store = encode(run.path, tmp_path / "in.ome.tif", tmp_path / "x.codes.zarr")
    assert store.shape == (12, 3, 3)  # of 48 x 40 pixels
    assert open_volume(store.path).voxel_um == (4.0, 16.0, 16.0)
    errors = [np.square(decode(store, grid="raw", levels=n) - values.astype(float)).mean() for n in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[0] < values.var()
    part = decode(store, grid="raw", options=Options(region=(slice(2, 3), slice(5, 41), slice(17, 40))))
    np.testing.assert_array_equal(part, decode(store, grid="raw")[2:3, 5:41, 17:40])
    caplog.set_level(logging.INFO)
    infer.main(["info", str(run.path)])
    assert "16 bit per 16x16 pixels, 0.0625 bit per pixel" in caplog.text
    with pytest.raises(UserError, match="the volume decoder reads those of 8x8"):
        linear.train("volume", "--adv", 0)
    with pytest.raises(UserError, match="cropsize=24 must be a multiple of 16"):
        linear.train("crop", *ALONE, "--cropsize", 24, "--cropz", 3, "--skipl1", 1)


def test_finite_scalars_start_linearly_too(linear, monkeypatch, tmp_path):
    (linear.root / "tiny.yaml").write_text("extends: vqlinear_fsq\nddconfig: {ch: 4, num_res_blocks: 1}\n")
    values = tifffile.imread(linear.data / "train" / "x3d0" / "a.tif").astype(float)
    trained = linear.train("trained", *ALONE, "--lr", 1e-3)
    untrained(monkeypatch)
    start = linear.train("start", *ALONE)
    errors = []
    for run in (start, trained):
        store = encode(run.path, values.astype(np.uint16), tmp_path / f"{run.path.name}.codes.zarr")
        errors.append(np.square(decode(store, grid="raw") - values).mean())
    assert errors[0] < values.var() / 3 and errors[1] < errors[0]


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLES, reason="ISOSCOPE_SAMPLES, the folder of real volumes, is unset")
@pytest.mark.parametrize(("ldmyaml", "least"), [("vqlinear", 0.5), ("vqlinear_residual", 0.2)])
def test_a_short_training_is_better_than_principal_components_and_k_means(linear, monkeypatch, tmp_path, ldmyaml, least):
    """300 steps, on slices never trained on; ``least`` decibels better than it starts."""
    monkeypatch.undo()
    (linear.data / "train" / "x3d0" / "a.tif").unlink()
    shutil.copy(Path(SAMPLES) / "fibsem_fib25_quickstart.tif", linear.data / "train" / "x3d0" / "b.tif")
    slices = tifffile.imread(Path(SAMPLES) / "fibsem_fib25_dev.tif")[8::48]
    options = ["--ldmyaml", ldmyaml, *ALONE, "--cropsize", 64, "--cropz", 8, "--no-rotate", "--preload", "--n_epochs", 1]
    options += ["--n_epochs_decay", 0, "--epoch_save", 1]
    decibels = []
    for name, steps, lr in (("start", 1, 1e-12), ("trained", 300, 8e-4)):
        run = linear.train(name, *options, "--crops_per_volume", steps, "--lr", lr)
        store = encode(run.path, slices, tmp_path / f"{name}.codes.zarr")
        error = np.square(decode(store, grid="raw").astype(float) - slices).mean()
        decibels.append(10 * np.log10(255**2 / error))
    assert decibels[1] > decibels[0] + least and decibels[0] > 27.5, decibels


def test_it_says_what_it_cannot_do(linear):
    yaml = linear.root / "tiny.yaml"
    for change, message in (
        ("{norm: group}", "start: linear is local"),
        ("{mid_attention: true}", "start: linear is local"),
        ("{z_channels: 65}", "z_channels=65 principal components of blocks of 8x8 pixels: there are 64"),
    ):
        yaml.write_text("extends: vqlinear\nddconfig: " + change)
        with pytest.raises(UserError, match=message):
            linear.train("refused", *ALONE)
    yaml.write_text(LINEAR)
    with pytest.raises(UserError, match="contrastive term"):
        linear.train("refused", "--no-nocut")
    local = "ddconfig: {norm: none, mid_attention: false}\n"
    yaml.write_text("extends: ldmaex2\nstart: linear\n" + local)
    with pytest.raises(UserError, match="no features in the middle of its encoder"):
        linear.train("refused", "--models", "ae0iso0tccut")
    yaml.write_text(LINEAR)
    for file in (linear.data / "train" / "x3d0").iterdir():
        tifffile.imwrite(file, np.full((12, 48, 40), 1000, np.uint16))
    with pytest.raises(UserError, match="1 different blocks of 8x8 pixels, fewer than n_embed=16 codes; lower n_embed"):
        linear.train("few", *ALONE)
