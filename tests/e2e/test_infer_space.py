"""Orientation, codes and origin of an input are those of its output, scaled along the thick axis, half-plane shifts included."""

import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
from infer_commands import command
from infer_runs import grey, make_run

from utils.errors import UserError
from volumes.open import open_volume

VOXEL = (2.0, 0.25, 0.25)  # z, y, x in µm
FACTOR = 8


@pytest.fixture
def volume():
    return grey((3, 40, 48))


@pytest.mark.parametrize("l1how", ["dsp", "max"])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR"])
def test_nifti(codes, l1how, volume, tmp_path):
    run = make_run(tmp_path / "D" / "P", l1how=l1how, voxel_um=VOXEL)
    affine = np.linalg.inv(nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(codes), (1, 1, 1))).round()
    affine[:3, :3] = affine[:3, :3] @ np.diag(VOXEL[::-1])
    affine[:3, 3] = 10, 20, -30
    image = nibabel.Nifti1Image(volume.T, None)
    image.set_sform(affine, 2)
    image.set_qform(affine, 3)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "in.nii.gz")
    command("enhance", "--run", run, "--input", tmp_path / "in.nii.gz", "--output", tmp_path / "o.nii.gz")
    command("encode", "--run", run, "--input", tmp_path / "in.nii.gz", "--output", tmp_path / "o.codes.zarr")
    box = "4:20,8:30,:"
    command("decode", "--codes", tmp_path / "o.codes.zarr", "--output", tmp_path / "part.nii", "--region", box)
    plane = 4 if l1how == "dsp" else 3.5  # of the output, on which the first section is centred
    for name, (z, y) in (("o.nii.gz", (0, 0)), ("part.nii", (4, 8))):
        made = nibabel.load(tmp_path / name)
        assert "".join(nibabel.aff2axcodes(made.affine)) == codes
        assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (2, 3)
        assert open_volume(tmp_path / name).voxel_um == pytest.approx((0.25, 0.25, 0.25))
        for form in (made.get_sform(), made.get_qform()):
            there = form @ [7, 9 - y, 2 * FACTOR + plane - z, 1]  # mm
            np.testing.assert_allclose(1000 * there[:3], (affine @ [7, 9, 2, 1])[:3], atol=1e-3)


@pytest.mark.parametrize("kind", ["mrc", "ome.tif"])
def test_origins_of_other_formats(kind, volume, tmp_path):
    run = make_run(tmp_path / "D" / "P", voxel_um=VOXEL)
    path, place = tmp_path / f"in.{kind}", (30.0, -4.0, 5.0)
    if kind == "mrc":
        with mrcfile.new(path, volume) as file:
            file.voxel_size = tuple(size * 1e4 for size in VOXEL[::-1])  # Å
            file.header.origin = tuple(at * 1e4 for at in place[::-1])
    else:
        planes = {f"Position{a}": [at + 2.0 * k * (a == "Z") for k in range(3)] for a, at in zip("ZYX", place, strict=True)}
        planes |= {f"Position{a}Unit": ["µm"] * 3 for a in "XYZ"}
        sizes = {f"PhysicalSize{a}": size for a, size in zip("ZYX", VOXEL, strict=True)}
        tifffile.imwrite(path, volume, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes, "Plane": planes})
    for name in ("o.ome.zarr", "o.ome.tif", "o.nii"):
        command("enhance", "--run", run, "--input", path, "--output", tmp_path / name)
        made = open_volume(tmp_path / name)
        assert made.voxel_um == pytest.approx((0.25, 0.25, 0.25))
        assert made.translation_um == pytest.approx((30 - 3.5 * 0.25, -4, 5), abs=1e-4)


def test_a_header_that_contradicts_itself_needs_a_voxel_size(volume, tmp_path):
    run = make_run(tmp_path / "D" / "P", voxel_um=VOXEL)
    image = nibabel.Nifti1Image(volume.T, np.diag([0.25, 0.25, 2, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "in.nii")
    raw = bytearray((tmp_path / "in.nii").read_bytes())
    raw[80:84] = np.float32(0.5).tobytes()  # pixdim[1]
    (tmp_path / "in.nii").write_bytes(raw)
    words = ["enhance", "--run", run, "--input", tmp_path / "in.nii", "--output", tmp_path / "o.nii"]
    with pytest.raises(UserError, match=r"contradict each other; correct the header, or give the voxel size with --voxel"):
        command(*words)
    command(*words, "--voxel", "2,0.25,0.25")
    assert open_volume(tmp_path / "o.nii").voxel_um == pytest.approx((0.25, 0.25, 0.25))
