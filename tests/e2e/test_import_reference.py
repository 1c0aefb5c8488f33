"""Weights of the reference become a run of ours that gives the same volumes."""

import importlib
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import import_reference
from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings
from experiment.runs import RunFolder
from models.build import build_model, load_components
from models.options import MODEL_OPTIONS
from training.trainer import initialise_from
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"cropsize": 32, "cropz": 4, "ngf": 16, "ndf": 4, "perceptual_weight": 0.0, "skipl1": 2}
GEOMETRY = ("--cropsize", "32", "--cropz", "4", "--skipl1", "2", "--perceptual_weight", "0")
GIVES_WEIGHTS = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv", "net_g", "netF", "net_gback")
LOOK_ALIKE = """
from torch import nn

class Part(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.__dict__.update({k: v for k, v in vars(module).items() if k not in ("_modules", "settings")})
        for name, child in module.named_children():
            own = type(child).__module__.startswith("torch.nn")
            self.add_module(name, child if own and not list(child.children()) else Part(child))
"""


@pytest.fixture
def disguise(tmp_path, monkeypatch):
    """Turns a module of ours into one whose classes are gone when its file is read."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "vanished_networks.py").write_text(LOOK_ALIKE)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("vanished_networks").Part
    sys.modules.pop("vanished_networks", None)


def forget(tmp_path):
    shutil.rmtree(tmp_path / "modules")
    del sys.modules["vanished_networks"]
    importlib.invalidate_caches()


def small_model(name, ch=32, **overrides):
    settings = default_settings(MODEL_OPTIONS, name, **{**SMALL, **overrides})
    autoencoder = None
    if "ldmyaml" in settings:
        autoencoder = read_autoencoder_yaml(ROOT, settings["ldmyaml"])
        autoencoder["ddconfig"]["ch"] = ch
        autoencoder["loss"]["disc_ndf"] = 4
        if "n_embed" in autoencoder:
            autoencoder["n_embed"] = 24
        autoencoder = configure_autoencoder(autoencoder, settings)
    torch.manual_seed(4)
    model = build_model({**settings, "autoencoder": autoencoder})
    for key, buffer in model.named_buffers():  # running statistics that are not those of a fresh model
        if buffer.is_floating_point() and "running" in key:
            buffer.uniform_(0.5, 1.5)
    return model


def volumes(model, side=16):
    with model.evaluating():
        generator = torch.Generator().manual_seed(1)
        out = model.generate({"img": [torch.rand(1, 1, side, side, 2, generator=generator) * 2 - 1]})
    return [out.volume, out.recon] if hasattr(out, "recon") else [out.volume, model.G["net_gback"](out.volume)]


def extra(name, nf):
    """The parts of the reference's generator that ours has not."""
    parts = nn.ModuleDict({"conv7_g": nn.Sequential(nn.Sequential(nn.Conv3d(nf, 1, 3)))})
    if name == "ed023e":
        parts["down0"] = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, nf, 3)), nn.Sequential(nn.Conv2d(nf, nf, 3), nn.BatchNorm2d(nf))
        )
    return parts


def imported(folder, run, *more):
    import_reference.main(["--from", str(folder), "--epoch", "7", "--run", str(run), *more])
    report = json.loads((run / "import.json").read_text())
    return report, {part["name"]: part for part in report["components"]}


def loaded(run):
    model = build_model(RunFolder(run).stored_settings(MODEL_OPTIONS))
    assert load_components(model, RunFolder(run)) == 7
    return model


def assert_same(ours, imported):
    for one, other in zip(ours, imported, strict=True):
        assert torch.equal(one, other)


