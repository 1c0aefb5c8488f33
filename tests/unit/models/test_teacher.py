"""The lateral teacher of another model: what fits, where its planes lie, and that it only shapes the loss."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings
from inference import Run, enhance
from models.build import build_model
from models.options import MODEL_OPTIONS
from models.teacher import Teacher
from networks.views import to_slices
from tests.e2e.infer_runs import ROOT, make_run
from utils.checksums import sha256
from utils.errors import UserError


def lateral(folder, **changes):
    return make_run(
        folder / "lateral", "lateral", **{"cropsize": 64, "cropz": 2, "uprate": 8.0, "ngf": 8, "blocks": 1, **changes}
    )


def interpolating(folder, **changes):
    """A teacher's run that does what it does before its first step: cubic interpolation."""
    path = lateral(folder, **changes)
    weights = path / "checkpoints" / "net_g_model_epoch_3.pth"
    state = torch.load(weights, weights_only=True)
    torch.save({key: value.zero_() if key.startswith("last.") else value for key, value in state.items()}, weights)
    return path


def guided(model="ae0iso0tccutvqq", **changes):
    asked = {"cropsize": 64, "cropz": 8, "l1how": "dsp", "ngf": 4, "ndf": 4, "adv": 0.0, "skipl1": 1, "perceptual_weight": 0.0}
    known = {option.name for option in MODEL_OPTIONS[model]} | {"cropsize", "cropz"}
    asked |= {"nocyc": True} if model == "IsoREF" else {}
    asked = {key: value for key, value in asked.items() if key in known} | changes
    settings = default_settings(MODEL_OPTIONS, model, **asked)
    if "ldmyaml" not in settings:
        return {**settings, "autoencoder": None}
    autoencoder = read_autoencoder_yaml(ROOT, settings["ldmyaml"])
    autoencoder["ddconfig"]["ch"], autoencoder["loss"]["disc_ndf"] = 8, 4
    return {**settings, "autoencoder": configure_autoencoder(autoencoder, settings)}


@pytest.mark.parametrize(
    ("run", "training", "words"),
    [
        ({"uprate": 4.0}, {}, ("4 planes of a section", "8", "--uprate 8")),
        ({}, {"cropz": 64, "dsp": 8, "usp": 4.0, "downbranch": 1, "cropsize": 256}, ("8 planes", "32", "--uprate 32")),
        ({"axial_sampling": "mean"}, {}, ("the mean of its planes", "l1how=dsp", "--l1how mean", "--axial_sampling pick")),
        ({}, {"l1how": "max"}, ("the pick of its planes", "l1how=max", "give --l1how dsp")),
        ({"tc": True, "input_nc": 2, "output_nc": 2, "direction": "a_b"}, {}, ("2 channel", "this training 1")),
        ({}, {"cropz": 16, "usp": 0.5}, ("whole sections", "usp=0.5")),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, run, training, words):
    with pytest.raises(UserError) as refused:
        Teacher(lateral(tmp_path, **run), guided(**training))
    assert all(word in str(refused.value) for word in words)


def test_what_is_no_lateral_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Teacher(tmp_path / "nowhere", guided())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a training's folder"):
        Teacher(tmp_path / "empty", guided())
    with pytest.raises(UserError, match="ae0iso0tccutvqq; a teacher is a run of the lateral model"):
        Teacher(make_run(tmp_path / "codes"), guided())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"directions": {"other": {}}}, None),  # the same data under another name
        ({"nm": "01"}, "nm=11, this training has 01"),
        ({"nm_clip": [1.0, 99.0]}, "nm_clip=None, this training has"),
        ({"dataset": {"directions": {"x3d0": {"transform": {"normalisation": "01", "low": 3}}}}}, "transform of prepare.py"),
    ],
)
def test_other_grey_values_are_refused(tmp_path, change, words):
    path = lateral(tmp_path)
    teacher, record = Teacher(path, guided()), json.loads((path / "dataset.json").read_text())
    if words is None:
        return teacher.check_intensities(record | change)
    with pytest.raises(UserError, match=words):
        teacher.check_intensities(record | change)


@pytest.mark.parametrize("sampling", ["pick", "mean"])
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("ae0iso0tccutvqq", {}),
        ("ae0iso0tccutvqq", {"cropz": 16, "downbranch": 2}),
        ("ae0iso0tccutvqq", {"cropz": 64, "dsp": 8, "usp": 4.0, "downbranch": 4}),
        ("ae0iso0tccutvqq", {"cropz": 8, "usp": 8.0, "downbranch": 8}),
        ("IsoREF", {}),
        ("IsoREF", {"cropsize": 72}),
        ("IsoREF", {"usp": 2.0}),
    ],
)
def test_its_planes_lie_where_those_of_the_model_do(tmp_path, model, changes, sampling):
    """On a ramp, which interpolation gives back as it is, every plane has the value of its place."""
    settings = guided(model, l1how={"pick": "dsp", "mean": "mean"}[sampling], **changes)
    n = int(settings["cropz"] * settings["usp"] / settings["dsp"])
    planes, size = settings["cropsize"] // n, settings["cropsize"]
    uprate = float(planes * settings["usp"])
    teacher = Teacher(interpolating(tmp_path, uprate=uprate, axial_sampling=sampling), settings)
    sections = size // round(uprate)
    of_slice = ((torch.arange(n) + 0.5) / settings["usp"] - 0.5).clamp(0, sections - 1)  # as the data set interpolates
    slices = (of_slice / 10).expand(1, 1, 16, 16, n)
    made = teacher(to_slices(slices), 1)
    assert made.shape == (1, 1, 16, 16, size)
    middle = planes // 2 if sampling == "pick" and model != "IsoREF" else (planes - 1) / 2
    place = (torch.arange(size) - middle) / planes  # in slices
    expected = ((place + 0.5) / settings["usp"] - 0.5) / 10  # in sections
    inner = slice(2 * round(uprate), -2 * round(uprate))
    torch.testing.assert_close(made[0, 0, 3, 5, inner], expected[inner], atol=2e-6, rtol=0)


