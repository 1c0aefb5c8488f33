"""A volume whose thick axis is x or y: voxel for voxel the output is that of the volume with z thick, turned, in its place."""

import json

import nibabel
import numpy as np
import pytest
from infer_commands import command, read, refused
from infer_runs import grey, make_run

from codes.store import CodeStore
from inference import Options, decode, encode, enhance
from volumes.open import open_volume
from writing.target import VolumeTarget
from writing.target_plan import plan_target

VOXEL = (2.0, 0.25, 0.25)  # z, y, x in µm, of the volume with z thick
PLACE = (7.0, 11.0, -5.0)
AXES = {"x": (2, 1, 0), "y": (1, 0, 2)}
KINDS = {
    "codes": {},
    "slices as codes": {"ldmyaml": "vqlocal"},
    "restored": {"model": "lateral", "cropz": 2, "uprate": 8.0, "blocks": 1},
    "blended": {"model": "IsoREF", "nocyc": True},
}


def written(path, values, axes=(0, 1, 2)):
    """An OME-Zarr or OME-TIFF of values (Z, Y, X) whose axes are stored in another order."""
    voxel, place = ([side[axis] for axis in axes] for side in (VOXEL, PLACE))
    values = np.ascontiguousarray(values.transpose(axes))
    plan = plan_target(path, shape=values.shape, dtype=values.dtype, voxel_um=voxel, translation_um=place)
    target = VolumeTarget(path, plan)
    for box in target.boxes:
        target.write_region(box, values[box])
    target.finish()
    return path


@pytest.fixture(params=KINDS)
def run(request, tmp_path):
    return make_run(tmp_path / "D" / "P", voxel_um=VOXEL, **KINDS[request.param])


@pytest.mark.parametrize("thick", AXES)
def test_voxel_for_voxel(run, thick, tmp_path):
    values, axes = grey((3, 40, 56)), AXES[thick]
    expected = written(tmp_path / "z.ome.zarr", values)
    turned = written(tmp_path / "t.ome.zarr", values, axes)
    command("enhance", "--run", run, "--input", expected, "--output", tmp_path / "oz.ome.zarr", "--consistency")
    words = ["enhance", "--run", run, "--input", turned, "--thick", thick]
    command(*words, "--output", tmp_path / "ot.ome.zarr", "--consistency")
    for name in ("o{}.ome.zarr", "o{}_consistency.ome.zarr"):
        whole, back = open_volume(tmp_path / name.format("z")), open_volume(tmp_path / name.format("t"))
        np.testing.assert_array_equal(back[:], whole[:].transpose(axes))
        assert whole[:].std() > 0
        for one, other in ((whole.voxel_um, back.voxel_um), (whole.translation_um, back.translation_um)):
            assert other == pytest.approx([one[axis] for axis in axes])
        assert back.attributes["thick"] == thick and back.attributes["place"] == whole.attributes["place"]
    assert len({(tmp_path / f"o{k}_consistency.json").read_text() for k in "zt"}) == 1
    box = (slice(3, 17), slice(8, 31), slice(5, 22))
    region = ",".join(f"{box[axis].start}:{box[axis].stop}" for axis in axes)
    command(*words, "--output", tmp_path / "part.ome.tif", "--region", region)
    part = open_volume(tmp_path / "part.ome.tif")
    np.testing.assert_array_equal(part[:], read(tmp_path / "oz.ome.zarr")[box].transpose(axes))
    first = open_volume(tmp_path / "oz.ome.zarr").translation_um
    there = [first[axis] + 0.25 * box[axis].start for axis in axes]
    assert part.translation_um == pytest.approx(there)