def test_whole_modules_of_a_vq_model(tmp_path, disguise, caplog):
    model, reference = small_model("ae0iso0tccutvqq"), tmp_path / "reference"
    reference.mkdir()
    for name in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv", "net_g"):
        module = disguise(model.G[name])
        if name == "net_g":
            for part, value in extra("ed023e", 16).items():
                module.add_module(part, value)
            module.encoder = nn.Sequential(module.down0)
            module.decoder = nn.Sequential(module.up3, module.conv5, module.up2, module.conv6, module.up1)
        torch.save(module, reference / f"{name}_model_epoch_7.pth")
    expected = volumes(model)
    forget(tmp_path)
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    wrong = tmp_path / "wrong.yaml"  # the weights win
    wrong.write_text("extends: vqlocal\ncodebook: {levels: 2}")
    report, parts = imported(reference, run, *GEOMETRY, "--ldmyaml", str(wrong))

    assert_same(expected, volumes(loaded(run)))
    settings = RunFolder(run).stored_settings(MODEL_OPTIONS)
    assert (settings["models"], settings["ngf"], settings["norm"], settings["mc"]) == ("ae0iso0tccutvqq", 16, "batch", True)
    assert settings["autoencoder"]["n_embed"] == 24 and settings["autoencoder"]["ddconfig"]["ch"] == 32
    assert settings["autoencoder"]["codebook"]["levels"] == 1 and settings["autoencoder"]["ddconfig"]["norm"] == "group"
    dropped = parts["net_g"]["dropped"]
    assert {key.split(".")[0] for key in dropped} == {"conv7_g", "down0", "encoder", "decoder"}
    assert dropped["conv7_g.0.0.weight"].startswith("second output")
    assert dropped["down0.1.1.running_mean"].startswith("encoding half")
    assert dropped["decoder.0.0.weight"] == "second name of up3.0.weight"
    assert set(parts["net_g"]["used"]) == set(model.G["net_g"].state_dict()) and not parts["net_g"]["missing"]
    assert parts["net_d"]["file"] is None and len(parts["net_d"]["missing"]) == 10
    shown = caplog.text
    assert re.search(r"the autoencoder: n_embed 24, .*\bch 32, ch_mult \[1, 2, 2, 4\]", shown)
    assert "net_d: no file, starts with fresh weights (10 keys)" in shown
    assert "dropped (second output, never used and never trained): conv7_g (2)" in shown
    assert "not known: infer.py will ask for --normalise" in shown and not (run / "dataset.json").exists()
    assert sorted(path.name for path in run.iterdir()) == ["0.json", "ae0iso0tccutvqq.py", "checkpoints", "import.json"]
    assert report["epoch"] == 7 and "neither the weights nor you say these" in shown


def split(weights, folder, whole_loss=False):
    """A full state dict of the reference → component files."""
    folder.mkdir()
    files = {}
    for key, value in weights.items():
        name, rest = key.split(".", 1)
        if name == "loss" and not whole_loss:
            name, rest = "discriminator", rest.removeprefix("discriminator.")
        files.setdefault(name, {})[rest] = torch.from_numpy(np.array(value))
    for name, state in files.items():
        torch.save(state, folder / f"{name}_model_epoch_7.pth")
    return folder


@pytest.mark.parametrize("whole_loss", [False, True])
def test_the_reference_s_own_keys(golden, tmp_path, whole_loss):
    fixture = golden("e2e_vq_base")
    weights = fixture.weights()
    if whole_loss:
        weights |= {"loss.logvar": np.zeros(()), "loss.perceptual_loss.net.slice1.0.weight": np.ones((2, 2))}
    run = tmp_path / "run"
    _, parts = imported(split(weights, tmp_path / "reference", whole_loss), run, *GEOMETRY)
    assert not [part for part in parts.values() if part["missing"]]
    assert len(parts["discriminator"]["dropped"]) == (2 if whole_loss else 0)
    assert all("unknown" not in reason for part in parts.values() for reason in part["dropped"].values())
    assert RunFolder(run).stored_settings(MODEL_OPTIONS)["autoencoder"]["loss"]["disc_ndf"] == 8
    model = loaded(run)
    assert torch.equal(model.D["discriminator"].main[0].bias, torch.from_numpy(weights["loss.discriminator.main.0.bias"]))
    if whole_loss:
        return
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    out = model.generate({"img": [torch.from_numpy(fixture["oriX"])]})
    np.testing.assert_array_equal(out.code.indices.flatten(), fixture["indices"])
    np.testing.assert_allclose(out.volume.detach(), fixture["XupX"], atol=1e-5)
    np.testing.assert_allclose(out.recon.detach(), fixture["reconstructions"], atol=1e-5)


def saved_states(model, folder, skip=()):
    folder.mkdir()
    for name, component in model.components().items():
        if name not in skip:
            torch.save(component.state_dict(), folder / f"{name}_model_epoch_7.pth")
    return folder


