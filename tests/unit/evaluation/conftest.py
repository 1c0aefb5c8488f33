"""A folder of volumes and a report on it, made once for each file of tests."""

import numpy as np
import pytest
from evaluate_files import run, save, scene
from scipy.ndimage import gaussian_filter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    truth = scene()
    save(path / "truth.tif", truth)
    better = 0.5 * truth + 0.5 * gaussian_filter(truth.astype(float), (2, 0, 0))
    save(path / "recon.tif", np.rint(better).astype(np.uint8))
    save(path / "thin.tif", truth[4::8])
    return path


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    arguments = [
        "--reconstruction",
        folder / "recon.tif",
        "--truth",
        folder / "truth.tif",
        "--thin",
        "8",
        "--voxel",
        "0.01,0.01,0.01",
    ]
    return run(output, *arguments), output / "out"
