"""The input of a command: measured once, read by one thread that ends with it, and placed by one rule."""

import threading

import numpy as np
import pytest
from infer_commands import VOXEL, command, read
from infer_runs import grey, make_run

from inference import Options, Run
from inference.source import Source
from inference.uncertainty import spread_field
from volumes.open import open_volume
from writing.write import write_tiff


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("how", ["volume", "percentile"])
def test_an_input_is_scanned_once_whatever_is_asked_for(run, tmp_path, voxels_read, dtype, how):
    source = tmp_path / "in.tif"
    write_tiff(source, grey((3, 37, 43)).astype(dtype), voxel_um=VOXEL)
    words = ["enhance", "--run", run, "--input", source, "--consistency", "--preview", "--uncertainty", "2", "--normalise"]
    unscanned = voxels_read(lambda: command(*words, "run", "--force-range", "--output", tmp_path / "a.ome.zarr"))
    scanned = voxels_read(lambda: command(*words, how, "--output", tmp_path / "b.ome.zarr"))
    assert scanned - unscanned == 3 * 37 * 43  # the networks read the same of both


def test_passes_share_one_budget(tmp_path):
    run, options = Run.load(make_run(tmp_path / "D" / "P", mc=False)), Options(tile=16)
    box, made = (slice(0, 13), slice(3, 40), slice(0, 60)), []
    for limit in (2**30, 40_000):
        with Source(run, grey((2, 40, 60)), options) as source:
            source.recent.limit = limit
            spread = spread_field(run, source, options, 5)
            assert {id(network.recent) for field in spread.passes for network in (field, field.codes)} == {id(source.recent)}
            made.append(spread.render(box))
            kept = source.recent.size
            assert kept > 100_000 if limit == 2**30 else 0 < kept <= limit
        assert source.recent.size == 0
    np.testing.assert_array_equal(*made)


def test_the_reader_ends_with_the_command(tmp_path):
    run = make_run(tmp_path / "D" / "P", mc=False)
    write_tiff(tmp_path / "in.tif", grey((2, 40, 60)))
    before = set(threading.enumerate())  # of other tests
    for verb, output in (("enhance", "o.ome.zarr"), ("encode", "o.codes.zarr")):
        more = ["--tile", "16", "--uncertainty", "3"] if verb == "enhance" else []
        command(verb, "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / output, *more)
    assert not {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("read")}


@pytest.mark.parametrize("l1how", ["dsp", "max"])
def test_output_and_consistency_of_an_interpolated_volume_have_one_place(tmp_path, l1how):
    """DECISIONS 2: slice k is centred on plane k·u + (u-1)/2 of an interpolated volume, whatever l1how says."""
    path = make_run(tmp_path / "D" / "P", "IsoREF", cropz=4, nocyc=True, l1how=l1how)
    write_tiff(tmp_path / "in.tif", grey((3, 24, 40)), voxel_um=VOXEL)
    output = tmp_path / "o.ome.zarr"
    command("enhance", "--run", path, "--input", tmp_path / "in.tif", "--output", output, "--consistency")
    assert open_volume(output).translation_um == pytest.approx((-0.35, 0, 0))
    difference = open_volume(tmp_path / "o_consistency.ome.zarr")
    assert difference.translation_um == pytest.approx((0, 0, 0)) and difference.voxel_um == pytest.approx(VOXEL)
    planes = read(output).astype(np.float32).reshape(3, 8, 24, 40)
    at_slices = planes[:, 3:5].mean(axis=1) if l1how == "dsp" else planes.max(axis=1)
    np.testing.assert_allclose(difference[:], at_slices - grey((3, 24, 40)), atol=1e-3)
