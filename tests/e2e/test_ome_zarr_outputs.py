"""Every kind of OME-Zarr that commands write is valid for two validators, and opens in napari's reader."""

import json
import os
import subprocess

import numpy as np
import ome_zarr_models
import pytest
import yaozarrs
import zarr
from infer_commands import VOXEL, command
from infer_runs import grey, make_run

from sharing.exporting import export
from volumes.open import open_volume
from writing.write import write_tiff

READ_BY_NAPARI = """
import json, sys
import numpy as np
from napari_ome_zarr._reader import napari_get_reader
print("\\n" + json.dumps([
    {"kind": kind, "shapes": [list(level.shape) for level in data], "scale": list(map(float, about["scale"])),
     "units": about.get("units"), "channels": about.get("channel_axis"), "sum": int(np.asarray(data[0]).sum())}
    for data, about, kind in napari_get_reader(sys.argv[1])(sys.argv[1])
]))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Folders by the name of what they hold."""
    folder = tmp_path_factory.mktemp("outputs")
    one = make_run(folder / "runs" / "one")
    two = make_run(folder / "runs" / "two", direction="x3d0_x3d1", tc=True, input_nc=2, output_nc=2, mc=True)
    residual = make_run(folder / "runs" / "residual", ldmyaml="vqresidual", codebook={"levels": 2})
    gaussian = make_run(folder / "runs" / "gaussian", "ae0iso0tccut", hbranch="z")
    for name, voxel in (("in", VOXEL), ("unsized", None)):
        write_tiff(folder / f"{name}.tif", grey((3, 37, 43)), voxel_um=voxel)
    write_tiff(folder / "other.tif", grey((3, 37, 43), seed=1), voxel_um=VOXEL)
    given = ("--input", folder / "in.tif")

    def enhanced(name, run, *words):
        command("enhance", "--run", run, "--output", folder / name, *words)

    enhanced("a.ome.zarr", one, *given, "--uncertainty", "2", "--consistency")
    enhanced("two.ome.zarr", two, *given, folder / "other.tif", "--uncertainty", "2")
    enhanced("unsized.ome.zarr", one, "--input", folder / "unsized.tif")
    enhanced("float.ome.zarr", one, *given, "--dtype", "float32", "--region", "3:20,1:,4:19")
    for name, run in (("one", one), ("residual", residual), ("gaussian", gaussian)):
        command("encode", "--run", run, *given, "--output", folder / f"{name}.codes.zarr")
    for grid in ("raw", "isotropic"):
        command("decode", "--codes", folder / "one.codes.zarr", "--output", folder / f"{grid}.ome.zarr", "--grid", grid)
    export(folder / "one.codes.zarr", folder / "exported")
    found = {path.name: path for path in folder.glob("*.zarr")} | {"exported": folder / "exported" / "codes.zarr"}
    assert len(found) == 13, sorted(found)
    return found


def test_outputs_are_valid(outputs):
    for path in outputs.values():
        yaozarrs.validate_zarr_store(str(path))
        image = ome_zarr_models.open_ome_zarr(zarr.open_group(str(path), mode="r"))
        assert isinstance(image, ome_zarr_models.v05.image.Image), path


@pytest.mark.slow
@pytest.mark.skipif("ISOSCOPE_NAPARI" not in os.environ, reason="ISOSCOPE_NAPARI names no Python that has napari-ome-zarr")
def test_napari_opens_outputs_headless(outputs):
    """Scales, units and voxels arrive; napari-ome-zarr 0.10 reads no translation of OME-Zarr 0.5."""
    for name, path in outputs.items():
        words = [os.environ["ISOSCOPE_NAPARI"], "-c", READ_BY_NAPARI, str(path)]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "QT_QPA_PLATFORM": "offscreen"})
        assert done.returncode == 0, done.stderr
        [layer] = json.loads(done.stdout.splitlines()[-1])
        assert layer["kind"] == "image"
        if name.endswith(".ome.zarr"):
            volume = open_volume(path, channel=0)
            assert layer["shapes"][0][-3:] == list(volume.shape)
            assert layer["scale"][-3:] == pytest.approx(volume.voxel_um or (1, 1, 1))
            assert layer["units"] == (["micrometer"] * 3 if volume.voxel_um else None)
            if volume.channels == 1 and volume.dtype.kind == "u":
                assert layer["sum"] == int(np.asarray(volume[:]).sum())
