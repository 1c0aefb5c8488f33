"""spread codes: the real slices alone are encoded and stored, and between their codes' vectors lie those of the others."""

import json

import numpy as np
import pytest
import torch
from infer_runs import grey, make_run, whole

from inference import Options, Run, decode, encode, enhance
from inference.decoding import isotropic_field
from inference.source import Source
from models.build import build_model
from models.sampling import Sampling
from networks.views import to_slices
from training import MODEL_OPTIONS
from utils.errors import UserError
from utils.files import write_json

FOUR = {
    "usp": 4.0,
    "downbranch": 4,
    "spread": "codes",
    "l1how": "dsp",
}  # as fib25.json: 16 slices of 2 planes, 4 sections of 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("runs") / "D" / "P", from_interpolation=True, mc=False, **FOUR)
    return Run.load(path)


def test_a_store_has_the_real_slices_only_and_decodes_as_enhance_does(run, tmp_path):
    volume = grey((5, 37, 43))
    store = encode(volume, run, tmp_path / "x.codes.zarr")
    assert store.shape == (5, 5, 6) and store.about["factor"] == 8 and store.about["slices"]["spacing"] == 1
    made = decode(store, run)
    assert made.shape == (40, 37, 43) and made.std() > 5
    np.testing.assert_array_equal(made, enhance(volume, run))
    assert decode(store, run, grid="raw").shape == (5, 37, 43)
    region = (slice(11, 30), slice(3, 20), slice(5, 41))
    np.testing.assert_array_equal(decode(store, run, options=Options(region=region)), made[region])
    tiles = decode(store, run, options=Options(tile=8)).astype(int)
    assert np.abs(tiles - made).max() <= 1
    interpolated = Run.load(make_run(tmp_path / "D" / "Q", mc=False, **{**FOUR, "spread": "slices"}))
    assert encode(volume, interpolated, tmp_path / "y.codes.zarr").shape == (20, 5, 6)
    assert enhance(volume, interpolated).shape == made.shape


@pytest.mark.parametrize(("down", "cropz"), [(1, 1), (4, 4)])
def test_a_ramp_of_codes_lies_where_the_planes_are(tmp_path, down, cropz):
    """Code k stands for (k, k, ...) and slice k has code k: what the volume decoder reads is its position in slices."""
    run = Run.load(make_run(tmp_path / "D" / "P", cropz=cropz, mc=False, **{**FOUR, "downbranch": down}))
    book = run.model.G["quantize"].embedding.weight
    with torch.no_grad():
        book.copy_(torch.arange(256.0)[:, None].expand_as(book))
    store = encode(grey((9, 16, 16)), run, tmp_path / "x.codes.zarr")
    codes = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None], store.shape)
    field = isotropic_field(run, store, np.dtype(np.float32), Options(tile=16))
    wanted = np.clip((np.arange(36) + 0.5) / 4 - 0.5, 0, 8).reshape(-1, down).max(1)  # downbranch keeps the largest
    for tile in field.tiles(whole(field)):
        box = field.needed(tile)
        start, size = tile[0].window
        np.testing.assert_allclose(field._stack(tile, codes[box])[0, 0, 0, 0], wanted[start:size], atol=1e-6)


def test_planes_lie_where_the_record_says(run, tmp_path):
    """With a volume decoder of zeros the output is the decoded slices, interpolated: at the places that are recorded."""
    opened = Run.load(run.path)
    for parameter in opened.model.G["net_g"].parameters():
        parameter.zero_()
    volume = grey((6, 24, 24))
    options = Options(dtype="float32")
    with Source(opened, volume, options) as source:
        assert (source.first, source.spacing, source.count) == (0.0, 1.0, 6)
        store = encode(source, opened, tmp_path / "x.codes.zarr")
    slices = decode(store, opened, grid="raw", options=options)
    decode(store, opened, options=options, output=tmp_path / "o.ome.zarr")
    place = json.loads((tmp_path / "o.ome.zarr" / "zarr.json").read_text())["attributes"]["isoscope"]["place"]
    planes = place["origin"][0] + place["step"][0] * np.arange(48)
    assert place["step"][0] == 1 / 8 and opened.centre == pytest.approx(1 + 3)  # slice 0 of 2 planes on plane 1, of 4: 3 further
    low = np.clip(np.floor(planes), 0, 5).astype(int)
    weight = (np.clip(planes, 0, 5) - low)[:, None, None]
    wanted = slices[low] * (1 - weight) + slices[np.minimum(low + 1, 5)] * weight
    inside = ((slices > 0) & (slices < 1000))[low] & ((slices > 0) & (slices < 1000))[np.minimum(low + 1, 5)]  # not clipped
    assert inside.mean() > 0.1
    np.testing.assert_allclose(decode(store, opened, options=options)[inside], wanted[inside], atol=0.05)


def test_sections_of_a_crop_are_encoded(run):
    settings = run.settings
    sections = torch.rand(2, 1, 32, 32, 4) * 2 - 1
    crop = Sampling.from_settings(settings, "test").slices(sections)
    assert crop.shape[-1] == 16
    model = build_model(settings)
    out = model.generate({"img": [crop], "filenames": [""]})
    torch.testing.assert_close(out.encoded, to_slices(sections), atol=1e-4, rtol=0)
    assert out.recon.shape == (8, 1, 32, 32) and out.volume.shape == (2, 1, 32, 32, 32) and out.code.indices.shape[0] == 8
    terms = model.generator_losses(out)
    assert all(bool(value.isfinite()) for value in terms.values())


def test_a_training_and_what_it_refuses(workspace):
    words = ("--usp", 4, "--downbranch", 4, "--spread", "codes", "--n_epochs", 1, "--epoch_save", 1)
    made = workspace.train("codes", *words)
    assert made.stored_settings(MODEL_OPTIONS)["spread"] == "codes"
    assert enhance(grey((3, 24, 24)), made.path, Options(normalise="volume")).shape == (24, 24, 24)
    with pytest.raises(UserError, match=r"spread=codes needs a whole usp, not 2.5"):
        Sampling.of_codes({**made.stored_settings(MODEL_OPTIONS), "usp": 2.5, "cropz": 8, "downbranch": 2, "cropsize": 80})
    stored = json.loads((made.path / "0.json").read_text())
    del stored["spread"]
    write_json(made.path / "0.json", stored)
    assert made.stored_settings(MODEL_OPTIONS)["spread"] == "slices"
