"""The commands of infer.py: files in, files and codes out."""

import json
import logging
import os
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from infer_commands import VOXEL, command, read, refused
from infer_runs import grey, make_run

import evaluate
import infer
from codes.store import CodeStore
from inference import Options, Run, decode, encode, enhance
from tests.walk import stays, walk
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff


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
    assert about["weights"] == opened.weight_hash and about["factor"] == 8 and about["lattice"]["encoding"]["core"] == [3, 3]
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
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    assert f"{size} bytes on disc, {8 * size / (3 * 37 * 43):.4g} bits per raw voxel" in caplog.text
    np.testing.assert_array_equal(decode(store), enhance(run, volume))
    assert decode(store, grid="raw").shape == (3, 37, 43)
    read = codes.read((slice(0, 3), slice(0, 5), slice(0, 6))).codes
    assert read.shape == (3, 5, 6, 3) and all(len(np.unique(read[..., level])) > 1 for level in range(3))
    caplog.clear()
    command("info", run.path)
    command("info", store)
    assert "256 codes in 3 level(s): 24 bit per 8x8 pixels, 0.375 bit per pixel" in caplog.text
    assert "3 slices of 5 x 6 codes: 256 codes in 3 level(s)" in caplog.text
    assert "None" not in caplog.text


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
    monkeypatch.setattr("codes.store.CODED", (1, 4, 4))
    monkeypatch.setattr("codes.store.UNIT", (1, 4, 4))
    monkeypatch.setattr("codes.store.CHUNK", (1, 4, 4))
    options = Options(tile=16)
    store = encode(opened, grey((10, 100, 40)), tmp_path / "x.codes.zarr", options)
    whole = decode(store, opened, options=options)
    for chunk in (store.path / "codes" / "c").rglob("*"):
        if chunk.is_file() and (int(chunk.parts[-3]) > 7 or int(chunk.parts[-2]) > 2):
            chunk.write_bytes(b"damaged")
    region = (slice(3, 30), slice(10, 30), slice(0, 40))
    part = decode(store.path, opened, options=Options(tile=16, region=region))
    np.testing.assert_array_equal(part, whole[region])
    with pytest.raises(UserError, match="damaged"):
        decode(store.path, opened, options=options)


def test_raw_grid(opened, volume, tmp_path):
    store = encode(opened, volume, tmp_path / "x.codes.zarr")
    raw = decode(store, opened, grid="raw")
    assert raw.shape == (3, 37, 43) and raw.dtype == np.uint16
    region = (slice(1, 3), slice(5, 37), slice(11, 20))
    np.testing.assert_array_equal(decode(store, opened, grid="raw", options=Options(region=region)), raw[region])


def test_networks_compute_by_algorithms_that_repeat_every_bit(opened, volume, tmp_path):
    """As far as a GPU has them, and with whole mantissas; what was set before is set again."""

    def set_for_gpus(*_):
        return torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision

    before, seen = set_for_gpus(), []
    hooks = [part.register_forward_pre_hook(lambda *_: seen.append(set_for_gpus())) for part in opened.model.G.values()]
    decode(encode(opened, volume, tmp_path / "in.codes.zarr"), opened)
    enhance(opened, volume)
    decode(tmp_path / "in.codes.zarr", opened, grid="raw")
    for hook in hooks:
        hook.remove()
    assert len(seen) > 8 and set(seen) == {(True, "ieee")} and set_for_gpus() == before != (True, "ieee")


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
    for channel, shown in enumerate((("a", "FF00FF"), ("b", "00FF00"))):
        made = open_volume(out, channel=channel)
        np.testing.assert_array_equal(made[:], expected[channel])
        assert (made.channel_name, made.colour) == shown


def test_names_and_colours_of_channels_are_kept(tmp_path, caplog):
    """From a file of two, by any command; one of three is refused where nobody says which two."""
    caplog.set_level(logging.INFO)
    run = make_run(tmp_path / "D" / "P", tc=True, input_nc=2, output_nc=2, direction="a_b")
    values, shown = (
        np.stack([grey((2, 16, 24), 1), grey((2, 16, 24), 2)]),
        {"Name": ["DAPI", "actin"], "Color": [65535, 16711935]},
    )
    tifffile.imwrite(tmp_path / "two.ome.tif", values, metadata={"axes": "CZYX", "Channel": shown}, photometric="minisblack")
    given = ("--run", run, "--input", tmp_path / "two.ome.tif", "--output")
    command("enhance", *given, tmp_path / "o.ome.tif", "--consistency", "--precision", "32")
    assert "consistency of DAPI: " in caplog.text and "consistency of actin: " in caplog.text and "--channel 0" in caplog.text
    command("encode", *given, tmp_path / "o.codes.zarr")
    command("decode", "--codes", tmp_path / "o.codes.zarr", "--output", tmp_path / "o.ome.zarr")
    for name in ("o.ome.tif", "o_consistency.ome.tif", "o.ome.zarr"):
        found = [open_volume(tmp_path / name, channel=channel) for channel in range(2)]
        assert [(one.channel_name, one.colour) for one in found] == [("DAPI", "0000FF"), ("actin", "00FF00")]
    np.testing.assert_array_equal(enhance(run, tmp_path / "two.ome.tif"), enhance(run, values))
    sizes = [line for line in caplog.text.splitlines() if "bits per raw voxel" in line]
    assert sizes and all("per raw voxel and channel" in line for line in sizes)
    three = np.concatenate([values, values[:1] + 20000])
    tifffile.imwrite(tmp_path / "three.tif", three, metadata={"axes": "CZYX"}, ome=True, photometric="minisblack")
    base = ("enhance", "--run", run, "--output", tmp_path / "x.tif", "--input")
    refused(r"three.tif has 3 channel\(s\), 2 are needed; say which, .* --channel 0 1", *base, tmp_path / "three.tif")
    write_tiff(tmp_path / "one.tif", grey((2, 16, 24), 1))
    refused("has 1 channel.*give a file for each", *base, tmp_path / "one.tif")


