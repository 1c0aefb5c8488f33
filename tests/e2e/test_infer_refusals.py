"""What infer.py refuses, and in what state it leaves the outputs."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr
from infer_commands import command, quiet, read, refused
from infer_runs import ROOT, grey, make_run

from inference import Options, decode, enhance
from utils.errors import UserError
from volumes.block_array import BlockArray
from volumes.open import open_volume


def test_refusals_leave_everything_as_it_was(run, volume, tmp_path):
    out = tmp_path / "o.ome.zarr"
    base = ["enhance", "--input", volume, "--output", out]
    refused("not a training's folder", *base, "--run", tmp_path)
    broken = tmp_path / "D" / "broken"
    shutil.copytree(run, broken)
    (broken / "checkpoints" / "encoder_model_epoch_3.pth").unlink()
    refused("encoder_model_epoch_3.pth is missing", *base, "--run", broken)
    refused("has no checkpoint of epoch 7", *base, "--run", run, "--epoch", "7")
    refused("a volume is written as", "enhance", "--run", run, "--input", volume, "--output", tmp_path / "o.xyz")
    refused("must look like z0:z1", *base, "--run", run, "--region", "0:3")
    refused("must lie within 0:24, where the output", *base, "--run", run, "--region", "0:99,:,:")
    refused("says 1 x 1 x 1", *base, "--run", run, "--voxel", "1,1,1")
    refused("multiple of 8", *base, "--run", run, "--tile", "12")
    refused("cannot be written; choose one of", *base, "--run", run, "--dtype", "complex64")
    refused("invalid choice", *base, "--run", run, "--normalise", "median")
    refused("--dsp -1 must be at least 1", *base, "--run", run, "--dsp", "-1")
    refused("--batch 0 must be at least 1", *base, "--run", run, "--batch", "0")
    refused("--device gpu is no device", *base, "--run", run, "--device", "gpu")
    refused("at least 2 passes", *base, "--run", run, "--uncertainty", "1")
    refused("choose that ending", "encode", "--run", run, "--input", volume, "--output", tmp_path / "codes.tif")
    torn = broken / "checkpoints" / "encoder_model_epoch_3.pth"
    torn.write_bytes((run / "checkpoints" / torn.name).read_bytes()[:5000])
    refused("encoder_model_epoch_3.pth cannot be read", *base, "--run", broken)
    shutil.copy(run / "checkpoints" / torn.name, torn)
    (broken / "dataset.json").write_text('{"nm": "11"}')
    refused("dataset.json does not say", *base, "--run", broken)
    out.mkdir()
    (out / "kept").write_text("precious")
    refused("exists; choose another name", *base, "--run", run)
    assert (out / "kept").read_text() == "precious"
    assert not list(tmp_path.glob("*.partial.zarr"))


def test_nan_is_named(run, tmp_path):
    values = grey((2, 16, 16), dtype="float32")
    values[1, 3, 3] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    refused("NaN or infinite", "enhance", "--run", run, "--input", tmp_path / "nan.tif", "--output", tmp_path / "o.ome.zarr")
    assert not (tmp_path / "o.ome.zarr").exists()


def test_damaged_input_stops_with_its_name_and_leaves_nothing_that_looks_finished(run, tmp_path):
    values = grey((3, 40, 300))
    zarr.create_array(tmp_path / "in.zarr", data=values, chunks=(1, 40, 100))
    chunk = tmp_path / "in.zarr" / "c" / "2" / "0" / "2"  # in the last tile
    chunk.write_bytes(b"damaged")
    base = ["enhance", "--run", run, "--input", tmp_path / "in.zarr", "--force-range", "--output"]
    for name in ("o.ome.zarr", "o.ome.tif"):
        refused("in.zarr/c/2/0/2: this chunk cannot be read", *base, tmp_path / name)
        assert not (tmp_path / name).exists()
        with pytest.raises(UserError, match="not finished"):
            open_volume(tmp_path / f"{name}.partial.zarr")
    shutil.rmtree(tmp_path / "in.zarr")
    zarr.create_array(tmp_path / "in.zarr", data=values, chunks=(1, 40, 100))
    refused("input.modified", *base, tmp_path / "o.ome.zarr")  # another input: it must not be continued
    command(*base, tmp_path / "o.ome.zarr", "--overwrite")
    np.testing.assert_array_equal(read(tmp_path / "o.ome.zarr"), enhance(run, values))


def test_a_full_disc_is_a_message_and_the_command_continues(run, volume, tmp_path, monkeypatch):
    out = tmp_path / "o.ome.zarr"
    base = ["enhance", "--run", run, "--input", volume, "--output", out]
    with monkeypatch.context() as patched:
        patched.setattr(BlockArray, "_store", property(full_disc))
        refused("the disc is full; make room and run the same command again", *base)
    assert not out.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    refused("needs up to .* make room or write elsewhere", *base[:-1], tmp_path / "p.ome.zarr")
    command(*base)
    assert read(out).shape == (24, 37, 43)


def full_disc(_):
    raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")


def test_codes_of_other_weights(run, volume, tmp_path):
    store = tmp_path / "x.codes.zarr"
    command("encode", "--run", run, "--input", volume, "--output", store)
    other = tmp_path / "D" / "other"
    shutil.copytree(run, other)
    file = other / "checkpoints" / "net_g_model_epoch_3.pth"
    state = torch.load(file, weights_only=True)
    state["up3.0.weight"][0, 0, 0, 0, 0] += 1
    torch.save(state, file)
    refused("encoded with other weights", "decode", "--codes", store, "--run", other, "--output", tmp_path / "o.ome.zarr")
    refused("is not a code store", "decode", "--codes", run, "--output", tmp_path / "o.ome.zarr")
    with pytest.raises(UserError, match="grid=Raw is unknown; choose one of isotropic, raw"):
        decode(store, run, grid="Raw")


def test_runs_that_make_no_codes(tmp_path, volume):
    middle = make_run(tmp_path / "D" / "mid", "ae0iso0tccut", hbranch="mid")
    refused("needs a run with hbranch z", "encode", "--run", middle, "--input", volume, "--output", tmp_path / "x.codes.zarr")
    restoring = make_run(tmp_path / "D" / "ref", "IsoREF", nocyc=True)
    refused("makes no codes", "encode", "--run", restoring, "--input", volume, "--output", tmp_path / "x.codes.zarr")
    assert enhance(restoring, volume).shape == (24, 37, 43)
    whole = make_run(tmp_path / "D" / "norm", norm="instance")
    refused("--approximate", "enhance", "--run", whole, "--input", volume, "--output", tmp_path / "o.tif", "--tile", "16")
    assert enhance(whole, volume, Options(tile=16, approximate=True)).shape == (24, 37, 43)


def test_wrong_number_of_channels(run, tmp_path):
    tifffile.imwrite(tmp_path / "two.ome.tif", np.zeros((2, 3, 16, 16), np.uint16), metadata={"axes": "CZYX"})
    base = ["enhance", "--run", run, "--output", tmp_path / "o.tif"]
    refused("choose one", *base, "--input", tmp_path / "two.ome.tif")
    with pytest.raises(UserError, match="reads 1 channel"):
        enhance(run, np.zeros((2, 3, 16, 16), np.uint16))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.zeros((16, 16), np.uint16), r"three axes \(Z, Y, X\), none of them empty, not the shape \(16, 16\)"),
        (np.zeros((0, 16, 16), np.uint16), r"not the shape \(0, 16, 16\)"),
        (np.zeros((3, 16, 16), complex), "complex128 are no grey values"),
        (None, "an array, a path or a Volume, not a NoneType"),
    ],
)
def test_what_is_no_volume(opened, given, match):
    with pytest.raises(UserError, match=match):
        enhance(given, opened)


@pytest.mark.parametrize("option", [{"region": (0, 0, 0)}, {"region": (slice(0, 3),) * 2}, {"voxel_um": (1, 0.1, float("nan"))}])
def test_options_that_are_none(option):
    with pytest.raises(UserError, match=r"must be three slices|must be between"):
        Options(**option)


def test_arrays_that_lie_elsewhere(opened, tmp_path):
    values, shape = grey((2, 16, 24)), {"shape": (2, 16, 24), "dtype": "uint16"}
    stored = zarr.create_array({}, chunks=(1, 16, 24), **shape)
    stored[:] = values
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["v"] = values
        for given in (stored, file["v"], torch.from_numpy(values.astype(np.int16))):
            np.testing.assert_array_equal(enhance(given, opened), enhance(values, opened))


def test_a_run_without_its_grey_values(tmp_path, volume):
    run = make_run(tmp_path / "D" / "P")
    (run / "dataset.json").unlink()
    refused("use --normalise volume or percentile", "enhance", "--run", run, "--input", volume, "--output", tmp_path / "o.tif")
    low, high = grey((3, 37, 43)).min(), grey((3, 37, 43)).max()
    out = enhance(run, volume, Options(normalise="volume"))
    assert out.dtype == np.uint16 and out.min() >= low and out.max() <= high


def test_message_without_traceback(run, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "infer.py"), "enhance", "--run", str(run), "--input", "nothing.tif", "--output", "o.tif"],
        capture_output=True,
        text=True,
        env=quiet(),
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2 and "nothing.tif: no such file" in done.stderr and "Traceback" not in done.stderr
    assert not list(Path(tmp_path).iterdir())