@pytest.mark.parametrize("thick", AXES)
def test_codes_know_the_thick_axis(thick, tmp_path, caplog):
    run, values, axes = make_run(tmp_path / "D" / "P", voxel_um=VOXEL), grey((3, 40, 56)), AXES[thick]
    source = written(tmp_path / "t.ome.tif", values, axes)
    command("encode", "--run", run, "--input", source, "--output", tmp_path / "t.codes.zarr", "--thick", thick)
    for grid in ("isotropic", "raw"):
        command("decode", "--codes", tmp_path / "t.codes.zarr", "--output", tmp_path / f"{grid}.ome.zarr", "--grid", grid)
        store = encode(written(tmp_path / f"z_{grid}.ome.zarr", values), run, tmp_path / f"z_{grid}.codes.zarr")
        np.testing.assert_array_equal(read(tmp_path / f"{grid}.ome.zarr"), decode(store, grid=grid).transpose(axes))
        box = (slice(0, 3), slice(1, 3), slice(2, 3))
        part = decode(CodeStore.open(tmp_path / "t.codes.zarr"), grid=grid, options=Options(region=box))
        np.testing.assert_array_equal(part, read(tmp_path / f"{grid}.ome.zarr")[box])
    caplog.set_level("INFO")
    for name in ("t.codes.zarr", "raw.ome.zarr"):
        command("info", tmp_path / name)
        assert f"thick axis is {thick}" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("thick", AXES)
def test_a_scanner_sees_the_output_where_the_input_was(thick, tmp_path):
    run, values, axes = make_run(tmp_path / "D" / "P", voxel_um=VOXEL), grey((3, 40, 48)), AXES[thick]
    sizes = np.array([VOXEL[axis] for axis in axes])[::-1]
    affine = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, -1, -30], [0, 0, 0, 1.0]])  # turned and mirrored
    affine[:3, :3] *= sizes
    image = nibabel.Nifti1Image(values.transpose(axes).T, None)
    image.set_sform(affine, 2)
    image.set_qform(affine, 3)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "in.nii.gz")
    command("enhance", "--run", run, "--input", tmp_path / "in.nii.gz", "--output", tmp_path / "o.nii.gz", "--thick", thick)
    made = nibabel.load(tmp_path / "o.nii.gz")
    assert made.shape == tuple(np.array((24, 40, 48))[list(axes)])[::-1]
    section, plane = np.zeros(3), np.zeros(3)
    section["xyz".index(thick)], plane["xyz".index(thick)] = 2, 2 * 8 + 3.5
    for form in (made.get_sform(), made.get_qform()):
        np.testing.assert_allclose(1000 * (form @ [*plane, 1])[:3], (affine @ [*section, 1])[:3], atol=1e-3)


def test_arrays_and_mistakes(tmp_path):
    run, values = make_run(tmp_path / "D" / "P", voxel_um=VOXEL), grey((3, 40, 56))
    turned = np.ascontiguousarray(values.transpose(2, 1, 0))
    found = enhance(turned, run, Options(thick="x", voxel_um=VOXEL[::-1]))
    np.testing.assert_array_equal(found, enhance(values, run).transpose(2, 1, 0))
    source, words = written(tmp_path / "t.ome.tif", values, (2, 1, 0)), ("--output", tmp_path / "o.ome.tif")
    refused("its thick axis is x: say --thick x", "enhance", "--run", run, "--input", source, *words)
    refused("--thick y reads as", "enhance", "--run", run, "--input", source, *words, "--thick", "y")
    refused("invalid choice: 'q'", "enhance", "--run", run, "--input", source, *words, "--thick", "q")


def test_the_thick_axis_of_the_prepared_training_data_is_that_of_the_input(tmp_path, caplog):
    caplog.set_level("INFO")
    run, values = make_run(tmp_path / "D" / "P"), grey((3, 40, 56))
    record = json.loads((run / "dataset.json").read_text())
    transform = {"normalisation": "00", "low": None, "high": None}
    record["dataset"] = {"directions": {"x3d0": {"transform": transform, "settings": {"thick": "x"}}}}
    (run / "dataset.json").write_text(json.dumps(record))
    expected = enhance(values, run, Options(thick="z"))
    np.testing.assert_array_equal(enhance(values.transpose(2, 1, 0), run), expected.transpose(2, 1, 0))
    assert "prepared with --thick x" in caplog.text
    np.testing.assert_array_equal(enhance(values, run, Options(prepared=True)), expected)
