"""A volume blurred along Z, sampled isotropically: the output has the input's shape (slow: a quarter of an hour on 2 cores)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from volumes.open import open_volume

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")
FACTOR = 4  # of four planes the third is encoded, and stands for their mean: the first one's lies between output planes 1 and 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SAMPLES, reason="ISOSCOPE_SAMPLES, the folder of real volumes, is unset"),
]


def command(*arguments):
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def source():
    return Path(SAMPLES) / "mesospim_nuclei_c5.tif"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, source):
    root = tmp_path_factory.mktemp("mesospim")
    folder = root / "data" / "mesospim" / "train" / "x3d0"
    folder.mkdir(parents=True)
    (folder / source.name).symlink_to(source)
    places = ["--data_root", root / "data", "--logs", root / "logs"]
    command("train.py", "--jsn", "mesospim", "--prj", "slow", *places)
    return root / "logs" / "mesospim" / "slow"


def test_losses_fall(trained):
    """The projection starts low already: most of the volume is dark."""
    events = EventAccumulator(str(trained / "logs"), size_guidance={"scalars": 0}).Reload()
    for term, part in {"loss/generator/projection": 0.7, "loss/generator/recon": 0.3}.items():
        values = np.array([event.value for event in events.Scalars(term)])
        assert np.isfinite(values).all() and values[-5:].mean() < part * values[0], (term, values)


def test_nuclei_are_where_the_input_has_them(trained, source, tmp_path):
    """Over slabs of the planes that one encoded slice stands for; the output lies half a plane off the input."""
    output = tmp_path / "o.ome.zarr"
    command("infer.py", "enhance", "--run", trained, "--input", source, "--output", output)
    slabs = []
    for volume in (open_volume(output), open_volume(source)):
        planes = volume[:120].astype(float)
        slabs.append(planes.reshape(-1, FACTOR, *planes.shape[1:]).mean(axis=1))
    correlation = np.corrcoef(slabs[0].ravel(), slabs[1].ravel())[0, 1]
    assert correlation > 0.65, correlation


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
def test_the_output_has_the_shape_of_the_input_and_says_where_it_lies(trained, source, tmp_path, name):
    output = tmp_path / name
    options = ["--voxel", "5,5,5", "--consistency", "--preview"]
    command("infer.py", "enhance", "--run", trained, "--input", source, "--output", output, *options)
    made, given = open_volume(output), open_volume(source)
    assert made.shape == given.shape and made.dtype == given.dtype
    assert made.voxel_um == pytest.approx((5, 5, 5))
    assert made.translation_um == pytest.approx((2.5, 0, 0))
    assert "encoding" not in made.attributes["seams"]  # codes are local
    assert (tmp_path / "o_preview.png").stat().st_size > 1000
    errors = json.loads((tmp_path / "o_consistency.json").read_text())["channels"][0]
    slabs = made[:].astype(float).reshape(31, FACTOR, *made.shape[1:]).mean(axis=1)
    assert errors["rmse"] == pytest.approx(np.sqrt(np.mean((slabs - given[2::FACTOR]) ** 2)), rel=1e-3)
    if name.endswith("zarr"):
        yaozarrs.validate_zarr_store(str(output))
        report = tmp_path / "report"
        command("evaluate.py", "--reconstruction", output, "--input", source, "--voxel", "5,5,5", "--output", report)
        place = json.loads((report / "metrics.json").read_text())["alignment"]["input"]
        assert (place["first_plane"], place["planes_per_section"]) == (-0.5, 1)
