"""No command writes over what it reads, under whatever name: the data are there afterwards, byte for byte."""

import os
import shutil

import numpy as np
import pytest
import tifffile
import zarr
from infer_commands import command, refused
from infer_runs import grey

import evaluate
import prepare
from inference import encode
from utils.errors import UserError
from utils.files import refuse_overlap

REFUSAL = r"is, holds or lies in .*an input is never replaced, also not with --overwrite"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def places(tmp_path):
    """A file with other names, a folder of slices, a folder of links to slices, a Zarr array."""
    tifffile.imwrite(tmp_path / "a.tif", grey((5, 32, 32)))
    (tmp_path / "soft.tif").symlink_to(tmp_path / "a.tif")
    os.link(tmp_path / "a.tif", tmp_path / "hard.tif")
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    for name in ("slices", "links.zarr/inside"):
        (tmp_path / name).mkdir(parents=True)
    for z, plane in enumerate(grey((5, 32, 32))):
        tifffile.imwrite(tmp_path / "slices" / f"{z}.tif", plane)
        (tmp_path / "links.zarr" / "inside" / f"{z}.tif").symlink_to(tmp_path / "slices" / f"{z}.tif")
    zarr.create_array(tmp_path / "v.zarr", data=grey((5, 32, 32)))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("a.tif", "a.tif"),
        ("a.tif", "soft.tif"),
        ("soft.tif", "a.tif"),
        ("soft.tif", "soft.tif"),
        ("a.tif", "hard.tif"),
        ("a.tif", "folder/a.tif"),
        ("a.tif", "slices/../a.tif"),
        ("slices", "slices/2.tif"),
        ("slices", "slices/iso.tif"),
        ("slices", "folder/slices/iso.ome.zarr"),
        ("links.zarr/inside", "slices/3.tif"),
        ("links.zarr/inside", "links.zarr"),
        ("v.zarr", "v.zarr"),
        ("v.zarr", "folder/v.zarr"),
        ("v.zarr", "v.zarr/iso.ome.zarr"),
    ],
)
def test_an_input_is_not_an_output(run, places, given, output):
    before = contents(places)
    refused(REFUSAL, "enhance", "--run", run, "--input", places / given, "--output", places / output, "--overwrite")
    assert contents(places) == before


def test_a_relative_name_and_the_original_of_a_slice_that_is_a_link(run, places, monkeypatch):
    monkeypatch.chdir(places / "slices")
    before = contents(places)
    refused(REFUSAL, "enhance", "--run", run, "--input", "../a.tif", "--output", places / "a.tif", "--overwrite")
    assert contents(places) == before


@pytest.mark.parametrize(
    ("beside", "options"),
    [
        ("o_consistency.ome.tif", ["--consistency"]),
        ("o_uncertainty.ome.tif", ["--uncertainty", "2"]),
        ("o_preview.png", ["--preview"]),
    ],
)
def test_what_is_written_beside_an_output_is_no_input(run, places, beside, options):
    name = places / beside
    name.symlink_to(places / "a.tif") if beside.endswith("png") else shutil.copy(places / "a.tif", name)
    before = contents(places)
    given = places / "a.tif" if beside.endswith("png") else name
    words = ["enhance", "--run", run, "--input", given, "--output", places / "o.ome.tif", "--overwrite", *options]
    refused(REFUSAL, *words)
    assert contents(places) == before


def test_no_output_of_several_is_one_of_the_inputs(run, places):
    shutil.copy(places / "a.tif", places / "b.ome.tif")
    before = contents(places)
    both = ["--input", places / "a.tif", places / "b.ome.tif", "--output", places, "--format", ".ome.tif"]
    refused(REFUSAL, "enhance", "--run", run, *both, "--overwrite")
    assert contents(places) == before


def test_codes_and_weights_are_not_replaced(run, places):
    store = places / "a.codes.zarr"
    encode(run, places / "a.tif", store)
    copied = places / "run.zarr"
    shutil.copytree(run, copied)
    before = contents(places)
    refused(REFUSAL, "decode", "--codes", store, "--output", store, "--overwrite")
    refused(REFUSAL, "encode", "--run", run, "--input", places / "v.zarr", "--output", places / "v.zarr", "--overwrite")
    refused(REFUSAL, "enhance", "--run", copied, "--input", places / "a.tif", "--output", copied, "--overwrite")
    assert contents(places) == before
    command("decode", "--codes", store, "--output", places / "beside.tif")  # the same folder is no overlap


def test_prepare_replaces_no_source(places, capsys):
    def called(given, *more):
        words = ["volumes", "--data_root", str(places), "--dataset", "set", "--direction", "x", "--val", "0", *more]
        prepare.main([*words, "--input", str(given)])

    called(places / "a.tif")
    before = contents(places)
    made = next((places / "set" / "train" / "x").glob("*.tif"))
    for given in (made, places / "folder" / "set" / "train" / "x"):
        with pytest.raises(SystemExit):
            called(given, "--overwrite")
        assert "an input is never replaced" in capsys.readouterr().err
        assert contents(places) == before
    called(places / "a.tif", "--overwrite")


def test_an_evaluation_replaces_no_volume(places, capsys):
    folder = places / "report"
    folder.mkdir()
    (folder / "planes.png").symlink_to(places / "a.tif")
    (folder / "compression.json").symlink_to(places / "a.tif")
    before = contents(places)
    for words in (["--truth", places / "a.tif", "--thin", "2"], ["compress", "--run", places, "--input", places / "a.tif"]):
        with pytest.raises(SystemExit):
            evaluate.main([*map(str, words), "--output", str(folder), "--overwrite"])
        assert "an input is never replaced" in capsys.readouterr().err
    assert contents(places) == before


def test_what_has_nothing_to_do_with_an_input_is_written(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    refuse_overlap([tmp_path / "b.npy", tmp_path / "a.npy.tif", tmp_path / "sub" / "c"], [tmp_path / "a.npy"])
    refuse_overlap([tmp_path / "b.npy"], [tmp_path / "not there", tmp_path / "a.npy"])


def test_a_link_to_itself_among_the_inputs_is_no_crash(tmp_path):
    (tmp_path / "in.zarr").mkdir()
    (tmp_path / "in.zarr" / "0.0.0").symlink_to("0.0.0")
    refuse_overlap([tmp_path / "out.tif"], [tmp_path / "in.zarr"])
    with pytest.raises(UserError, match="is, holds or lies in"):
        refuse_overlap([tmp_path / "in.zarr" / "out.tif"], [tmp_path / "in.zarr"])
