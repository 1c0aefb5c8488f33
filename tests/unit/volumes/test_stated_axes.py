"""Axes and their names decide, in every format: what a file states is followed, or refused with the axes named."""

from itertools import permutations

import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from format_volumes import VALUES, check

from utils.errors import UserError
from volumes.open import open_volume

ORDERS = ["".join(order) for order in permutations("ZYX")]
TWO = np.stack([VALUES, VALUES[::-1]])  # C, Z, Y, X


def stored(values, axes, order):
    """Values whose axes are named, in another order of these."""
    return np.ascontiguousarray(values.transpose([axes.index(axis) for axis in order]))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}, {"compression": "zlib"}], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_tiff(order, options, tmp_path):
    values = stored(VALUES, "ZYX", order)
    tifffile.imwrite(tmp_path / "v.tif", values, photometric="minisblack", metadata={"axes": order}, **options)
    check(open_volume(tmp_path / "v.tif"))


@pytest.mark.parametrize("order", [f"{order[:k]}C{order[k:]}" for order in ORDERS for k in range(4)])
def test_tiff_with_channels(order, tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", stored(TWO, "CZYX", order), photometric="minisblack", metadata={"axes": order})
    if "C" in order[-2:]:
        with pytest.raises(UserError, match=rf"v\.tif: axes {', '.join(order)} of shape .* planes with channels"):
            open_volume(tmp_path / "v.tif", channel=1)
    else:
        check(open_volume(tmp_path / "v.tif", channel=1), VALUES[::-1])


@pytest.mark.parametrize("order", ["ZCYX", "CZYX", "TZCYX", "XYCZT", "ZXY", "czxy"])
@pytest.mark.parametrize("version", [2, 3])
def test_plain_zarr(version, order, tmp_path):
    values = stored({3: VALUES, 4: TWO, 5: TWO[None]}[len(order)], "TCZYX"[5 - len(order) :], order.upper())
    names = [{"T": "time", "C": "channel"}.get(axis, axis.lower()) for axis in order]
    array = zarr.create_array(
        tmp_path / "v.zarr", data=values, zarr_format=version, dimension_names=names if version == 3 else None
    )
    if version == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = names
    check(open_volume(tmp_path / "v.zarr", channel=1 if len(order) > 3 else None), VALUES[::-1] if len(order) > 3 else VALUES)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("x", "y", "q"), ("z", "y", "y"), ("angle", "y", "x")])
@pytest.mark.parametrize("version", [2, 3])
def test_other_names_of_axes_are_refused(version, names, tmp_path):
    named = {"dimension_names": names} if version == 3 else {"attributes": {"_ARRAY_DIMENSIONS": list(names)}}
    zarr.create_array(tmp_path / "v.zarr", data=VALUES, zarr_format=version, **named)
    with pytest.raises(UserError, match=f"axes {', '.join(names)} of shape .* are not a volume"):
        open_volume(tmp_path / "v.zarr")


def test_placeholders_are_no_names(tmp_path):
    zarr.create_array(tmp_path / "v.zarr", data=VALUES, zarr_format=3, dimension_names=["dim_0", "dim_1", "dim_2"])
    check(open_volume(tmp_path / "v.zarr"))


@pytest.mark.parametrize("order", ORDERS)
def test_mrc(order, tmp_path):
    values = stored(VALUES, "ZYX", order)
    with mrcfile.new(tmp_path / "v.mrc", values) as file:
        file.header.maps, file.header.mapr, file.header.mapc = ("XYZ".index(axis) + 1 for axis in order)
        sizes = {"X": 4000, "Y": 5000, "Z": 20000}  # Å
        file.header.cella = tuple(sizes[a] * VALUES.shape["ZYX".index(a)] for a in "XYZ")
        file.header.mx, file.header.my, file.header.mz = VALUES.shape[::-1]
    volume = open_volume(tmp_path / "v.mrc")
    check(volume)
    assert volume.voxel_um == pytest.approx((2, 0.5, 0.4))


