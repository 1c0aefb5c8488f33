"""A volume generator that adds to a volume made of the slices: where a training starts; tiles, regions and stores agree."""

import numpy as np
import pytest
import tifffile
import torch
from infer_runs import grey, make_run

from experiment.reading import default_settings
from experiment.runs import RunFolder
from inference import Engine, Options, Run, decode, encode, enhance
from inference.decoding import isotropic_field
from inference.encoding import SliceEncoder
from inference.source import Source
from models.build import build_model
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from volumes.volume import ArrayVolume

KINDS = {
    "codes": {},
    "local codes": {"ldmyaml": "vqlocal", "l1how": "dsp"},
    "interpolated slices": {"ldmyaml": "vqlocal", "cropz": 16, "dsp": 4, "usp": 2.0, "downbranch": 2, "l1how": "dsp"},
    "two planes of a slice": {"ldmyaml": "vqlocal", "cropz": 32, "downbranch": 4, "l1how": "mean"},
    "sixteen planes of a slice": {"ldmyaml": "vqlocal", "cropz": 2, "resizebranch": 2, "l1how": "mean"},
    "features": {"model": "ae0iso0tccut", "hbranch": "mid"},
    "local features": {"model": "ae0iso0tccut", "hbranch": "mid", "network": {"norm": "none", "mid_attention": False}},
    "posterior means": {"model": "ae0iso0tccut", "hbranch": "z"},
}
FROM_TEACHER = {"from_interpolation": False, "from_teacher": True, "teacher": "RUN"}
RESTORED = {
    "restored codes": {"ldmyaml": "vqlocal", "l1how": "dsp", **FROM_TEACHER},
    "restored features": {
        "model": "ae0iso0tccut",
        "hbranch": "mid",
        "l1how": "mean",
        "downbranch": 2,
        "cropz": 8,
        **FROM_TEACHER,
    },
}


def kind_of_run(folder, name):
    kind = {"model": "ae0iso0tccutvqq", "cropz": 4, "mc": False, "from_interpolation": True, **(KINDS | RESTORED)[name]}
    size = kind["cropz"] * kind.get("usp", 1) / kind.get("dsp", 1) * 8 * kind.get("resizebranch", 1) / kind.get("downbranch", 1)
    return make_run(folder / "D" / "P", **kind, cropsize=int(size))


@pytest.mark.parametrize("name", KINDS)
def test_a_training_starts_at_interpolation(tmp_path, name):
    settings = RunFolder(kind_of_run(tmp_path, name)).stored_settings(MODEL_OPTIONS)
    model = build_model(settings, frozen=False).eval()
    n, planes, size = model.geometry.slices, model.geometry.factor, settings["cropsize"]
    out = model.generate({"img": [torch.rand(2, 1, size, size, n) * 2 - 1]})
    middle = planes // 2 if settings["l1how"] == "dsp" else (planes - 1) / 2
    recon = out.recon.detach().numpy().reshape(2, n, size, size)
    for batch, x, y in [(0, 3, 5), (1, size - 1, 0)]:
        expected = np.interp((np.arange(size) - middle) / planes, np.arange(n), recon[batch, :, x, y])
        np.testing.assert_allclose(out.volume[batch, 0, x, y].detach(), expected, atol=1e-5)
    out.volume.sum().backward()
    assert all(p.grad is None for p in model.G["decoder"].up.parameters())  # the slices are taken as they are
    assert all(p.grad.any() for p in model.G["net_g"].conv7_k.parameters())


def test_isoref_starts_at_its_input(tmp_path):
    path = make_run(tmp_path / "D" / "P", "IsoREF", cropz=4, from_interpolation=True)
    model = build_model(RunFolder(path).stored_settings(MODEL_OPTIONS))
    out = model.generate({"img": [torch.rand(1, 1, 32, 32, 4) * 2 - 1]})
    assert torch.equal(out.volume, out.interpolated)
    run = Run.load(path)
    seen = torch.rand(32, 1, 32, 32) * 2 - 1
    assert torch.allclose(model.eval().restore(seen, 1)[0, 0], seen[:, 0].movedim(0, -1))
    assert not torch.allclose(run.model.restore(seen, 1)[0, 0], seen[:, 0].movedim(0, -1), atol=0.05)


