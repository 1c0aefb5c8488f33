"""A run folder and an input that most tests of infer.py share."""

import pytest
from infer_commands import VOXEL
from infer_runs import grey, make_run

from inference import Run
from writing.write import write_tiff


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "D" / "P")


@pytest.fixture(scope="module")
def opened(run):
    return Run.load(run)


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "in.tif"
    write_tiff(path, grey((3, 37, 43)), voxel_um=VOXEL)
    return path
