"""The method on a real volume through the commands a user types: FIB-SEM thinned 8x (slow: a quarter of an hour on 2 cores)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

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
    """The run of fib25.json, and the lateral run that guides it, from scratch and shorter than their files say."""
    root = tmp_path_factory.mktemp("fib25")
    folder = root / "data" / "fib25" / "train" / "x3d0"
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "train.tif", tifffile.imread(Path(SAMPLES) / "fibsem_fib25_train.tif")[FACTOR // 2 :: FACTOR])
    places = ("--data_root", root / "data", "--logs", root / "logs")
    short = ("--epoch_save", 2, "--picture_epochs", 2, "--n_epochs", 2)
    command("train.py", "--jsn", "fib25_lateral", "--prj", "lateral", *places, *short)
    command("train.py", "--jsn", "fib25", "--prj", "first", *places, *short, "--crops_per_volume", 300)
    return root / "logs" / "fib25" / "first"


def test_the_codebook_is_used(trained, tmp_path):
    volume = Path(SAMPLES) / "fibsem_fib25_quickstart.tif"
    command("infer.py", "encode", "--run", trained, "--input", volume, "--output", tmp_path / "x.codes.zarr")
    codes = np.asarray(zarr.open_group(tmp_path / "x.codes.zarr", mode="r")["codes"])
    assert (np.bincount(codes.ravel(), minlength=256) >= 10).sum() >= 64


@pytest.fixture(scope="module")
def unseen(trained, tmp_path_factory):
    """Truth, restored volume and linear interpolation of a cube that was never trained on."""
    folder = tmp_path_factory.mktemp("dev")
    truth = tifffile.imread(Path(SAMPLES) / "fibsem_fib25_dev.tif")[:248, :248, :248]
    thinned = truth[FACTOR // 2 :: FACTOR]
    tifffile.imwrite(folder / "thinned.tif", thinned)
    output = folder / "isotropic.tif"
    command("infer.py", "enhance", "--run", trained, "--input", folder / "thinned.tif", "--output", output)
    restored = tifffile.imread(output)
    assert restored.shape == truth.shape and restored.dtype == truth.dtype
    centres = FACTOR // 2 + FACTOR * np.arange(len(thinned))
    places = np.arange(len(truth))
    below = np.clip((places - centres[0]) // FACTOR, 0, len(thinned) - 2)
    share = np.clip((places - centres[below]) / FACTOR, 0, 1)[:, None, None]
    return truth, restored, (1 - share) * thinned[below] + share * thinned[below + 1]


def test_gradients_along_z_are_closer_to_the_truth_than_interpolation(unseen):
    wanted, restored, linear = (gradient_ratio(volume) for volume in unseen)  # nearest neighbour has steps, which are no detail
    assert abs(restored - wanted) < abs(linear - wanted) / 2, (restored, linear, wanted)


def test_what_an_eighth_of_a_bit_keeps_is_better_than_interpolating_everything(unseen):
    truth, restored, linear = unseen
    assert psnr(restored, truth) > psnr(linear, truth) + 0.4, (psnr(restored, truth), psnr(linear, truth))
