"""The commands of infer.py: files in, files out, restart, several processes, codes, and what is refused."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import zarr
from infer_runs import ROOT, grey, make_run

import infer
from inference import Options, Run, decode, encode, enhance
from inference.codes import CodeStore
from utils.errors import UserError
from utils.volumes.output_files import writing
from utils.volumes.sharded_array import ShardedArray
from utils.volumes.volume_io import open_volume, write_tiff

VOXEL = (0.8, 0.1, 0.1)


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


def command(*arguments):
    infer.main([str(a) for a in arguments])


def read(path):
    found = open_volume(path)
    return found[:]


def test_enhance_to_every_format(run, opened, volume, tmp_path):
    expected = enhance(opened, volume)
    assert expected.shape == (24, 37, 43) and expected.dtype == np.uint16 and expected.std() > 5
    for name in ("a.ome.zarr", "a.ome.tif"):
        command("enhance", "--run", run, "--input", volume, "--output", tmp_path / name)
        found = open_volume(tmp_path / name)
        np.testing.assert_array_equal(found[:], expected)
        assert found.voxel_um == pytest.approx((0.1, 0.1, 0.1))
        assert found.translation_um == pytest.approx((-0.35, 0, 0))  # l1how max: slice 0 is centred on plane 3.5
    about = open_volume(tmp_path / "a.ome.zarr").attributes
    assert about["weights"] == opened.weight_hash and about["factor"] == 8 and about["lattice"]["encoding"]["core"] == 3
    assert not list(tmp_path.glob("*partial*"))


def test_zarr_output_is_valid_ome(run, volume, tmp_path):
    yaozarrs = pytest.importorskip("yaozarrs")
    command("enhance", "--run", run, "--input", volume, "--output", tmp_path / "a.ome.zarr")
    command("encode", "--run", run, "--input", volume, "--output", tmp_path / "a.codes.zarr")
    for name in ("a.ome.zarr", "a.codes.zarr"):
        yaozarrs.validate_zarr_store(str(tmp_path / name))


def test_enhance_equals_encode_and_decode(run, opened, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = tmp_path / "in.codes.zarr"
    command("encode", "--run", run, "--input", volume, "--output", store)
    assert "bits per raw voxel" in caplog.text and "times smaller than the raw input" in caplog.text
    command("decode", "--codes", store, "--output", tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(read(tmp_path / "out.ome.zarr"), enhance(opened, volume))
    codes = CodeStore.open(store)
    assert codes.shape == (3, 5, 6) and codes.about["weights"] == opened.weight_hash
    quantizer = opened.model.G["quantize"]
    np.testing.assert_array_equal(codes.codebook()[0], quantizer.embedding.weight.numpy())
    assert json.loads((store / "codes" / "zarr.json").read_text())["data_type"] == "uint8"


def test_residual_codes_are_one_array_per_level(tmp_path, volume, caplog):
    caplog.set_level(logging.INFO)
    run = Run.load(make_run(tmp_path / "D" / "P", ldmyaml="vqresidual", codebook={"levels": 3}))
    store = tmp_path / "in.codes.zarr"
    command("encode", "--run", run.path, "--input", volume, "--output", store)
    names = ["codes", "codes_1", "codes_2"]
    assert [json.loads((store / name / "zarr.json").read_text())["data_type"] for name in names] == 3 * ["uint8"]
    pytest.importorskip("yaozarrs").validate_zarr_store(str(store))
    codes = CodeStore.open(store)
    books = run.model.G["quantize"].codebooks
    np.testing.assert_array_equal(codes.codebook(), [book.weight.numpy() for book in books])
    size = sum(codes.bytes_of(name) for name in (*names, "empty", "codebook"))
    assert f"{size} bytes on disc, {8 * size / (3 * 37 * 43):.4g} bits per raw voxel" in caplog.text
    np.testing.assert_array_equal(decode(store), enhance(run, volume))
    assert decode(store, grid="raw").shape == (3, 37, 43)
    read = codes.read((0, 3), (0, 5), (0, 6)).codes
    assert read.shape == (3, 5, 6, 3) and all(len(np.unique(read[..., level])) > 1 for level in range(3))
    caplog.clear()
    command("info", run.path)
    command("info", store)
    assert "256 codes in 3 level(s): 24 bit per 8x8 pixels, 0.375 bit per pixel" in caplog.text
    assert "3 slices of 5 x 6 codes: 256 codes in 3 level(s)" in caplog.text


def test_a_run_from_before_levels_and_norms_opens(run, opened, tmp_path, volume):
    old = tmp_path / "D" / "old"
    shutil.copytree(run, old)
    settings = json.loads((old / "0.json").read_text())
    for block, key in (("ddconfig", "norm"), ("ddconfig", "mid_attention"), ("codebook", "levels"), ("codebook", "grid")):
        del settings["autoencoder"][block][key]
    (old / "0.json").write_text(json.dumps(settings))
    np.testing.assert_array_equal(enhance(old, volume), enhance(opened, volume))


def test_gaussian_codes_give_the_same_volume(tmp_path):
    run = Run.load(make_run(tmp_path / "D" / "P", "ae0iso0tccut", hbranch="z"))
    values = grey((2, 20, 30))
    store = encode(run, values, tmp_path / "x.codes.zarr")
    np.testing.assert_array_equal(decode(store, run), enhance(run, values))


def test_a_region_is_the_crop_and_reads_only_its_codes(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.codes.CHUNK", (1, 4, 4))
    monkeypatch.setattr("inference.codes.UNIT", (4, 8, 8))
    options = Options(tile=16)
    store = encode(opened, grey((10, 100, 40)), tmp_path / "x.codes.zarr", options)
    whole = decode(store, opened, options=options)
    for chunk in (store.path / "codes" / "c").rglob("*"):
        if chunk.is_file() and (int(chunk.parts[-3]) > 7 or int(chunk.parts[-2]) > 2):
            chunk.write_bytes(b"damaged")
    region = (slice(3, 30), slice(10, 30), slice(0, 40))
    part = decode(store, opened, options=Options(tile=16, region=region))
    np.testing.assert_array_equal(part, whole[region])
    with pytest.raises(UserError, match="damaged"):
        decode(store, opened, options=options)


def test_raw_grid(opened, volume, tmp_path):
    store = encode(opened, volume, tmp_path / "x.codes.zarr")
    raw = decode(store, opened, grid="raw")
    assert raw.shape == (3, 37, 43) and raw.dtype == np.uint16
    region = (slice(1, 3), slice(5, 37), slice(11, 20))
    np.testing.assert_array_equal(decode(store, opened, grid="raw", options=Options(region=region)), raw[region])


def test_region_of_an_enhanced_volume_has_its_position(run, opened, volume, tmp_path):
    out = tmp_path / "r.ome.zarr"
    command("enhance", "--run", run, "--input", volume, "--output", out, "--region", "5:20,:,10:43")
    found = open_volume(out)
    np.testing.assert_array_equal(found[:], enhance(opened, volume)[5:20, :, 10:])
    assert found.translation_um == pytest.approx((-0.35 + 0.5, 0, 1.0))


def test_thinned_input_and_its_position(tmp_path):
    path = make_run(tmp_path / "D" / "P", dsp=2, cropz=8, l1how="dsp", voxel_um=[0.4, 0.1, 0.1])
    write_tiff(tmp_path / "in.tif", grey((5, 16, 16)), voxel_um=(0.4, 0.1, 0.1))
    command("enhance", "--run", path, "--input", tmp_path / "in.tif", "--output", tmp_path / "o.ome.zarr")
    found = open_volume(tmp_path / "o.ome.zarr")
    assert found.shape == (24, 16, 16)  # ceil(5 / 2) slices
    assert found.voxel_um == pytest.approx((0.1, 0.1, 0.1)) and found.translation_um == pytest.approx((-0.4, 0, 0))
    thinned = enhance(path, grey((5, 16, 16))[::2], Options(dsp=1))
    np.testing.assert_array_equal(found[:], thinned)
    write_tiff(tmp_path / "other.tif", grey((5, 16, 16)), voxel_um=(0.5, 0.1, 0.1))
    with pytest.raises(UserError, match=r"was trained on 0\.4 x 0\.1 x 0\.1"):
        command("enhance", "--run", path, "--input", tmp_path / "other.tif", "--output", tmp_path / "p.ome.zarr")


def test_two_channels(tmp_path):
    run = make_run(tmp_path / "D" / "P", tc=True, input_nc=2, output_nc=2, direction="a_b")
    write_tiff(tmp_path / "a.tif", grey((2, 16, 24), 1))
    write_tiff(tmp_path / "b.tif", grey((2, 16, 24), 2))
    out = tmp_path / "o.ome.zarr"
    command("enhance", "--run", run, "--input", tmp_path / "a.tif", tmp_path / "b.tif", "--output", out)
    expected = enhance(run, np.stack([grey((2, 16, 24), 1), grey((2, 16, 24), 2)]))
    assert expected.shape == (2, 16, 16, 24)
    for channel in range(2):
        np.testing.assert_array_equal(open_volume(out, channel=channel)[:], expected[channel])


def test_several_inputs(run, volume, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for name in "ab":
        shutil.copy(volume, folder / f"{name}.tif")
    command("enhance", "--run", run, "--input", folder, "--output", tmp_path / "out", "--format", ".tif")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tif", "b.tif"]


def test_trust(run, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "o.ome.zarr"
    base = ["enhance", "--run", run, "--input", volume, "--output", out]
    command(*base, "--consistency", "--uncertainty", "3", "--preview")
    planes = read(out).astype(np.float32).reshape(3, 8, 37, 43)
    difference = planes.max(axis=1) - grey((3, 37, 43))
    np.testing.assert_allclose(read(tmp_path / "o_consistency.ome.zarr"), difference, atol=0.05)
    errors = json.loads((tmp_path / "o_consistency.json").read_text())["channels"][0]
    assert errors["slices"][1]["rmse"] == pytest.approx(float(np.sqrt((difference[1] ** 2).mean())), rel=1e-3)
    spread = read(tmp_path / "o_uncertainty.ome.zarr")
    assert spread.dtype == np.float32 and spread.shape == (24, 37, 43) and spread.mean() > 1  # dropout
    assert (tmp_path / "o_preview.png").stat().st_size > 1000
    assert open_volume(tmp_path / "o_consistency.ome.zarr").translation_um == pytest.approx((0, 0, 0))  # the input's grid
    refused("exists; choose another name", *base, "--consistency", "--uncertainty", "3")
    (tmp_path / "o_uncertainty.ome.zarr").rename(tmp_path / "kept.ome.zarr")
    command(*base, "--consistency", "--uncertainty", "3")  # as after an interruption
    assert "o_consistency.ome.zarr is finished" in caplog.text
    np.testing.assert_array_equal(read(tmp_path / "o_uncertainty.ome.zarr"), read(tmp_path / "kept.ome.zarr"))


def test_seams_are_measured_recorded_and_few(run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_tiff(tmp_path / "in.tif", grey((2, 90, 130)))
    out = tmp_path / "o.ome.zarr"
    command("enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", out, "--tile", "32")
    attributes = open_volume(out).attributes
    assert attributes["lattice"]["encoding"]["core"] == 3 and attributes["lattice"]["decoding"]["core"] == [4, 4, 4]
    plane_pairs = read(out).astype(np.float32)
    borders = {"encoding": 24, "decoding": 32}
    for name, core in borders.items():
        change = [np.abs(np.diff(plane_pairs, axis=axis)).mean(axis=(0, 3 - axis)) for axis in (1, 2)]
        at = np.concatenate([c[core - 1 :: core] for c in change])
        elsewhere = np.concatenate([np.delete(c[7::8], np.s_[core // 8 - 1 :: core // 8]) for c in change])
        assert attributes["seams"][name] == pytest.approx(at.mean() / elsewhere.mean(), rel=0.15)  # some planes there, all here
    assert attributes["seams"]["decoding"] < 1.2 and attributes["seams"]["encoding"] < 1.5
    command("info", out)
    assert f"change {attributes['seams']['encoding']:.3g} times as much" in caplog.text


def test_orientations_where_there_is_no_dropout(tmp_path):
    run = make_run(tmp_path / "D" / "P", mc=False)
    write_tiff(tmp_path / "in.tif", grey((2, 16, 40)))
    command("enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / "o.ome.zarr", "--uncertainty", "8")
    spread = read(tmp_path / "o_uncertainty.ome.zarr")
    assert spread.shape == (16, 16, 40) and spread.std() > 0.1


def test_info(run, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command("info", run)
    command("info", volume)
    command("encode", "--run", run, "--input", volume, "--output", tmp_path / "x.codes.zarr")
    command("info", tmp_path / "x.codes.zarr")
    for text in ("D/P@3", "codes depend on the tile", "(3, 37, 43) uint16", "256 codes in 1 level(s)"):
        assert text in caplog.text


def test_dry_run_writes_nothing(run, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command("enhance", "--run", run, "--input", volume, "--output", tmp_path / "o.ome.zarr", "--dry-run")
    assert "tiles of" in caplog.text and "minutes" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif"]


# Interruption and several processes ----------------------------------------------------------------------------------


def arguments(run, source, output):
    return ["enhance", "--run", str(run), "--input", str(source), "--output", str(output), "--tile", "128"]


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.tif"
    write_tiff(path, grey((2, 140, 540)), voxel_um=VOXEL)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_same(run, large, tmp_path, world):
    command(*arguments(run, large, tmp_path / "one.ome.zarr"))
    # without the lone -- torchrun takes our --run for an abbreviation of an option of its own
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world), "--", str(ROOT / "infer.py")]
    subprocess.run([*launch, *arguments(run, large, tmp_path / "many.ome.zarr")], check=True, env=quiet(), timeout=300)
    np.testing.assert_array_equal(read(tmp_path / "many.ome.zarr"), read(tmp_path / "one.ome.zarr"))


@pytest.mark.slow
def test_tasks_of_srun_write_the_same(run, large, tmp_path):
    command(*arguments(run, large, tmp_path / "one.ome.zarr"))
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NODELIST": "localhost", **quiet()}
    words = [sys.executable, str(ROOT / "infer.py"), *arguments(run, large, tmp_path / "two.ome.zarr")]
    tasks = [subprocess.Popen(words, env={**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0]
    np.testing.assert_array_equal(read(tmp_path / "two.ome.zarr"), read(tmp_path / "one.ome.zarr"))
    assert open_volume(tmp_path / "two.ome.zarr").attributes["work"]["processes"] == 2


@pytest.mark.slow
def test_killed_and_started_again(run, large, tmp_path):
    command(*arguments(run, large, tmp_path / "one.ome.zarr"))
    output = tmp_path / "again.ome.zarr"
    process = subprocess.Popen([sys.executable, str(ROOT / "infer.py"), *arguments(run, large, output)], env=quiet())
    partial = output.with_name(output.name + ".partial.zarr")
    deadline = time.monotonic() + 200
    while not shards(partial) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in shards(partial)}
    assert before and not output.exists()
    command(*arguments(run, large, output))
    np.testing.assert_array_equal(read(output), read(tmp_path / "one.ome.zarr"))
    kept = [path for path, when in before.items() if (output / path.relative_to(partial)).stat().st_mtime_ns == when]
    assert len(kept) >= len(before) - 1  # the last one may not have been noted yet


def shards(partial):
    return [path for path in (partial / "0" / "c").rglob("*") if path.is_file()] if partial.exists() else []


def quiet():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


# What is refused -----------------------------------------------------------------------------------------------------


def refused(match, *words):
    with pytest.raises(UserError, match=match):
        command(*words)


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
    refused("is not within", *base, "--run", run, "--region", "0:99,:,:")
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
    base = ["enhance", "--run", run, "--input", tmp_path / "in.zarr", "--output"]
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
    put = ShardedArray._put

    def full(self, path, data, temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "o.ome.zarr"
    base = ["enhance", "--run", run, "--input", volume, "--output", out]
    monkeypatch.setattr(ShardedArray, "_put", lambda *given: writing_fails(full, *given))
    refused("the disc is full; make room and run the same command again", *base)
    assert not out.exists()
    monkeypatch.setattr(ShardedArray, "_put", put)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    refused("needs up to .* make room or write elsewhere", *base[:-1], tmp_path / "p.ome.zarr")
    command(*base)
    assert read(out).shape == (24, 37, 43)


def writing_fails(call, *given):
    with writing(given[1]):
        call(*given)


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
        capture_output=True, text=True, env=quiet(), cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "nothing.tif: no such file" in done.stderr and "Traceback" not in done.stderr
    assert not list(Path(tmp_path).iterdir())
