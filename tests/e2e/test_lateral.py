"""The lateral model through the commands: it learns, it is applied in any tiles, and what cannot work is refused at once."""

import json

import numpy as np
import pytest
import tifffile
import torch
from infer_commands import read
from infer_runs import grey, make_run
from scipy.ndimage import gaussian_filter

import infer
from evaluation.grid import Request
from evaluation.measure import evaluate
from inference import Options, Run, enhance
from inference.api import enhance_job
from inference.source import Source
from models.lateral import Restored
from networks.losses import octave_power
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import ArrayVolume
from writing.write import write_tiff

OPTIONS = "--models lateral --uprate 4 --cropsize 64 --cropz 2 --blocks 2 --crops_per_volume 40 --nm 11".split()


def blobs(shape, seed):
    """Isotropic structure that a network can know again."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.5, mode="wrap")
    return (np.tanh(4 * values / values.std()) * 1000 + 2000).astype(np.uint16)


def test_it_learns_to_undo_what_the_microscope_did(workspace):
    """On a volume that it never saw it is clearly better than cubic interpolation, its start."""
    for number, name in enumerate(("a.tif", "b.tif")):
        tifffile.imwrite(workspace.data / "train" / "x3d0" / name, blobs((64, 80, 80), number)[2::4])
    workspace.settings(ngf=16, lr=3e-3, n_epochs=12, epoch_save=12)
    run = workspace.train("lateral", *OPTIONS)
    truth = blobs((48, 72, 72), 9)
    made = enhance(run.path, truth[2::4], Options(voxel_um=(0.4, 0.1, 0.1))).astype(float)
    start = interpolated(run).astype(float)
    inner = (slice(4, -4),) * 3
    errors = [np.mean((values - truth)[inner] ** 2) for values in (made, start)]
    assert errors[0] < 0.8 * errors[1]


def test_it_restores_the_power_that_it_is_asked_for(workspace):
    """Grain that sections hardly tell: the mean absolute error alone leaves less than half of its power."""
    grain = [gaussian_filter(np.random.default_rng(seed).standard_normal((8, 80, 80)), (0, 1.2, 1.2)) for seed in range(3)]
    for values, name in zip(grain, ("a.tif", "b.tif"), strict=False):
        tifffile.imwrite(workspace.data / "train" / "x3d0" / name, (2000 + 2000 * values).astype(np.uint16))
    workspace.settings(ngf=8, lr=3e-3, n_epochs=4, epoch_save=4)
    unseen = torch.from_numpy(grain[2][:, None].astype(np.float32))
    shares = []
    for weight in (0, 0.1):
        run = workspace.train(f"run{weight}", *OPTIONS, "--lbpower", weight, "--power", 0.8, "--ema", 0)
        model = Run.load(run.path).model
        sections, truth = model.sections.pair(unseen)
        shares.append(octave_power(model.restorer(sections), truth, 4).item())
    assert shares[0] < 0.5 and shares[1] == pytest.approx(0.8, abs=0.15)


def test_the_error_is_absolute_or_squared(tmp_path):
    rows = torch.zeros(1, 1, 8, 6)
    for how, expected in (("absolute", 0.5), ("squared", 0.25)):
        run = Run.load(make_run(tmp_path / how / "P", "lateral", cropsize=64, cropz=2, blocks=1, uprate=4.0, lateral_error=how))
        assert run.model.generator_losses(Restored(rows, rows, rows + 0.5))["lateral"].item() == expected


def interpolated(run):
    """What interpolation makes of the same volume: the trained run with its last layer set to zero."""
    opened = Run.load(run.path)
    opened.model.G["net_g"].last.weight.zero_()
    opened.model.G["net_g"].last.bias.zero_()
    return enhance(opened, blobs((48, 72, 72), 9)[2::4])


@pytest.mark.parametrize("values", [{"uprate": 8.0}, {"uprate": 300 / 65}, {"uprate": 1.0, "axial_sigma": 2.0}])
@pytest.mark.parametrize("channels", [1, 2])
def test_tiles_regions_and_batches_are_the_whole(tmp_path, values, channels):
    two = {"tc": True, "direction": "x3d0_x3d1", "input_nc": 2, "output_nc": 2} if channels == 2 else {}
    run = Run.load(make_run(tmp_path / "D" / "P", "lateral", cropsize=64, cropz=2, blocks=1, **values, **two))
    raw = [grey((5, 40, 45), seed) for seed in range(channels)]
    given = [ArrayVolume(one) for one in raw]
    whole = enhance(run, given, Options(tile=128))
    assert whole.shape[-3:] == (5 * int(np.ceil(values["uprate"])), 40, 45)
    difference = enhance(run, given, Options(tile=16, batch=2)).astype(int) - whole
    assert np.abs(difference).max() <= 1  # the grey values of one rounding
    region = (slice(3, 5), slice(10, 30), slice(12, 45))
    part = enhance(run, given, Options(tile=16, region=region))
    assert np.array_equal(part, enhance(run, given, Options(tile=16))[(..., *region)])


@pytest.mark.parametrize(("sampling", "place"), [("pick", 4), ("mean", 3.5)])
def test_planes_lie_where_the_sections_say(tmp_path, sampling, place):
    run = Run.load(make_run(tmp_path / "D" / "P", "lateral", cropsize=64, cropz=2, uprate=8.0, axial_sampling=sampling))
    options = Options()
    with Source(run, ArrayVolume(grey((3, 16, 16)), voxel_um=(0.8, 0.1, 0.1)), options) as source:
        job = enhance_job(run, source, options)
    assert job.voxel_um == pytest.approx((0.1, 0.1, 0.1)) and job.translation_um[0] == pytest.approx(-0.1 * place)


def test_background_is_filled_and_codes_are_refused(tmp_path):
    folder = make_run(tmp_path / "D" / "P", "lateral", cropsize=64, cropz=2, uprate=8.0, blocks=1)
    raw = np.zeros((16, 40, 40), np.uint16)
    raw[:2, :8, :8] = 900
    tifffile.imwrite(tmp_path / "in.tif", raw)
    common = ["--run", str(folder), "--input", str(tmp_path / "in.tif"), "--device", "cpu", "--output"]
    infer.main(["enhance", *common, str(tmp_path / "all.tif"), "--tile", "16", "--keep-background"])
    infer.main(["enhance", *common, str(tmp_path / "some.tif"), "--tile", "16"])
    made, filled = read(tmp_path / "all.tif"), read(tmp_path / "some.tif")
    assert (filled[-16:] == 0).all() and np.array_equal(made[:16, :16, :16], filled[:16, :16, :16])
    with pytest.raises(UserError, match="makes no codes"):
        infer.main(["encode", *common, str(tmp_path / "x.codes.zarr")])


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("--uprate 1", "--axial_sigma"),
        ("--axial_sigma 2 --axial_taps 0.2 0.6 0.2", "leave one of them out"),
        ("--axial_taps 0.5 0.5", "odd number"),
        ("--axial_sigma 6", "raise it to at least"),
        ("--uprate 20", "<=16"),
        ("--cropsize 60", "multiple of 8"),
        ("--uprate 1 --axial_sigma 1 --lbpower 0.1", "octave beyond .*set lbpower 0"),
        ("--cropsize 80", "smaller in-plane than cropsize=80; lower cropsize"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(workspace, options, rule):
    with pytest.raises(UserError, match=rule):
        workspace.train("lateral", *OPTIONS, "--cropsize", 40, *options.split())
    assert not workspace.run("lateral").path.exists()


def test_uprate_has_to_be_said(workspace):
    (workspace.root / "tiny.json").write_text(json.dumps({"train": {"dataset": "tiny", "models": "lateral"}}))
    with pytest.raises(UserError, match="such as --uprate 8"):
        workspace.train("lateral")


@pytest.mark.parametrize(("uprate", "sampling"), [(1.0, "pick"), (4.0, "mean"), (3.5, "pick")])
def test_consistency_blurs_the_output_as_the_sections_were(tmp_path, uprate, sampling):
    """The output has to give its input when it is seen through the run's own operator; evaluate.py reads it of the file."""
    taps = {"axial_sampling": sampling, "axial_taps": [0.1, 0.25, 0.3, 0.25, 0.1]}
    folder = make_run(tmp_path / "D" / "P", "lateral", cropsize=64, cropz=2, uprate=uprate, blocks=1, **taps)
    given, out = tmp_path / "in.tif", tmp_path / "o.ome.zarr"
    write_tiff(given, grey((12, 24, 24)), voxel_um=(0.1 * uprate, 0.1, 0.1))
    infer.main(["enhance", "--run", str(folder), "--input", str(given), "--output", str(out), "--consistency"])
    sections, made = Run.load(folder).model.sections, torch.from_numpy(read(out).astype(np.float32))
    lost = sections.lost
    seen = sections.of_planes(made.movedim(0, 1)[:, None])[:, 0].movedim(1, 0).numpy()
    difference = read(tmp_path / "o_consistency.ome.zarr")[lost : 12 - lost]
    np.testing.assert_allclose(difference, seen - grey((12, 24, 24))[lost : 12 - lost], atol=0.01)
    assert open_volume(out).attributes["axial_taps"] == pytest.approx(sections.plane_taps)
    if uprate == 1:
        report = evaluate(Request(reconstruction=out, input=given), tmp_path / "report")
        found = report["volumes"]["reconstruction"]["consistency"]["pick"]
        assert found["profile_taps"] == 5 and found["sections"] == 8
        assert found["rmse"] == pytest.approx(np.sqrt(np.square(difference).mean()), rel=1e-3)
        assert any("Blurred again along z" in sentence for sentence in report["verdict"]["sentences"])
