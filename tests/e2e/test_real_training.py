"""The method on a real volume through the commands a user types: FIB-SEM thinned 8x (slow: about half an hour on 2 cores)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")
FACTOR = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SAMPLES, reason="ISOSCOPE_SAMPLES, the folder of real volumes, is unset"),
]


def command(*arguments):
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def psnr(volume, truth):
    return 10 * np.log10(255**2 / np.mean((volume.astype(float) - truth) ** 2))


def gradient_ratio(volume):
    """Gradient energy along z over the mean of the two in-plane axes, volume (Z, Y, X)."""
    z, y, x = (np.mean(np.square(np.diff(volume.astype(float), axis=axis))) for axis in range(3))
    return z / ((y + x) / 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of fib25.json, from scratch."""
    root = tmp_path_factory.mktemp("fib25")
    folder = root / "data" / "fib25" / "train" / "x3d0"
    folder.mkdir(parents=True)
    shutil.copy(Path(SAMPLES) / "fibsem_fib25_quickstart.tif", folder)
    command("train.py", "--jsn", "fib25", "--prj", "first", "--data_root", root / "data", "--logs", root / "logs")
    return root / "logs" / "fib25" / "first"


def test_losses_fall_by_half(trained):
    events = EventAccumulator(str(trained / "logs"), size_guidance={"scalars": 0}).Reload()
    for term in ("g/projection", "g/recon"):
        values = np.array([event.value for event in events.Scalars(term)])
        assert np.isfinite(values).all()
        assert values[-10:].mean() < 0.5 * values[:2].mean(), term
    assert events.Scalars("g/recon")[-1].step >= 2 * 400 - 2 * 10  # Lightning counts the steps of both optimisers


def test_the_codebook_is_used(trained, tmp_path):
    volume = Path(SAMPLES) / "fibsem_fib25_quickstart.tif"
    command("infer.py", "encode", "--run", trained, "--input", volume, "--output", tmp_path / "x.codes.zarr")
    codes = np.asarray(zarr.open_group(tmp_path / "x.codes.zarr", mode="r")["codes"])
    assert (np.bincount(codes.ravel(), minlength=256) >= 10).sum() >= 64


@pytest.fixture(scope="module")
def unseen(trained, tmp_path_factory):
    """Truth, restored volume and nearest neighbour of a cube that was never trained on."""
    folder = tmp_path_factory.mktemp("dev")
    truth = tifffile.imread(Path(SAMPLES) / "fibsem_fib25_dev.tif")[:248, :248, :248]
    thinned = truth[FACTOR // 2 :: FACTOR]
    tifffile.imwrite(folder / "thinned.tif", thinned)
    output = folder / "isotropic.tif"
    command("infer.py", "enhance", "--run", trained, "--input", folder / "thinned.tif", "--dsp", 1, "--output", output)
    restored = tifffile.imread(output)
    assert restored.shape == truth.shape and restored.dtype == truth.dtype
    centres = FACTOR // 2 + FACTOR * np.arange(len(thinned))
    nearest = thinned[np.abs(np.arange(len(truth))[:, None] - centres).argmin(axis=1)]
    return truth, restored, nearest


def test_gradients_along_z_are_closer_to_the_truth_than_nearest_neighbour(unseen):
    wanted, restored, nearest = (gradient_ratio(volume) for volume in unseen)
    assert abs(restored - wanted) < abs(nearest - wanted), (restored, nearest, wanted)


def test_psnr_is_higher_than_nearest_neighbour(unseen):
    truth, restored, nearest = unseen
    assert psnr(restored, truth) > psnr(nearest, truth), (psnr(restored, truth), psnr(nearest, truth))