@pytest.mark.parametrize("name", RESTORED)
def test_a_training_starts_at_what_the_lateral_network_makes_of_the_slices(tmp_path, name):
    settings = RunFolder(kind_of_run(tmp_path, name)).stored_settings(MODEL_OPTIONS)
    model = build_model(settings, frozen=False).eval()
    torch.nn.init.normal_(model.G["net_t"].last.weight, std=0.1)
    size, n = settings["cropsize"], settings["cropz"]
    out = model.generate({"img": [torch.rand(2, 1, size, size, n) * 2 - 1]})
    teacher = default_settings(MODEL_OPTIONS, "lateral", **settings["restorer"])
    lateral = build_model(teacher, for_training=False)
    lateral.G["net_g"].load_state_dict(model.G["net_t"].state_dict())
    with torch.no_grad():
        expected = lateral.restore(out.recon, 2)
    assert expected.std() > 0.01
    torch.testing.assert_close(out.volume.detach(), expected)
    out.volume.sum().backward()
    assert all(p.grad is None for p in model.G["net_t"].parameters())
    assert any(p.grad.any() for p in model.G["net_g"].conv7_k.parameters())  # weights see nothing where so few features are all 0


@pytest.mark.parametrize("name", KINDS | RESTORED)
def test_tiles_and_regions_are_the_whole(tmp_path, name):
    run = Run.load(kind_of_run(tmp_path, name))
    volume = ArrayVolume(grey((7, 43, 37)))
    whole = enhance(run, volume, Options(tile=128))
    assert np.abs(enhance(run, volume, Options(tile=16)).astype(int) - whole).max() <= 1  # one rounding of a grey value
    region = (slice(5, whole.shape[0] - 3), slice(10, 43), slice(9, 30))
    part = enhance(run, volume, Options(tile=16, region=region, batch=2))
    assert np.array_equal(part, enhance(run, volume, Options(tile=16, batch=2))[region])


@pytest.mark.parametrize("name", ["local codes", "two planes of a slice", "interpolated slices", "restored codes"])
def test_the_volume_is_what_the_networks_make_of_it_at_once(tmp_path, name):
    run = Run.load(kind_of_run(tmp_path, name))
    with Source(run, ArrayVolume(grey((8, 40, 48))), Options()) as source:
        encoder = SliceEncoder(run, source)
        field = isotropic_field(run, encoder, np.dtype(np.float32), Options(tile=16))
        made = field.render(tuple(slice(0, size) for size in field.shape))[0]
        codes = encoder.read((slice(0, encoder.shape[0]), slice(0, 5), slice(0, 6))).codes
        with torch.no_grad():
            latent = run.model.unpack(torch.from_numpy(codes.astype(np.int64)))
            added = run.model.baseline(run.model.slices(latent).movedim(0, -1)[None], range(field.shape[0]))
            expected = run.model.lift(latent, 1) + added
        assert added.std() > 0.01 and (expected - added).std() > 0.01
        np.testing.assert_allclose(made, field.to_grey(expected[0]).movedim(-1, 1)[0], atol=2e-2)


@pytest.mark.parametrize("name", ["codes", "local codes", "posterior means", "restored codes"])
def test_a_store_gives_the_same_volume(tmp_path, name):
    run = Run.load(kind_of_run(tmp_path, name))
    volume = tmp_path / "in.tif"
    tifffile.imwrite(volume, grey((5, 43, 37)))
    enhance(run, volume, Options(tile=16), output=tmp_path / "out.tif")
    encode(run, volume, tmp_path / "in.codes.zarr")
    decode(tmp_path / "in.codes.zarr", run, options=Options(tile=16), output=tmp_path / "decoded.tif")
    assert np.array_equal(*(tifffile.imread(tmp_path / name) for name in ("out.tif", "decoded.tif")))


def test_spread_and_lower_precision_work(tmp_path):
    path = kind_of_run(tmp_path, "local codes")
    exact = enhance(path, ArrayVolume(grey((3, 24, 24)))).astype(float)
    run = Run.load(path, engine=Engine(torch.device("cpu"), "bf16"))
    assert 0 < np.abs(enhance(run, ArrayVolume(grey((3, 24, 24)))) - exact).mean() < 40


def test_two_channels_are_refused(workspace):
    options = [*workspace.variant("two_channels"), "--from_interpolation"]
    with pytest.raises(UserError, match="only the first channel of tc"):
        workspace.train("refused", *options)
    assert not workspace.run("refused").path.exists()


@pytest.mark.parametrize("name", ["vq", "kl", "isoref_nocyc"])
def test_a_training_goes_on_exactly(workspace, name):
    options = [*workspace.variant(name), "--from_interpolation"]
    whole = workspace.train("whole", *options)
    workspace.train("broken", *options, "--n_epochs", 1)
    broken = workspace.train("broken", "--resume", "--n_epochs", 2)
    first, second = (torch.load(run.component("net_g", 2), weights_only=True) for run in (whole, broken))
    assert all(torch.equal(first[key], second[key]) for key in first)
    plain = workspace.train("plain", *options, "--no-from_interpolation", "--n_epochs", 1)
    state = torch.load(plain.component("net_g", 1), weights_only=True)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in first.items()}
