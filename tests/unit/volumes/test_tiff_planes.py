"""No plane of a TIFF is left out without a word: read whole, chosen by --scene, or refused by name."""

import struct

import numpy as np
import pytest
import tifffile
from format_volumes import VALUES, check

from utils.errors import UserError
from volumes.open import open_volume

GREY = {"photometric": "minisblack"}


@pytest.mark.parametrize("first", [5, 6])
def test_appended_series_are_chosen_by_number(first, tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", VALUES[:first], **GREY)
    tifffile.imwrite(tmp_path / "v.tif", VALUES[first:] if first == 5 else VALUES[first], append=True, **GREY)
    with pytest.raises(UserError, match=rf"2 scenes \(series of pages; 0: \({first}, 45, 53\).* 1: \(.*45, 53\).*choose one"):
        open_volume(tmp_path / "v.tif")
    check_small(open_volume(tmp_path / "v.tif", scene=0), VALUES[:first])
    with pytest.raises(UserError, match="scene 2 of 2"):
        open_volume(tmp_path / "v.tif", scene=2)


def check_small(volume, values):
    assert volume.scenes == 2
    np.testing.assert_array_equal(volume[:], values)


@pytest.mark.parametrize("odd", [0, 3, 6])
def test_a_page_with_other_strips_is_one_of_the_planes(odd, tmp_path):
    with tifffile.TiffWriter(tmp_path / "v.tif") as writer:
        for k, plane in enumerate(VALUES):
            writer.write(plane, metadata=None, contiguous=False, rowsperstrip=8 if k == odd else 45, **GREY)
    check(open_volume(tmp_path / "v.tif"))


@pytest.mark.parametrize("odd", [0, 6])
def test_a_page_with_another_compression_is_named(odd, tmp_path):
    with tifffile.TiffWriter(tmp_path / "v.tif") as writer:
        for k, plane in enumerate(VALUES):
            writer.write(plane, metadata=None, contiguous=False, compression="lzw" if k == odd else None, **GREY)
    with pytest.raises(UserError, match=r"v\.tif: its pages are laid out differently from each other"):
        open_volume(tmp_path / "v.tif")


def test_other_images_beside_the_volume_are_named(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "v.tif", VALUES, metadata={"axes": "ZYX"}, **GREY)
    tifffile.imwrite(tmp_path / "v.tif", VALUES[0, :20, :30].astype("u1"), append=True, **GREY)
    check(open_volume(tmp_path / "v.tif"))
    assert "v.tif: also holds images of shape (20, 30), which are left out" in caplog.text


def test_pages_that_the_description_does_not_name(tmp_path):
    tifffile.imwrite(tmp_path / "v.ome.tif", VALUES, ome=True, metadata={"axes": "ZYX"}, **GREY)
    with tifffile.TiffFile(tmp_path / "v.ome.tif") as tif:
        xml = tif.pages.first.description
    fewer = xml.replace('SizeZ="7"', 'SizeZ="5"').replace('PlaneCount="7"', 'PlaneCount="5"')
    tifffile.tiffcomment(tmp_path / "v.ome.tif", fewer.encode())
    with pytest.raises(UserError, match=r"2 pages \(the first is page 5\) are not in its description"):
        open_volume(tmp_path / "v.ome.tif")


def test_ome_images_are_scenes(tmp_path):
    sizes = {f"PhysicalSize{axis}": 2.0 for axis in "ZYX"}
    with tifffile.TiffWriter(tmp_path / "v.ome.tif", ome=True) as writer:
        writer.write(VALUES, metadata={"axes": "ZYX"}, **GREY)
        writer.write(VALUES[::-1, :40], metadata={"axes": "ZYX", **sizes}, **GREY)
    volume = open_volume(tmp_path / "v.ome.tif", scene=1)
    np.testing.assert_array_equal(volume[:], VALUES[::-1, :40])
    assert volume.voxel_um == (2, 2, 2)
    assert open_volume(tmp_path / "v.ome.tif", scene=0).voxel_um is None


def one_directory(path, data, description, cut=0):
    """As ImageJ writes a stack above 4 GB: one directory, the planes one after the other."""
    height, width = data.shape[-2:]
    text = description.encode() + b"\0"
    start = 8 + 2 + 12 * 9 + 4 + len(text) + len(text) % 2
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (262, 3, 1, 1), (270, 2, len(text), 8 + 2 + 12 * 9 + 4)]
    entries += [(273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, height * width * 2)]
    head = struct.pack(">2sHIH", b"MM", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        head += struct.pack(">HHI", tag, kind, count) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
    content = (head + struct.pack(">I", 0) + text).ljust(start, b"\0") + data.astype(">u2").tobytes()
    path.write_bytes(content[: len(content) - cut])
    return path


IMAGEJ = "ImageJ=1.54f\nimages={n}\n{more}slices=7\nunit=micron\nspacing=0.5\nloop=false\n"


def test_imagej_stacks_of_one_directory(tmp_path):
    check(open_volume(one_directory(tmp_path / "v.tif", VALUES, IMAGEJ.format(n=7, more=""))))
    two = np.stack([VALUES, VALUES[::-1]], 1)
    path = one_directory(tmp_path / "c.tif", two, IMAGEJ.format(n=14, more="channels=2\nhyperstack=true\nmode=composite\n"))
    check(open_volume(path, channel=1), VALUES[::-1])
    with pytest.raises(UserError, match="truncated"):
        open_volume(one_directory(tmp_path / "cut.tif", VALUES, IMAGEJ.format(n=7, more=""), cut=100))


def test_imagej_stacks_above_4_gb(tmp_path):
    shape = (2200, 1024, 1024)
    path = tmp_path / "big.tif"
    with pytest.warns(UserWarning, match="truncating ImageJ"):  # tifffile's word for a single directory; the file is sparse
        tifffile.imwrite(path, shape=shape, dtype=np.uint16, imagej=True, metadata={"axes": "ZYX"}, **GREY)
    with tifffile.TiffFile(path) as tif:
        start = tif.series[0].dataoffset
    with path.open("r+b") as file:
        file.seek(start + 2199 * 2**21)
        file.write(np.full(1024 * 1024, 7, "<u2").tobytes())
    volume = open_volume(path)
    assert volume.shape == shape
    assert (volume[2198:, :, 5:6].ravel() == [0] * 1024 + [7] * 1024).all()
