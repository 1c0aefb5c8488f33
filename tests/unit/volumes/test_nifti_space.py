"""What turns a NIfTI file's axes to those of the scanner survives: codes, directions, origin; outputs lie in their place."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from format_volumes import VALUES, nifti
from target_volumes import write_volume

from volumes.open import open_volume

ORIENTATIONS = [
    "".join(letters[sign] for letters, sign in zip(order, signs, strict=True))
    for order in permutations(["LR", "PA", "IS"])
    for signs in product((0, 1), repeat=3)
]
ZOOMS = (4e-4, 5e-4, 2e-3)  # x, y, z of the file in mm


def turned(codes, origin=(1e-3, -2e-3, 3e-3)):
    """The affine of a file whose axes run towards these directions."""
    affine = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(codes), (1, 1, 1))
    directions = np.linalg.inv(affine)[:3, :3].round()
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = directions @ np.diag(ZOOMS), origin
    return made


def enhanced(source, output, factor=4, first=1.5, region=(0, 0, 0)):
    """An output as infer.py writes it: planes 1/factor as far apart, the first a part of a plane before the input's, a region."""
    volume = open_volume(source)
    z, y, x = volume.voxel_um
    voxel = (z / factor, y, x)
    place = [t + v * n for t, v, n in zip(volume.translation_um, voxel, region, strict=True)]
    place[0] -= voxel[0] * first
    values = np.repeat(volume[:], factor, axis=0)[region[0] :, region[1] :, region[2] :]
    attributes = {"input": {"space": volume.space}}
    return write_volume(output, values, voxel_um=voxel, translation_um=place, attributes=attributes)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_48_axis_orders(codes, tmp_path):
    affine = turned(codes)
    assert "".join(nibabel.aff2axcodes(affine)) == codes
    image = nibabel.Nifti1Image(VALUES.T, None)
    image.set_sform(affine, 4)
    image.set_qform(affine, 2)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "in.nii")
    enhanced(tmp_path / "in.nii", tmp_path / "out.nii.gz", region=(3, 2, 1))
    made = nibabel.load(tmp_path / "out.nii.gz")
    assert "".join(nibabel.aff2axcodes(made.affine)) == codes
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (4, 2)
    there = affine @ [5, 4, 2, 1]  # centre of voxel (x, y, z) = (5, 4, 2) of the input
    for form in (made.get_sform(), made.get_qform()):
        np.testing.assert_allclose(form @ [5 - 1, 4 - 2, 4 * 2 + 1.5 - 3, 1], there, atol=1e-7)
    again = open_volume(tmp_path / "out.nii.gz")
    assert again.voxel_um == pytest.approx((0.5, 0.5, 0.4))
    before = open_volume(tmp_path / "in.nii")
    shift = np.subtract(again.translation_um, before.translation_um)
    np.testing.assert_allclose(shift, [(3 - 1.5) * 0.5, 2 * 0.5, 0.4], atol=1e-4)  # along the file's own axes


def test_oblique_and_sheared_affines_and_forms_that_differ(tmp_path):
    angle = np.radians(17)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    scanner = np.eye(4)
    scanner[:3, :3], scanner[:3, 3] = rotation @ np.diag(ZOOMS), (1, 2, 3)
    atlas = scanner.copy()
    atlas[:3, :3] = rotation @ np.array([[1, 0.1, 0], [0, 0.994987, 0], [0, 0, 1]]) @ np.diag(ZOOMS)  # sheared
    atlas[:3, 3] = -7, 8, 9
    image = nibabel.Nifti1Image(VALUES.T, None)
    image.set_sform(atlas, 3)
    image.set_qform(scanner, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "in.nii")
    enhanced(tmp_path / "in.nii", tmp_path / "out.nii")
    made = nibabel.load(tmp_path / "out.nii")
    for code, form, before in ((3, made.get_sform(coded=True), atlas), (1, made.get_qform(coded=True), scanner)):
        assert form[1] == code
        np.testing.assert_allclose(form[0] @ [5, 4, 4 * 2 + 1.5, 1], before @ [5, 4, 2, 1], atol=2e-6)


def test_only_what_was_stated_is_written(tmp_path):
    image = nibabel.Nifti1Image(VALUES.T, None)
    image.set_qform(turned("LPS"), 1)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "q.nii")
    enhanced(tmp_path / "q.nii", tmp_path / "out.nii")
    made = nibabel.load(tmp_path / "out.nii").header
    assert (int(made["sform_code"]), int(made["qform_code"])) == (0, 1)


def test_through_other_formats_and_units(tmp_path):
    affine = turned("PIR") * 1000
    affine[3, 3] = 1
    nifti(tmp_path / "in.nii.gz", affine=affine, unit="micron")
    enhanced(tmp_path / "in.nii.gz", tmp_path / "mid.ome.zarr")
    middle = open_volume(tmp_path / "mid.ome.zarr")
    place = {"voxel_um": middle.voxel_um, "translation_um": middle.translation_um, "attributes": middle.attributes}
    write_volume(tmp_path / "out.nii", middle[:], **place)
    made = nibabel.load(tmp_path / "out.nii")
    assert "".join(nibabel.aff2axcodes(made.affine)) == "PIR"
    np.testing.assert_allclose(made.affine @ [5, 4, 4 * 2 + 1.5, 1], turned("PIR") @ [5, 4, 2, 1], atol=1e-7)
