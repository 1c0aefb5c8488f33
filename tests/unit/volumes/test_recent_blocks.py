"""What is read of a chunked input: each block once, and the same values as without blocks."""

from itertools import product

import numpy as np
import pytest
import tifffile
import zarr

from volumes.open import open_volume
from volumes.recent_blocks import RecentBlocks

SHAPE = (20, 150, 130)


@pytest.fixture(params=["zarr", "tiles"])
def chunked(request, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    if request.param == "zarr":
        path = tmp_path / "v.zarr"
        array = zarr.create_array(path, shape=SHAPE, chunks=(8, 32, 32), dtype="u1", dimension_names=list("zyx"))
        array[:] = values
    else:
        path = tmp_path / "v.tif"
        tifffile.imwrite(path, values, tile=(32, 32), compression="zlib", metadata={"axes": "ZYX"})
    return open_volume(path), values


def counting(volume):
    """Voxels that the file gives."""
    read, given = volume._read, []
    volume._read = lambda *box: given.append(read(*box)) or given[-1]
    return given


def test_overlapping_windows_read_every_voxel_once(chunked, monkeypatch):
    volume, values = chunked
    monkeypatch.setattr("volumes.recent_blocks._LEAST", 2**12)
    blocks, given = RecentBlocks(volume), counting(volume)
    for z, y, x in product(range(0, 20, 5), range(0, 150, 50), range(0, 130, 65)):
        box = slice(z, z + 9), slice(max(0, y - 20), y + 70), slice(x, x + 90)
        np.testing.assert_array_equal(blocks[box], values[box])
    assert sum(part.size for part in given) == values.size
    np.testing.assert_array_equal(blocks[3:18:4, 1:149, 2:7], values[3:18:4, 1:149, 2:7])


def test_the_oldest_blocks_are_forgotten(chunked, monkeypatch):
    volume, values = chunked
    monkeypatch.setattr("volumes.recent_blocks.LIMIT", 2**14)
    monkeypatch.setattr("volumes.recent_blocks._LEAST", 2**12)
    blocks = RecentBlocks(volume)
    for _ in range(2):
        np.testing.assert_array_equal(blocks[:, :, :], values)
    assert 0 < blocks._recent.size <= 2**14
