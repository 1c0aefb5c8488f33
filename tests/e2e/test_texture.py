"""Texture through the commands: it takes a lateral run's network, learns grain, is applied in any tiles."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from infer_commands import command, read
from infer_runs import grey, make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference import Options, Run, enhance
from inference.uncertainty import Turned
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import ArrayVolume

SHAPE = "--crops_per_volume 2 --cropsize 32 --cropz 4 --uprate 4 --nm 11 --ngf 4 --blocks 1 --fine_width 6".split()
TEXTURE = "--crops_per_volume 2 --cropsize 32 --cropz 4 --models texture --grain_width 4".split()  # the rest is the teacher's
SMALL = {"cropsize": 64, "cropz": 2, "blocks": 1, "grain_width": 4, "init": "RUN"}


def enhanced(folder, name, *options):
    """The values of folder/NAME.tif, made of folder/in.tif by the run in folder/D/P."""
    places = ["--run", folder / "D" / "P", "--input", folder / "in.tif", "--output", folder / f"{name}.tif", "--device", "cpu"]
    command("enhance", *places, *options)
    return read(folder / f"{name}.tif")


@pytest.fixture
def lateral(workspace):
    """A finished lateral run whose network does something."""
    run = workspace.train("lateral", "--models", "lateral", *SHAPE)
    weights = torch.load(run.component("net_g", 2), weights_only=True)
    weights["last.weight"].normal_(0, 0.05)
    for ema in (False, True):
        torch.save(weights, run.component("net_g", 2, ema=ema))
    run.manifest.path.unlink()
    return run


def test_the_run_alone_is_applied_and_resumed(workspace, lateral):
    """The lateral run may go once the training has begun; without texture the volume is the lateral run's."""
    raw = ArrayVolume(grey((5, 24, 24)) + np.uint16(500))
    start = enhance(lateral.path, raw)
    run = workspace.train("texture", *TEXTURE, "--teacher", lateral.path, "--lr", 0.01)
    taken = torch.load(run.component("net_t", 2, ema=True), weights_only=True)
    given = torch.load(lateral.component("net_g", 2, ema=True), weights_only=True)
    assert all(torch.equal(taken[key], given[key]) for key in given)
    shutil.rmtree(lateral.path)
    assert np.array_equal(enhance(run.path, raw), start)
    before = enhance(run.path, raw, Options(texture=1.0))
    assert before.shape == (20, 24, 24)
    assert not np.array_equal(before, start)
    assert np.array_equal(enhance(run.path, raw, Options(texture=1.0)), before)  # noise belongs to places
    workspace.train("texture", "--resume", "--n_epochs", 3)
    assert run.epochs() == [2, 3]
    assert not np.array_equal(enhance(run.path, raw, Options(texture=1.0)), before)
    again = workspace.train("again", *SHAPE, *TEXTURE, "--init", run.path)
    assert np.array_equal(enhance(again.path, raw), start)


def test_it_learns_the_power_of_slices(workspace, lateral):
    """From the lateral run's smooth volume: 40 steps take most of what its planes lack, without stripes."""
    for split in ("train", "val"):
        (workspace.data / split / "x3d0").mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(("a.tif", "b.tif")):
            tifffile.imwrite(workspace.data / split / "x3d0" / name, grey((16, 48, 48), number + 5 * (split == "val"), high=900))
    options = "--n_epochs 2 --crops_per_volume 10 --picture_epochs 9 --lr 0.01 --ema 0 --grain_width 8".split()
    workspace.train("texture", *TEXTURE, "--teacher", lateral.path, *options)
    events = EventAccumulator(str(workspace.run("texture").logs)).Reload()
    power, start = (events.Scalars(f"validation/{name}")[-1].value for name in ("power", "start_power"))
    assert power < 0.25 * start


@pytest.mark.parametrize("values", [{"uprate": 8.0}, {"uprate": 300 / 65}, {"uprate": 1.0, "axial_sigma": 1.0, "cropz": 12}])
@pytest.mark.parametrize("channels", [1, 2])
def test_tiles_regions_and_batches_are_the_whole(tmp_path, values, channels):
    two = {"tc": True, "direction": "x3d0_x3d1", "input_nc": 2, "output_nc": 2} if channels == 2 else {}
    run = Run.load(make_run(tmp_path / "D" / "P", "texture", **SMALL | values, **two))
    given = [ArrayVolume(grey((4, 38, 43), seed)) for seed in range(channels)]
    whole = enhance(run, given, Options(tile=128, texture=0.5))
    assert whole.shape[-3:] == (4 * int(np.ceil(values["uprate"])), 38, 43)
    tiled = enhance(run, given, Options(tile=16, batch=2, texture=0.5))
    assert np.abs(tiled.astype(int) - whole).max() <= 1  # the grey values of one rounding
    region = (slice(3, 4), slice(10, 30), slice(20, 43))
    part = enhance(run, given, Options(tile=16, batch=2, texture=0.5, region=region))
    assert np.array_equal(part, tiled[(..., *region)])


