"""The registry of formats: a new one is a module and its line there."""

from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from volumes.open import FORMATS, expand_inputs, open_volume, stem_of
from volumes.volume import ArrayVolume

VALUES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def test_a_new_format_is_one_line_of_the_registry(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, ".npy", lambda path, choice: ArrayVolume(np.load(path), path))
    np.save(tmp_path / "v.npy", VALUES)
    np.testing.assert_array_equal(open_volume(tmp_path / "v.npy")[:], VALUES)
    assert expand_inputs([tmp_path]) == [tmp_path / "v.npy"]
    assert stem_of(tmp_path / "v.npy") == "v"
    for choice in ({"channel": 1}, {"time": 1}, {"scene": 1}, {"level": 1}):  # asked for in vain, and never ignored
        with pytest.raises(UserError, match="1 of 1"):
            open_volume(tmp_path / "v.npy", **choice)


@pytest.mark.parametrize("name", ["scan.ome.zarr", "scan.OME.TIF", "scan.tiff", "scan.nii.gz", "scan.mrc", "scan.czi", "scan"])
def test_the_ending_of_a_format_is_no_part_of_a_name(name):
    assert stem_of(Path("/somewhere") / name) == "scan"
