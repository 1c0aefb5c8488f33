"""Files that state more planes, other axes or other images than they hold: refused by name, and nothing is made room for."""

import json
import re

import numpy as np
import pytest
import tifffile
import zarr

from tests.outcomes import limited, measures_memory
from utils.errors import UserError
from volumes.open import open_volume

VALUES = np.arange(5 * 18 * 22, dtype=np.uint16).reshape(5, 18, 22)
GREY = {"photometric": "minisblack"}
XML = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="22" SizeY="18" SizeZ="5" SizeC="1" SizeT="1">'
    '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{}</Pixels></Image></OME>'
)


def pages(path, planes, description="", **options):
    with tifffile.TiffWriter(path) as file:
        for number, plane in enumerate(planes):
            about = description if number == 0 else None
            file.write(plane, metadata=None, contiguous=False, description=about, **{**GREY, **options})
    return path


@measures_memory
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('SizeC="1"', 'SizeC="200000000"'),
        ('SizeT="1"', 'SizeT="2000000000"'),
        ('PlaneCount="5"', 'PlaneCount="1000000000"'),
        ('PlaneCount="5"', 'NumPlanes="1000000000"'),
    ],
)
def test_planes_that_the_files_cannot_hold(old, new, tmp_path):
    xml = XML.format('<TiffData IFD="0" PlaneCount="5"/>')
    path = pages(tmp_path / "v.ome.tif", VALUES, xml.replace(old, new).encode())
    with limited(2**25) as peak, pytest.raises(UserError, match=r"states \d+ planes, more than \d+ bytes can hold"):
        open_volume(path, channel=0, time=0)
    assert peak[0] < 2**25
    assert np.array_equal(open_volume(pages(path, VALUES, xml.encode()))[:], VALUES)


def test_planes_in_the_order_that_the_description_gives_them(tmp_path):
    order = "".join(f'<TiffData FirstZ="{z}" IFD="{4 - z}" PlaneCount="1"/>' for z in range(5))
    path = pages(tmp_path / "v.ome.tif", VALUES[::-1], XML.format(order).encode())
    assert np.array_equal(open_volume(path)[:], VALUES)


def test_a_description_that_only_utf_16_reads(tmp_path):
    path = pages(tmp_path / "v.ome.tif", VALUES, XML.format("<TiffData/>").encode("utf-16"))
    with pytest.raises(UserError, match=r"its description \(ome\) cannot be followed"):
        open_volume(path)


@pytest.mark.parametrize("axes", ["ZY", "ZYXW", "Z Y X"])
def test_axes_that_are_not_those_of_the_array(axes, tmp_path):
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, VALUES, metadata={"axes": "ZYX"}, **GREY)
    tifffile.tiffcomment(path, json.dumps({"shape": VALUES.shape, "axes": axes}))
    with pytest.raises(UserError, match=r"its description \(shaped\) cannot be followed.*axes do not match"):
        open_volume(path)


@pytest.mark.parametrize(("channels", "slices"), [(2, 2), (1, 3), (2, 1)])
def test_an_imagej_description_with_fewer_planes_than_images(channels, slices, tmp_path):
    text = f"ImageJ=1.53c\nimages=5\nchannels={channels}\nslices={slices}\nhyperstack=true\n"
    path = pages(tmp_path / "v.tif", VALUES, text.encode())
    with pytest.raises(UserError, match="5 images, of which channels, slices and frames make"):
        open_volume(path, channel=0)


@pytest.mark.parametrize(
    ("number", "odd"), [(2, VALUES[0, :9]), (4, VALUES[0].astype(np.uint8)), (0, VALUES[0].astype(np.float32)), (3, VALUES[0].T)]
)
def test_an_odd_page_among_planes_is_no_thumbnail(number, odd, tmp_path):
    path = pages(tmp_path / "v.tif", [odd if n == number else plane for n, plane in enumerate(VALUES)])
    with pytest.raises(UserError, match=rf"page {number} is {re.escape(str(odd.shape))} {odd.dtype} among planes of \(18, 22\)"):
        open_volume(path)


@pytest.mark.parametrize(("names", "refused"), [("xyz", False), (["X", "Y", "Z"], False), (5, True), ({"x": 0}, True)])
def test_names_of_axes_in_any_notation(names, refused, tmp_path):
    array = zarr.create_array(str(tmp_path / "v.zarr"), data=VALUES.transpose(2, 1, 0).copy(), zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = names
    if refused:
        with pytest.raises(UserError, match="are no names of axes"):
            open_volume(tmp_path / "v.zarr")
    else:
        assert np.array_equal(open_volume(tmp_path / "v.zarr")[:], VALUES)


def test_a_slice_that_is_a_link_to_nothing(tmp_path):
    for number, plane in enumerate(VALUES):
        tifffile.imwrite(tmp_path / f"s{number}.tif", plane, **GREY)
    (tmp_path / "s5.tif").symlink_to("elsewhere.tif")
    with pytest.raises(UserError, match=r"s5.tif: a link to elsewhere.tif, which is not there"):
        open_volume(tmp_path)
    (tmp_path / "s5.tif").unlink()
    assert open_volume(tmp_path).shape == VALUES.shape