@pytest.mark.parametrize("turn", [0, 3, 4, 6])
def test_grain_of_a_turned_volume_has_no_seams_either(tmp_path, turn):
    run = Run.load(make_run(tmp_path / "D" / "P", "texture", **SMALL, uprate=4.0))
    raw = ArrayVolume(grey((4, 38, 43)))
    one = replace(run, model=Turned(run.model, turn))
    whole, tiled, straight = (
        enhance(which, raw, Options(tile=tile, texture=1.0)).astype(int) for which, tile in ((one, 128), (one, 16), (run, 128))
    )
    assert np.abs(tiled - whole).max() <= 1
    assert (np.abs(straight - whole).max() > 10) == (turn > 0)  # the noise of another orientation is other noise


def test_texture_by_command_and_what_was_invented(tmp_path):
    make_run(tmp_path / "D" / "P", "texture", **SMALL, uprate=4.0)
    tifffile.imwrite(tmp_path / "in.tif", grey((5, 40, 40)))
    single = "--dtype", "float32"
    none, full = enhanced(tmp_path, "none", *single), enhanced(tmp_path, "full", "--texture", 1, *single)
    some = enhanced(tmp_path, "some", "--texture", 0.4, "--invented", *single)
    assert np.abs(full - none).max() > 10
    inside = (none > 0) & (none < 1000) & (full > 0) & (full < 1000)  # the training's range, where nothing is clipped
    np.testing.assert_allclose(some[inside], (0.6 * none + 0.4 * full)[inside], atol=1e-2)
    np.testing.assert_allclose(read(tmp_path / "some_invented.tif"), some - none, atol=1e-2)
    about = open_volume(tmp_path / "some_invented.tif").attributes
    assert about["texture"] == 0.4 and "invented" in about["shows"]
    assert open_volume(tmp_path / "none.tif").attributes["texture"] == 0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("", "--teacher RUN"),
        ("--teacher {lateral} --uprate 2", "give --uprate 4"),
        ("--teacher {lateral} --axial_sampling mean", "give --axial_sampling pick"),
        ("--teacher {lateral} --blocks 2", "give --blocks 1"),
        ("--teacher {lateral} --nm 01", "nm=11"),
        ("--teacher {lateral} --cropsize 48 --cropz 12", "smaller in-plane than cropsize=48"),
        ("--teacher nowhere", "neither nowhere nor"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(workspace, lateral, options, rule):
    with pytest.raises(UserError, match=rule):
        workspace.train("texture", *TEXTURE, *options.format(lateral=lateral.path).split())
    assert not workspace.run("texture").path.exists()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--texture", "1.5"], "between 0"),
        (["--texture", "0.5"], "not trained for texture"),
        (["--invented"], "give --texture"),
    ],
)
def test_texture_that_there_is_not_is_refused(tmp_path, options, rule):
    make_run(tmp_path / "D" / "P", "lateral", cropsize=64, cropz=2, blocks=1, uprate=4.0)
    tifffile.imwrite(tmp_path / "in.tif", grey((5, 40, 40)))
    with pytest.raises(UserError, match=rule):
        enhanced(tmp_path, "out", *options)
    assert not (tmp_path / "out.tif").exists()


def test_runs_of_earlier_versions_are_applied_and_none_is_trained(workspace, tmp_path):
    """Fused ones: without texture they show their lateral run's volume, and tiles are the whole."""
    with pytest.raises(UserError, match="--models texture --teacher RUN"):
        workspace.train("fused", *SHAPE, "--models", "fused")
    assert not workspace.run("fused").path.exists()
    small = {"cropsize": 64, "cropz": 2, "blocks": 1, "fuse_blocks": 1, "fuse_width": 8, "init": "RUN", "uprate": 8.0}
    run = Run.load(make_run(tmp_path / "D" / "P", "fused", **small, adv=0.1))
    raw = ArrayVolume(grey((4, 38, 43)))
    none, whole = (enhance(run, raw, Options(tile=128, texture=share)) for share in (0.0, 1.0))
    assert np.abs(whole.astype(int) - none).max() > 10
    tiled = enhance(run, raw, Options(tile=16, batch=2, texture=1.0))
    assert np.abs(tiled.astype(int) - whole).max() <= 1