def test_nifti_axes_beyond_five(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES.T[..., None, None, None], np.eye(4)), tmp_path / "one.nii")
    check(open_volume(tmp_path / "one.nii"))
    nibabel.save(nibabel.Nifti1Image(np.stack([VALUES.T] * 2, -1)[..., None, None, :], np.eye(4)), tmp_path / "two.nii")
    with pytest.raises(UserError, match="axes another axis, c, t, z, y, x of shape"):
        open_volume(tmp_path / "two.nii")


def described(path, data, old, new, **options):
    """A TIFF in whose description a text is replaced."""
    tifffile.imwrite(path, data, photometric="minisblack", **options)
    with tifffile.TiffFile(path) as tif:
        text = tif.pages.first.description
    assert old in text
    tifffile.tiffcomment(path, text.replace(old, new).encode())
    return path


PLANES_FIRST = stored(TWO, "CZYX", "ZCYX")
OME = {
    "ome": True,
    "metadata": {"axes": "ZCYX", "Name": "NAME", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.5},
}


@pytest.mark.parametrize("size", ["0,5", "unknown", "0.5 um", "", "INF", "0", "-0.5", "NaN"])
def test_a_size_that_is_no_number_costs_the_size_and_nothing_else(size, tmp_path, caplog):
    path = described(tmp_path / "v.ome.tif", PLANES_FIRST, 'PhysicalSizeZ="0.5"', f'PhysicalSizeZ="{size}"', **OME)
    volume = open_volume(path, channel=1)
    check(volume, VALUES[::-1])
    assert (volume.voxel_um, volume.channels) == (None, 2)
    assert f"PhysicalSizeZ is stated as {size!r} µm, which is no length" in caplog.text


@pytest.mark.parametrize(
    ("old", "new"),
    [('Name="NAME"', 'Name="a & b"'), ("</Pixels>", ""), ("</OME>", ""), ('DimensionOrder="XYCZT"', 'DimensionOrder="XYQZT"')],
)
def test_xml_that_cannot_be_read_is_refused(old, new, tmp_path):
    path = described(tmp_path / "v.ome.tif", PLANES_FIRST, old, new, **OME)
    for options in ({}, {"channel": 1}):
        with pytest.raises(UserError, match=r"v\.ome\.tif: .*description \(ome\) cannot be followed, so that channels"):
            open_volume(path, **options)


def test_an_imagej_description_that_cannot_be_followed(tmp_path, caplog):
    options = {"imagej": True, "metadata": {"axes": "ZCYX"}}
    path = described(tmp_path / "v.tif", PLANES_FIRST, "hyperstack=true", "hyperstack=true\nunit=um\nspacing=0,5", **options)
    check(open_volume(path, channel=1), VALUES[::-1])
    assert "spacing is stated as '0,5' um" in caplog.text
    path = described(tmp_path / "w.tif", PLANES_FIRST, "slices=7", "slices=-7", **options)
    with pytest.raises(UserError, match=r"description \(imagej\) cannot be followed"):
        open_volume(path, channel=1)


def test_what_must_be_guessed_is_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "t.tif", VALUES, imagej=True, metadata={"axes": "TYX"})
    check(open_volume(tmp_path / "t.tif"))
    assert "t.tif: has time points but no planes along z; they are taken for the planes" in caplog.text
    caplog.clear()
    tifffile.imwrite(tmp_path / "q.tif", VALUES, photometric="minisblack")  # nothing stated, nothing to say
    check(open_volume(tmp_path / "q.tif"))
    assert not caplog.text


def test_what_tifffile_remarks_is_passed_on(tmp_path, caplog):
    options = {"ome": True, "metadata": {"axes": "ZYX"}}
    path = described(tmp_path / "v.ome.tif", VALUES, "<TiffData", '<TiffData IFD="99"/><TiffData', **options)
    check(open_volume(path))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "isoscope"]
    assert str(path) in said and "index out of range" in said
