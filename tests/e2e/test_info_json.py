"""``infer.py info --json``: one line for programs, whatever it is about."""

import json
import re

import numpy as np
import tifffile
from infer_commands import command, refused
from infer_runs import grey

from tests.forks import script
from volumes.open import open_volume
from writing.write import write_tiff


def info(capsys, path):
    capsys.readouterr()
    command("info", "--json", path)
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_of_a_run_a_store_and_volumes(run, opened, volume, tmp_path, capsys):
    found = info(capsys, run)
    assert (found["kind"], found["weights"], found["epochs"], found["epoch"]) == ("run", opened.weight_hash, [3], 3)
    assert found["settings"]["cropsize"] == 32 and found["dataset"]["nm"] == "11" and found["parameters"]["net_g"] > 0
    command("encode", "--run", run, "--input", volume, "--output", tmp_path / "a.codes.zarr")
    found = info(capsys, tmp_path / "a.codes.zarr")
    assert (found["kind"], found["record"]["shape"]) == ("codes", [3, 5, 6]) and found["bytes"] > 0
    command("enhance", "--run", run, "--input", volume, "--output", tmp_path / "a.ome.zarr")
    found = info(capsys, tmp_path / "a.ome.zarr")
    made = open_volume(tmp_path / "a.ome.zarr")
    assert (found["kind"], found["shape"], found["dtype"], found["channels"]) == ("volume", [24, 37, 43], "uint16", 1)
    assert found["voxel_um"] == list(made.voxel_um) and found["translation_um"] == list(made.translation_um)
    assert found["record"]["weights"] == opened.weight_hash and found["record"]["place"]["step"] == [1 / 8, 1, 1]
    write_tiff(tmp_path / "plain.tif", grey((3, 8, 9)))
    found = info(capsys, tmp_path / "plain.tif")
    assert (found["voxel_um"], found["space"], found["record"]) == (None, None, {})


def test_remarks_go_elsewhere(tmp_path):
    description = {"axes": "ZYX", "PhysicalSizeX": 0.0, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((2, 8, 9), np.uint8), metadata=description)
    done = script(tmp_path, "infer.py", "info", "--json", tmp_path / "a.ome.tif")
    assert json.loads(done.stdout)["shape"] == [2, 8, 9] and "is no length" in done.stderr


def test_what_is_not_there(tmp_path):
    refused("no such file or folder", "info", "--json", tmp_path / "nothing")


def test_other_programs_are_told(run, volume, tmp_path, caplog):
    caplog.set_level("INFO")
    command("encode", "--run", run, "--input", volume, "--output", tmp_path / "a b.codes.zarr")
    command("decode", "--codes", tmp_path / "a b.codes.zarr", "--output", tmp_path / "a.ome.zarr")
    told = {}
    for path in (volume, tmp_path / "a.ome.zarr", tmp_path / "a b.codes.zarr", run):
        caplog.clear()
        command("info", path)
        told[path] = caplog.text
    assert f"napari: napari {volume}\n" in told[volume] and "Bio-Formats" in told[volume]
    zarr = told[tmp_path / "a.ome.zarr"]
    assert "--plugin napari-ome-zarr" in zarr and "OME-NGFF" in zarr and f"ome_zarr view {tmp_path / 'a.ome.zarr'} " in zarr
    codes = told[tmp_path / "a b.codes.zarr"]
    assert re.search(rf"infer(\.py)? view '{tmp_path / 'a b.codes.zarr'}'", codes) and "napari --plugin isoscopexx" in codes
    assert f"decode --codes '{tmp_path / 'a b.codes.zarr'}' --output 'a b.codes.ome.zarr'" in codes
    assert "view" not in told[run]