def test_it_shows_the_volume_that_enhance_makes_with_its_run(tmp_path):
    path, slices = lateral(tmp_path), torch.rand(2 * 8, 1, 32, 48) * 2 - 1
    teacher = Teacher(path, guided())
    one, other = teacher.views(slices, 2)
    assert one.shape == (2, 1, 32, 48, 64) and not torch.allclose(one, other)
    made, run = teacher(slices, 2), Run.load(path)
    assert torch.equal(made, run.model.restore(slices, 2)) and not torch.allclose(made, (one + other) / 2, atol=1e-3)
    grey = (slices[:8, 0].mT.numpy() + 1) * 500  # (Z, Y, X); the run's range is 0 to 1000
    shown = (teacher(slices[:8], 1)[0, 0].permute(2, 1, 0).numpy() + 1) * 500
    np.testing.assert_allclose(enhance(run, grey), shown.clip(0, 1000), atol=0.01)
    swapped, _ = teacher.views(slices.mT, 2)
    torch.testing.assert_close(swapped.movedim(3, 2), other)


@pytest.mark.parametrize("sampling", ["pick", "mean"])
def test_some_planes_are_compared_with_what_each_view_makes_of_them(tmp_path, sampling):
    """IsoREF's planes lie half a plane beside those of a teacher that picks."""
    settings = guided("IsoREF", l1how={"pick": "dsp", "mean": "mean"}[sampling])
    teacher = Teacher(lateral(tmp_path, axial_sampling=sampling), settings)
    slices = torch.rand(2 * 8, 1, 32, 40) * 2 - 1
    views = teacher.views(slices, 2)
    volume = (views[0] + views[1]) / 2
    torch.manual_seed(3)
    found = teacher.error(volume, slices, 5)
    torch.manual_seed(3)
    columns, rows = torch.randperm(40)[:5], torch.randperm(32)[:5]
    expected = [F.l1_loss(volume[:, :, :, columns], views[0][:, :, :, columns])]
    expected += [F.l1_loss(volume[:, :, rows], views[1][:, :, rows])]
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2)
    whole = teacher(slices, 2)
    assert found > 1e-3 and teacher.error(whole, slices) < 1e-6 and teacher.error(whole, slices, 32) < 1e-6


@pytest.mark.parametrize("model", [name for name in MODEL_OPTIONS if name not in ("lateral", "texture", "fused")])
def test_it_guides_the_volume_and_nothing_else(tmp_path, model):
    path = lateral(tmp_path)
    kind = {"hbranch": "z"} if model == "ae0iso0tccut" else {}
    kind |= {"cropsize": 104, "cropz": 13} if model.endswith("ssim") else {}
    settings = guided(model, teacher=str(path), lbteach=7.0, lamb=0.0, **kind)
    built, plain = build_model(settings), build_model(guided(model, **kind))
    assert plain.teacher is None and not plain.wants("teacher")
    assert built.state_dict().keys() == plain.state_dict().keys()
    assert {id(p) for p in built.teacher.network.parameters()}.isdisjoint(map(id, built.parameters()))
    built.draw_swap = lambda: False
    out = built.generate({"img": [torch.rand(2, 1, settings["cropsize"], settings["cropsize"], settings["cropz"]) * 2 - 1]})
    terms = built.generator_losses(out)
    expected = F.l1_loss(out.volume, Teacher(path, settings)(to_slices(out.original), 2))
    torch.testing.assert_close(terms["teacher"], expected)
    torch.testing.assert_close(built.weigh({"teacher": terms["teacher"]}), 7 * expected)
    built.weigh({"teacher": terms["teacher"]}).backward()
    assert all(p.grad is not None and p.grad.any() for p in built.G["net_g"].conv7_k.parameters())
    assert not any(p.requires_grad for p in built.teacher.network.parameters()) and not built.teacher.network.training
    built.train()
    assert not built.teacher.network.training


def test_averaged_weights_are_taken_and_recorded(tmp_path):
    path = lateral(tmp_path)
    checkpoints = path / "checkpoints"
    raw = torch.load(checkpoints / "net_g_model_epoch_3.pth", weights_only=True)
    torch.save({key: value / 2 for key, value in raw.items()}, checkpoints / "net_g_ema_model_epoch_3.pth")
    teacher = Teacher(path, guided())
    assert torch.equal(teacher.network.G["net_g"].head.weight, raw["head.weight"] / 2)
    averaged = "net_g_ema_model_epoch_3.pth"
    assert teacher.record == {"run": str(path), "epoch": 3, "weights": averaged, "sha256": sha256(checkpoints / averaged)}