def test_fine_tuning_and_a_two_channel_kl_model(tmp_path):
    channels = {"tc": True, "input_nc": 2, "output_nc": 2, "direction": "a_b", "cropsize": 64, "cropz": 8}
    model = small_model(
        "ae0iso0tccut", hbranch="z", nocut=False, use_mlp=True, c_mlp=12, netD="patch_8", norm="group", **channels
    )
    reference = saved_states(model, tmp_path / "reference")
    more = ("--use_mlp", "--hbranch", "z", "--direction", "a_b", "--nm", "00")
    _, parts = imported(reference, tmp_path / "run", *GEOMETRY, *more, "--cropsize", "64", "--cropz", "8")
    settings = RunFolder(tmp_path / "run").stored_settings(MODEL_OPTIONS)
    found = {key: settings[key] for key in ("models", "tc", "output_nc", "nocut", "c_mlp", "netD", "ndf", "norm")}
    assert found == {"models": "ae0iso0tccut", "nocut": False, "c_mlp": 12, "netD": "patch_8", "ndf": 4, "norm": "group"} | {
        "tc": True,
        "output_nc": 2,
    }
    assert len(parts["netF"]["used"]) == 16
    record = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert record["nm"] == "00" and record["directions"]["b"]["pooled"] == {"low": -1.0, "high": 1.0}
    fresh = small_model(
        "ae0iso0tccut", hbranch="z", nocut=False, use_mlp=True, c_mlp=12, netD="patch_8", norm="group", **channels
    )
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    assert initialise_from(fresh, "run@7", tmp_path) == 7
    assert fresh.weights_loaded
    for name, component in model.components().items():
        for key, value in component.state_dict().items():
            assert torch.equal(value, fresh.components()[name].state_dict()[key]), (name, key)


def test_isoref_as_whole_modules(tmp_path, disguise):
    overrides = {"cropz": 32, "ngf": 2, "gdim": "3d_1d", "norm": "none", "mc": False, "nocut": False, "lbNCE": 1.0}
    model = small_model_isoref(**overrides)
    reference = tmp_path / "reference"
    reference.mkdir()
    for name in ("net_g", "net_gback", "net_dzx"):
        module = disguise(model.components()[name])
        module.add_module("conv7_g", nn.Sequential(nn.Conv3d(4, 1, 3)))
        torch.save({"net_dzx": model.D["net_dzx"].state_dict()}.get(name, module), reference / f"{name}_model_epoch_7.pth")
    perceptrons = {f"mlp_{i}.{j}.{kind}": torch.ones(3) for i in range(4) for j in (0, 2) for kind in ("weight", "bias")}
    torch.save(perceptrons, reference / "netF_model_epoch_7.pth")
    expected = volumes(model, 32)
    forget(tmp_path)
    _, parts = imported(reference, tmp_path / "run", "--cropsize", "32", "--cropz", "16", "--netD", "patch_16", "--ndf", "4")
    settings = RunFolder(tmp_path / "run").stored_settings(MODEL_OPTIONS)
    found = {key: settings[key] for key in ("models", "gdim", "norm", "mc", "nocyc", "nocut", "ngf")}
    assert found == {"models": "IsoREF", "gdim": "3d_1d", "norm": "none", "mc": False, "nocyc": False, "nocut": False, "ngf": 2}
    assert_same(expected, volumes(loaded(tmp_path / "run"), 32))
    assert len(parts["netF"]["dropped"]) == 16 and "use_mlp" in parts["netF"]["dropped"]["mlp_0.0.weight"]
    assert [name for name, part in parts.items() if part["file"] is None] == ["net_d", "net_dzy"]


def small_model_isoref(**overrides):
    settings = default_settings(MODEL_OPTIONS, "IsoREF", cropsize=32, ndf=4, **overrides)
    torch.manual_seed(4)
    return build_model({**settings, "autoencoder": None})


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """State dicts of a small VQ model, without discriminators."""
    return saved_states(small_model("ae0iso0tccutvqq"), tmp_path_factory.mktemp("import") / "ref", ("net_d", "discriminator"))


@pytest.fixture
def reference(states, tmp_path):
    return Path(shutil.copytree(states, tmp_path / "reference"))


def change(folder, name, changed):
    path = folder / f"{name}_model_epoch_7.pth"
    state = torch.load(path, weights_only=True)
    changed(state)
    torch.save(state, path)


def test_weights_that_do_not_fit(reference, tmp_path):
    def wrong(state):
        state["mid.block_1.conv1.weight"] = torch.ones(3, 3)
        del state["norm_out.bias"]

    change(reference, "encoder", wrong)
    shapes = r"mid\.block_1\.conv1\.weight has the shape \(3, 3\) instead of \(128, 128, 3, 3\)"
    problems = rf"encoder_model_epoch_7\.pth .*{shapes}; norm_out\.bias is missing"
    with pytest.raises(UserError, match=problems):
        imported(reference, tmp_path / "run", *GEOMETRY)
    assert not list(tmp_path.glob("run*"))


