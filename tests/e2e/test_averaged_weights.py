"""Averaged weights: usable after a short training, shown by pictures and validation, chosen by --weights."""

import numpy as np
import pytest
import torch
from infer_commands import command, read, refused
from infer_runs import grey, make_run

from inference import Run, decode, encode, enhance
from models import IsoREF, ae0iso0tccutvqq, lateral
from tests.workspace import write_volume
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

KINDS = ("vq", "lateral", "isoref_nocyc")


def weights_of(model):
    return {f"{name}.{key}": value.clone() for name, part in model.G.items() for key, value in part.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_validation_show_the_weights_that_infer_takes(kind, workspace, monkeypatch):
    write_volume(workspace.data / "val" / "x3d0" / "c.tif", 7)
    seen = {"generated": [], "drawn": [], "validated": []}

    def spying(name, label):
        original = getattr(kinds, name)

        def spy(self, *arguments):
            seen[label].append(weights_of(self))
            return original(self, *arguments)

        monkeypatch.setattr(kinds, name, spy)

    kinds = {"vq": ae0iso0tccutvqq, "lateral": lateral, "isoref_nocyc": IsoREF}[kind].Model
    spying("validation_metrics", "validated")
    spying("generate", "generated")
    if kind == "lateral":
        spying("restore", "drawn")
    options = workspace.variant(kind)
    run = workspace.train("one", *options, "--ema", 0.9, "--n_epochs", 2, "--picture_epochs", 2, "--val_epochs", 1)
    taken = weights_of(Run.load(run.path, as_trained=True).model)
    raw = weights_of(Run.load(run.path, weights="raw", as_trained=True).model)
    assert any(not torch.equal(taken[key], raw[key]) for key in taken)
    for shown in ((seen["drawn"] or seen["generated"])[-1], seen["validated"][-1]):  # the picture comes last
        assert all(torch.equal(shown[key], taken[key]) for key in taken)
    assert any(not torch.equal(seen["generated"][0][key], taken[key]) for key in taken)  # a training goes on from raw ones


@pytest.mark.parametrize("kind", [*KINDS[:2], pytest.param(KINDS[2], marks=pytest.mark.slow)])  # 48 steps of IsoREF
def test_a_short_training_leaves_averages_that_can_be_used(kind, workspace):
    """Not grey: after few steps of a decay that remembers thousands, what they make resembles what the raw weights make."""
    options = ("--ema", 0.9999, "--n_epochs", 8, "--epoch_save", 8, "--crops_per_volume", 3)
    run = workspace.train("one", *workspace.variant(kind), *options)
    volume = open_volume(workspace.data / "train" / "x3d0" / "a.tif")[:4]
    averaged, raw = (enhance(volume, run.path, weights=kind).astype(float) for kind in ("ema", "raw"))
    assert averaged.std() > 0.5 * raw.std() > 0 and np.corrcoef(averaged.ravel(), raw.ravel())[0, 1] > 0.8


def averaged_run(folder):
    """A run of random weights with other ones as their average."""
    run = make_run(folder)
    for path in list((run / "checkpoints").glob("*.pth")):
        state = torch.load(path, weights_only=True)
        changed = {key: value * 1.5 if value.is_floating_point() else value for key, value in state.items()}
        torch.save(changed, path.with_name(path.name.replace("_model", "_ema_model")))
    return run


def test_weights_are_chosen_in_every_command_and_recorded(tmp_path):
    run, values = averaged_run(tmp_path / "D" / "P"), grey((3, 40, 48))
    write_tiff(tmp_path / "in.tif", values)
    known = {kind: Run.load(run, weights=kind) for kind in ("ema", "raw")}
    expected = {kind: enhance(values, one) for kind, one in known.items()}
    assert not np.array_equal(*expected.values())
    np.testing.assert_array_equal(enhance(values, run), expected["ema"])
    for kind, one in known.items():
        words = ("--run", run, "--input", tmp_path / "in.tif", "--weights", kind)
        command("enhance", *words, "--output", tmp_path / f"{kind}.ome.tif")
        np.testing.assert_array_equal(read(tmp_path / f"{kind}.ome.tif"), expected[kind])
        about = open_volume(tmp_path / f"{kind}.ome.tif").attributes
        assert (about["ema"], about["weights"]) == (kind == "ema", one.weight_hash)
        command("encode", *words, "--output", tmp_path / f"{kind}.codes.zarr")
        command("decode", "--codes", tmp_path / f"{kind}.codes.zarr", "--output", tmp_path / f"{kind}.ome.zarr")
        np.testing.assert_array_equal(read(tmp_path / f"{kind}.ome.zarr"), expected[kind])  # a store names its own
        store = encode(values, run, tmp_path / f"{kind}_again.codes.zarr", weights=kind)
        np.testing.assert_array_equal(decode(store), expected[kind])
    words = ("decode", "--codes", tmp_path / "raw.codes.zarr", "--output", tmp_path / "o.ome.zarr", "--weights", "ema")
    refused("was encoded with other weights", *words)


def test_weights_that_are_not_there(tmp_path):
    run = make_run(tmp_path / "D" / "P")
    with pytest.raises(UserError, match=r"--weights ema: .*P holds raw weights alone; leave --weights out"):
        Run.load(run, weights="ema")
    with pytest.raises(UserError, match="--weights best is unknown; choose ema"):
        Run.load(run, weights="best")
    assert not Run.load(run, weights="raw").ema
