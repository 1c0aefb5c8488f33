"""Trainings on two folders: two channels (tc), and paired translation (a_b)."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.build import build_model
from models.options import MODEL_OPTIONS
from tests.workspace import write_volume

TWO_CHANNELS = ("--tc", "--direction", "x3d0_x3d1")


@pytest.fixture
def two_folders(workspace):
    for number, name in enumerate(("a.tif", "b.tif")):
        write_volume(workspace.data / "train" / "x3d1" / name, 10 + number, dtype=np.uint8)
        for direction in ("x3d0", "x3d1"):
            write_volume(workspace.data / "val" / direction / name, 20 + number)
    workspace.settings(n_epochs=1, epoch_save=1, crops_per_volume=1, adv_planes=4)
    return workspace


def test_two_channels_train_to_the_end(two_folders, caplog):
    caplog.set_level("INFO")
    run = two_folders.train("one", *TWO_CHANNELS)
    given = " ".join(str(two_folders.data / "val" / name / "a.tif") for name in ("x3d0", "x3d1"))
    assert f"--input {given} --output" in caplog.text, "both channels are named"
    assert f"--input {given.split()[0]} --channel 0 --output" in caplog.text
    assert run.epochs() == [1] and run.best.is_file()
    assert torch.load(run.component("encoder", 1), weights_only=True)["conv_in.weight"].shape[1] == 2
    with Image.open(run.pictures / "epoch_000001.png") as picture:
        pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    assert np.ptp(pixels, axis=1).max() > 100, "the two channels are a coloured composite"


def test_what_comes_next_with_volumes_that_were_prepared(two_folders, tmp_path, caplog):
    """Where their raw files are gone, they are named as what they are: their grey values are not those of raw files."""
    caplog.set_level("INFO")
    made = {name: {"settings": {}, "sources": [{"path": str(tmp_path / "gone.tif")}]} for name in ("x3d0", "x3d1")}
    (two_folders.data / "dataset.json").write_text(json.dumps({"version": 1, "directions": made}))
    two_folders.train("one", *TWO_CHANNELS)
    assert caplog.text.count("--prepared --output") == 2, "enhance and encode"


def test_translation_encodes_a_and_agrees_with_b(two_folders):
    run = two_folders.train("one", "--direction", "x3d0_x3d1")
    assert run.epochs() == [1]
    assert torch.load(run.component("encoder", 1), weights_only=True)["conv_in.weight"].shape[1] == 1


def test_what_comes_from_which_folder(two_folders):
    """Codes and reconstruction follow folder a; the projected L1 and the real planes follow folder b."""
    run = two_folders.train("one", "--direction", "x3d0_x3d1", "--no-rotate")
    # in training mode: in evaluation only the last bit of the volume follows its codes
    model = build_model(run.stored_settings(MODEL_OPTIONS))
    a, b, other = (torch.rand(2, 1, 32, 32, 4) * 2 - 1 for _ in range(3))
    with torch.no_grad():
        terms = {}
        for name, images in {"ab": [a, b], "ao": [a, other], "ob": [other, b]}.items():
            torch.manual_seed(0)
            out = model.generate({"img": images})
            terms[name] = model.generator_losses(out) | model.discriminator_losses(out)
    changed = {name: {k for k in terms["ab"] if not torch.equal(terms["ab"][k], terms[name][k])} for name in ("ao", "ob")}
    assert changed["ao"] == {"projection", "views_real"}
    assert changed["ob"] == {"projection", "recon", "code", "views", "views_fake"}