def test_a_contradicting_alias(reference, tmp_path):
    change(reference, "net_g", lambda state: state.update({"decoder.4.0.bias": state["up1.0.bias"] + 1}))
    with pytest.raises(UserError, match=r"decoder\.4\.0\.bias must equal up1\.0\.bias"):
        imported(reference, tmp_path / "run", *GEOMETRY)


def test_aliases_alone_wrappers_and_unknown_keys(reference, tmp_path):
    def rename(state):
        stages = ("up3", "conv5", "up2", "conv6", "up1")
        for key in list(state):
            stage, rest = key.split(".", 1)
            value = state.pop(key)
            if not key.endswith("num_batches_tracked"):
                state[f"module.decoder.{stages.index(stage)}.{rest}" if stage in stages else f"module.{key}"] = value.double()
        state["module.mystery"] = torch.ones(1)

    before = torch.load(reference / "net_g_model_epoch_7.pth", weights_only=True)
    change(reference, "net_g", rename)
    _, parts = imported(reference, tmp_path / "run", *GEOMETRY)
    after = torch.load(tmp_path / "run" / "checkpoints" / "net_g_model_epoch_7.pth", weights_only=True)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert parts["net_g"]["dropped"]["mystery"].startswith("unknown")
    assert all(key.endswith("num_batches_tracked") for key in parts["net_g"]["missing"]) and parts["net_g"]["missing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "8"], r"no files .*_8\.pth; it has the epochs 7"),
        (["--from", "nowhere"], "nowhere is not a folder"),
        (["--models", "ae0iso0tccut"], "does not fit the files, which are those of ae0iso0tccutvqq"),
        (["--prj", "x"], "--run names the run"),
        (["--cropz", "5"], "not a cube"),
        (["--cropzz", "5"], "--cropz"),
    ],
)
def test_mistakes_on_the_command_line(reference, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        imported(reference, tmp_path / "run", *GEOMETRY, *arguments)
    assert not list(tmp_path.glob("run*"))


def test_an_existing_run_is_left_alone(reference, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already and is left alone"):
        imported(reference, tmp_path / "run", *GEOMETRY)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_missing_component_and_another_folder(reference, tmp_path):
    (reference / "post_quant_conv_model_epoch_7.pth").unlink()
    with pytest.raises(UserError, match="no file of the component 'post_quant_conv'"):
        imported(reference, tmp_path / "run", *GEOMETRY)
    (reference / "quantize_model_epoch_7.pth").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"quantize_model_epoch_7\.pth cannot be read"):
        imported(reference, tmp_path / "run", *GEOMETRY)


def test_a_norm_that_leaves_no_weights(tmp_path):
    model = small_model("ae0iso0tccutvqq", norm="instance")
    reference = saved_states(model, tmp_path / "reference")
    with pytest.raises(UserError, match="give --norm instance or --norm none"):
        imported(reference, tmp_path / "run", *GEOMETRY)
    imported(reference, tmp_path / "run", *GEOMETRY, "--norm", "instance")
    assert RunFolder(tmp_path / "run").stored_settings(MODEL_OPTIONS)["norm"] == "instance"


def test_a_run_by_name_under_its_experiment(reference, tmp_path, caplog):
    experiment = {"dataset": "mine", "ngf": 32, "cropsize": 32, "cropz": 4, "skipl1": 2, "perceptual_weight": 0, "nm": "11"}
    (tmp_path / "mine.json").write_text(json.dumps({"train": experiment}))
    caplog.set_level(logging.INFO)
    named = ["--jsn", str(tmp_path / "mine.json"), "--logs", str(tmp_path / "logs"), "--run", "old/first"]
    import_reference.main(["--from", str(reference), "--epoch", "7", *named])
    run = tmp_path / "logs" / "mine" / "old" / "first"
    settings = RunFolder(run).stored_settings(MODEL_OPTIONS)
    assert (settings["dataset"], settings["prj"], settings["ngf"], settings["nm"]) == ("mine", "old/first", 16, "11")
    assert settings["given"]["cropz"].endswith("mine.json") and settings["given"]["logs"] == "command line"
    assert re.search(r"ngf is 16 by the weights, which win over 32 from \S*mine\.json", caplog.text)
    assert not (run / "dataset.json").exists()
