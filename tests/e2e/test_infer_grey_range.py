"""An input whose grey values are not those of the training is refused before any work, with a way to go on."""

import numpy as np
import pytest
from infer_commands import command, read
from infer_runs import grey, make_run

from inference import Options, Run, enhance
from utils.errors import UserError
from utils.files import read_mapping, write_json
from writing.write import write_tiff

SHAPE = (4, 40, 40)
LIKE = grey(SHAPE, high=31000) + np.uint16(970)  # what the run of these tests was trained on: 971 to 32667


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "D" / "P", mc=False, pooled=(971.0, 32667.0))


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ((LIKE / 128).astype(np.uint8), "100"),
        ((LIKE / 65535).astype(np.float32), "100"),
        ((LIKE // 16).astype(np.uint16), None),
        ((LIKE.astype(np.int32) - 33000).astype(np.int16), "100"),
        (np.where(np.arange(40) < 3, LIKE // 64, LIKE).astype(np.uint16), "7.5"),
    ],
    ids=["eight bits", "unit floats", "twelve bits", "negative", "a dark border"],
)
def test_values_of_another_detector_stop_the_command(run, tmp_path, values, share):
    write_tiff(tmp_path / "in.tif", values)
    words = ["enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / "o.tif"]
    message = r"trained on 971 to 32667: .* --normalise volume or percentile, .*--force-range"
    with pytest.raises(UserError, match=message) as caught:
        command(*words)
    assert share is None or f"{share}" in str(caught.value)
    assert not list(tmp_path.glob("o.tif*"))
    command(*words, "--force-range")
    command(*words, "--overwrite", "--normalise", "volume")
    made = read(tmp_path / "o.tif")
    assert np.ptp(made.astype(float)) > 0.03 * np.ptp(values.astype(float))  # no constant, within the input's own range
    assert values.min() <= made.min() and made.max() <= values.max()


def test_values_like_those_of_the_training_pass(run, tmp_path, caplog):
    few = LIKE.copy()
    few[:, 0, :] //= 64  # 2.5 %
    padded = np.where(np.arange(40) < 20, 0, LIKE).astype(np.uint16)  # one value: no detector made it
    for values in (LIKE, few, padded):
        assert enhance(run, values).shape == (32, 40, 40)
    assert "little of that range" not in caplog.text
    assert caplog.text.count("trained on 971 to 32667: 2% of its voxels lie outside and are cut off") == 1
    enhance(run, (LIKE // 40 + 971).astype(np.uint16))
    assert "little of that range" in caplog.text


def test_values_that_the_dtype_asked_for_does_not_hold(run, caplog):
    opened = Run.load(run)
    assert enhance(LIKE, opened, Options(dtype="uint8")).max() == 255
    assert "--dtype uint8 holds 0 to 255, and the output has grey values from 971 to 32667" in caplog.text
    caplog.clear()
    bright = LIKE.astype(np.float32) * 8
    assert np.isfinite(enhance(bright, opened, Options(dtype="float16", normalise="volume"))).all()
    assert "--dtype float16 holds -65504 to 65504" in caplog.text
    caplog.clear()
    enhance(LIKE, opened, Options(dtype="float32"))
    assert not caplog.text


@pytest.mark.parametrize("kind", ["vq", "lateral"])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_values_of_another_scale_that_lie_within_the_range_stop_the_command(kind, dtype, tmp_path):
    options = {"uprate": 2, "axial_sampling": "mean", "blocks": 1} if kind == "lateral" else {"mc": False}
    of_zero = make_run(tmp_path / "D" / kind, *["lateral"] * (kind == "lateral"), pooled=(0.0, 65535.0), **options)
    values = (LIKE / 65535 * 200).astype(dtype)
    with pytest.raises(UserError, match=r"trained on 0 to 65535: they use 0.00\d+ of that range .* --normalise volume"):
        enhance(of_zero, values)
    assert np.ptp(enhance(of_zero, values, Options(normalise="volume")).astype(float)) > 1
    assert enhance(of_zero, (LIKE // 128).astype(np.uint16)).any()  # as the training's dtype: a dark recording
    assert enhance(of_zero, np.zeros_like(values)).shape[1:] == (40, 40)


def test_what_the_preparation_clips_by_itself_is_allowed(run):
    half = np.where(np.arange(40) < 20, LIKE // 64, LIKE).astype(np.uint16)
    with pytest.raises(UserError, match=r"50\.0% of its voxels"):
        enhance(run, half)
    record = read_mapping(run / "dataset.json", "record")
    transform = {"normalisation": "11", "low": 971.0, "high": 32667.0}
    (direction,) = record["directions"]
    record["directions"][direction]["pooled"] = {"low": -1.0, "high": 1.0}
    record["dataset"] = {"directions": {direction: {"transform": transform, "settings": {"threshold": [971, 32667]}}}}
    write_json(run / "dataset.json", record)
    assert enhance(Run.load(run), half).shape == (32, 40, 40)
    with pytest.raises(UserError, match="trained on 971 to 32667: 100"):
        enhance(Run.load(run), (half // 256).astype(np.uint8))
    assert enhance(Run.load(run), (half // 256).astype(np.uint8), Options(force_range=True)).shape == (32, 40, 40)
