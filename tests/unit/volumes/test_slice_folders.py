"""Folders of 2-D slices, and the volumes that the inputs of a command stand for."""

import numpy as np
import pytest
import tifffile
from format_volumes import SHAPE, VALUES, check
from PIL import Image
from target_volumes import write_volume

from utils.errors import UserError
from volumes.open import expand_inputs, open_volume


def save_slices(folder, values=VALUES, name="slice_{}.tif", start=8, **options):
    folder.mkdir(exist_ok=True)
    for k, plane in enumerate(values):
        path = folder / name.format(k + start)
        if path.suffix == ".png":
            Image.fromarray(plane).save(path)
        else:
            tifffile.imwrite(path, plane, **options)
    return folder


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}, {"imagej": True}, {"ome": True}])
def test_slices_are_sorted_as_people_do(options, tmp_path):
    folder = save_slices(tmp_path / "s", **options)  # slice_8 … slice_14
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.tif").touch()
    volume = open_volume(folder)
    check(volume)
    assert volume.voxel_um is None


def test_png_slices(tmp_path):
    check(open_volume(save_slices(tmp_path / "a", name="z{}_488nm.png")))
    check(open_volume(save_slices(tmp_path / "b", (VALUES >> 8).astype(np.uint8), "{}.png")), (VALUES >> 8).astype(np.uint8))


def test_slices_with_channels(tmp_path):
    values = np.stack([VALUES, VALUES[::-1]], 1)
    save_slices(tmp_path / "s", values, imagej=True, metadata={"axes": "CYX"})
    check(open_volume(tmp_path / "s", channel=1), VALUES[::-1])
    with pytest.raises(UserError, match=r"slice_8\.tif: 2 channels.*choose one"):
        open_volume(tmp_path / "s")


def drop(name):
    return lambda folder: (folder / name).unlink()


SLICE_FAULTS = {
    "gap": (drop("slice_11.tif"), r"missing after slice_10\.tif: 11 \(numbers advance by 2"),
    "projection": (
        lambda f: tifffile.imwrite(f / "MAX_slice.tif", VALUES[0]),
        r"MAX_slice\.tif \(of 8 images\) not numbered",
    ),
    "flat field": (lambda f: tifffile.imwrite(f / "flatfield.tif", VALUES[0]), r"flatfield\.tif .* the slices \(slice_8\.tif\)"),
    "another image": (lambda f: tifffile.imwrite(f / "dark_15.tif", VALUES[0]), r"dark_15\.tif \(of 8 images\) not numbered"),
    "projection and gap": (
        lambda f: [drop("slice_11.tif")(f), tifffile.imwrite(f / "MAX.tif", VALUES[0])],
        r"MAX\.tif .* not numbered",
    ),
    "shape": (lambda f: tifffile.imwrite(f / "slice_9.tif", VALUES[0, :44]), r"slice_9\.tif .* unlike slice_8\.tif"),
    "dtype": (lambda f: tifffile.imwrite(f / "slice_9.tif", VALUES[0].astype("u1")), r"slice_9\.tif .* unlike slice_8\.tif"),
    "stack": (lambda f: tifffile.imwrite(f / "slice_9.tif", VALUES), r"slice_9\.tif is a stack of 7 planes"),
    "RGB": (
        lambda f: tifffile.imwrite(f / "slice_9.tif", np.zeros((45, 53, 3), "u1"), photometric="rgb"),
        r"slice_9\.tif: an RGB",
    ),
    "damaged": (lambda f: (f / "slice_9.tif").write_bytes(b"II*\0junk"), r"slice_9\.tif: "),
    "two kinds": (lambda f: Image.fromarray(VALUES[0]).save(f / "slice_7.png"), "PNG and TIFF"),
    "two series": (lambda f: save_slices(f, name="other_{}.tif"), "have one number"),
    "two numbers": (lambda f: save_slices(f, name="slice_{}.tif".replace("{}", "9{}")), "missing after"),
    "two channels": (
        lambda f: [drop(p.name)(f) for p in f.glob("*")] + [save_slices(f, name=f"c{c}_z{{}}.tif") for c in (0, 1)],
        "two numbers vary",
    ),
    "empty": (lambda f: [p.unlink() for p in f.glob("*")], "not a file, and a folder without slices"),
    "color PNG": (
        lambda f: [drop(p.name)(f) for p in f.glob("*")] + [Image.new("RGB", (5, 6)).save(f / "a.png")],
        "PNG of mode RGB",
    ),
}


@pytest.mark.parametrize("fault", SLICE_FAULTS)
def test_folders_that_are_not_one_volume(fault, tmp_path):
    make, message = SLICE_FAULTS[fault]
    make(save_slices(tmp_path / "s"))
    with pytest.raises(UserError, match=message):
        open_volume(tmp_path / "s")


def test_inputs_of_a_command(tmp_path):
    slices = save_slices(tmp_path / "slices")
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for name in ("v10.tif", "v9.tif", "v11.nii.gz", "v12.zarr"):
        write_volume(volumes / name, VALUES)
    save_slices(volumes / "v13")
    (volumes / "log.txt").touch()
    (volumes / "v14.zarr.partial.zarr").mkdir()
    inside = [volumes / name for name in ("v9.tif", "v10.tif", "v11.nii.gz", "v12.zarr", "v13")]
    assert expand_inputs([slices, volumes]) == [slices, *inside]
    assert expand_inputs([volumes / "v10.tif", str(volumes)]) == [inside[1], inside[0], *inside[2:]]
    assert all(open_volume(path).shape == SHAPE for path in inside)
    tifffile.imwrite(slices / "stack.tif", VALUES)
    with pytest.raises(UserError, match=r"holds 2-D slices \(slice_8.tif, 7 in all\) and volumes \(stack.tif, 1 in all\)"):
        expand_inputs([slices])
    (tmp_path / "none").mkdir()
    for wrong, message in (([], "no input"), ([tmp_path / "x"], "no such file"), ([tmp_path / "none"], "without volumes")):
        with pytest.raises(UserError, match=message):
            expand_inputs(wrong)