@pytest.mark.parametrize(("verb", "suffix"), [("enhance", ".tif"), ("enhance", ".nii.gz"), ("encode", ".codes.zarr")])
def test_several_inputs_of_which_some_were_done(run, volume, tmp_path, caplog, verb, suffix):
    """A command on several volumes that was stopped goes on with those that are not finished."""
    caplog.set_level(logging.INFO)
    folder, one = tmp_path / "volumes", tmp_path / "volumes" / "a.tif"
    folder.mkdir()
    for number, name in enumerate("abc"):
        write_tiff(folder / f"{name}.tif", grey((2, 24, 32), number), voxel_um=VOXEL)
    base = [verb, "--run", run, "--output", tmp_path / "out", *(["--format", suffix] if verb == "enhance" else [])]
    command(*base, "--input", one, folder / "b.tif")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    command(*base, "--input", folder)
    after = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert after.keys() - before.keys() == {f"c{suffix}"} and before.items() <= after.items()
    assert f"a{suffix} is finished; going on with the rest" in caplog.text
    refused(f"a{suffix} exists", *base, "--input", folder, "--normalise", "volume")
    os.utime(one)  # another volume, as far as anybody knows
    refused(f"a{suffix} exists", *base, "--input", folder)


def test_info(run, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command("info", run)
    command("info", volume)
    command("encode", "--run", run, "--input", volume, "--output", tmp_path / "x.codes.zarr")
    command("info", tmp_path / "x.codes.zarr")
    for text in ("D/P@3", "codes depend on the tile", "(3, 37, 43) uint16", "256 codes in 1 level(s)"):
        assert text in caplog.text


def test_the_end_says_what_to_do_next(run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path, out, store = tmp_path / "in it.tif", tmp_path / "iso.ome.tif", tmp_path / "a.codes.zarr"
    write_tiff(path, grey((5, 64, 72)), voxel_um=VOXEL)

    def said(*words):
        caplog.clear()
        command(*words)
        return [shlex.split(line) for text in caplog.messages for line in text.splitlines() if line.startswith("  ")]

    look, judge = said("enhance", "--run", run, "--input", path, "--output", out)
    assert look[-3:] == ["view", str(path), str(out)] and Path(look[-4]).stem == "infer"
    evaluate.main(judge[judge.index("--reconstruction") :])
    assert (tmp_path / "iso_report" / "report.html").is_file()
    (look,) = said("enhance", "--run", run, "--input", path, "--output", out, "--overwrite", "--region", "0:8,:,:")
    assert look[-2:] == [str(path), str(out)]
    (look,) = said("encode", "--run", run, "--input", path, "--output", store)
    assert look[-2:] == [str(path), str(store)]
    (look,) = said("decode", "--codes", store, "--output", tmp_path / "back.tif")
    assert look[-2:] == ["view", str(tmp_path / "back.tif")]


def test_dry_run_writes_nothing(run, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command("enhance", "--run", run, "--input", volume, "--output", tmp_path / "o.ome.zarr", "--dry-run")
    for said in ("tiles of", "time: about", "B are free", "memory: "):
        assert said in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif"]


def test_few_steps_to_the_first_network(run, volume, tmp_path):
    words = ["enhance", "--run", run, "--input", volume, "--device", "cpu", "--overwrite", "--output", tmp_path / "a.ome.zarr"]

    def enhanced():
        infer.main(list(map(str, words)))

    calls, visited = walk(enhanced, "SliceEncoder.compute", chain=True), walk(enhanced, "SliceEncoder.compute")
    assert len(calls) == len({step.split()[0] for step in calls}) <= 4, "\n".join(calls)
    assert len(visited) <= 58, "\n".join(visited)
    for until, small, most in (("SliceEncoder.compute", 6, 12), ("TiledField.begin", 3, 11)):
        stayed = stays(enhanced, until, small=small)
        assert len(stayed) <= most, "\n".join(stayed)
        assert max(Counter(step.split()[0] for step in stayed).values()) <= 2, "\n".join(stayed)
