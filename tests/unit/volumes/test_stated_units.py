"""One table of units for all formats; signedness as the format's own program has it."""

import struct

import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from format_volumes import VALUES, check, nifti

from volumes.open import open_volume
from volumes.stated import micrometres

UNITS = {
    1.0: [
        "µm",
        "μm",
        "um",
        "UM",
        "micron",
        "Microns",
        "micrometer",
        "Micrometer",
        "micrometers",
        "micrometre",
        '"um"',
        "\\u00B5m",
        "\\u00B5",
    ],
    1e-3: ["nm", "nanometer", "Nanometers", "nanometre"],
    1e-4: ["Å", "Å", "A", "angstrom", "Angstroms", "ångström"],
    1e3: ["mm", "MM", "millimeter", "millimetres"],
    1e4: ["cm"],
    1e6: ["m", "meter", "metres"],
    1e12: ["Mm", "megameter"],
    1e-6: ["pm"],
    25.4: ["thou", "mil", "mils"],
    25.4e3: ["in", "inch", "inches"],
    None: ["pixel", "", None, "s", "second", "furlong"],
}


@pytest.mark.parametrize(("factor", "unit"), [(factor, unit) for factor, units in UNITS.items() for unit in units])
def test_units(factor, unit):
    assert micrometres(unit) == (factor if factor is None else pytest.approx(factor, rel=1e-12))


@pytest.mark.parametrize("unit", ["Å", "nanometer", "micrometers", "μm", "Micrometer", "thou"])
def test_every_format_knows_them(unit, tmp_path):
    factor = micrometres(unit)
    tifffile.imwrite(tmp_path / "v.ome.tif", VALUES, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes("XX")})
    with tifffile.TiffFile(tmp_path / "v.ome.tif") as tif:
        xml = tif.pages.first.description.replace("XX", unit)
    tifffile.tiffcomment(tmp_path / "v.ome.tif", xml.encode())
    imagej = {"axes": "ZYX", "spacing": 3.0, "unit": unit.replace("μ", "\\u00B5").replace("Å", "angstrom")}
    tifffile.imwrite(tmp_path / "ij.tif", VALUES, imagej=True, resolution=(2, 4), metadata=imagej)
    group = zarr.create_group(tmp_path / "v.zarr", zarr_format=2)
    group.create_array("0", data=VALUES)
    transforms = [{"type": "scale", "scale": [3, 0.25, 0.5]}]
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in "zyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}]
    for name in ("v.ome.tif", "ij.tif", "v.zarr"):
        assert open_volume(tmp_path / name).voxel_um == pytest.approx((3 * factor, 0.25 * factor, 0.5 * factor)), name


def sizes(unit):
    lengths = {"X": 0.5, "Y": 0.25, "Z": 3.0}
    return {f"PhysicalSize{a}": n for a, n in lengths.items()} | {f"PhysicalSize{a}Unit": unit for a in lengths}


def test_imagej_units_of_single_axes(tmp_path):
    tifffile.imwrite(
        tmp_path / "v.tif", VALUES, imagej=True, resolution=(2, 4), metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"}
    )
    with tifffile.TiffFile(tmp_path / "v.tif") as tif:
        text = tif.pages.first.description
    tifffile.tiffcomment(tmp_path / "v.tif", f"{text}\nyunit=nm\nzunit=angstrom\n".encode())
    assert open_volume(tmp_path / "v.tif").voxel_um == pytest.approx((3e-4, 0.25e-3, 0.5))


def test_a_unit_that_is_none_is_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "v.tif", VALUES, imagej=True, resolution=(2, 4), metadata={"axes": "ZYX", "unit": "furlong"})
    assert open_volume(tmp_path / "v.tif").voxel_um is None
    assert "1.0 furlong, which is no length" in caplog.text


def test_nifti_without_units_is_in_mm_and_says_so(tmp_path, caplog):
    volume = open_volume(nifti(tmp_path / "u.nii", affine=np.diag([0.9, 0.9, 3, 1]), unit="unknown"))
    assert volume.voxel_um == pytest.approx((3000, 900, 900))
    assert "u.nii: states no unit of length; it is read as mm" in caplog.text


@pytest.mark.parametrize(("flags", "dtype"), [(None, "int8"), (0, "uint8"), (1, "int8"), (4, "uint8")])
def test_bytes_of_mrc_are_signed_as_imods_stamp_says(flags, dtype, tmp_path):
    raw = (VALUES >> 8).astype(np.uint8)
    with mrcfile.new(tmp_path / "v.mrc", raw.view(np.int8)) as file:
        file.voxel_size = 10
        file.header.origin = (100, 200, 300)
    if flags is not None:
        data = bytearray((tmp_path / "v.mrc").read_bytes())
        data[152:160] = struct.pack("<2i", 1146047817, flags)
        (tmp_path / "v.mrc").write_bytes(data)
    volume = open_volume(tmp_path / "v.mrc")
    check(volume, raw.view(dtype))
    sign = 1 if flags in (None, 4) else -1  # IMOD states the place of the origin, MRC2014 that of the first voxel
    assert volume.translation_um == pytest.approx([sign * n for n in (0.03, 0.02, 0.01)])


def test_pixdim_of_zero_is_no_size(tmp_path, caplog):
    data = bytearray(nifti(tmp_path / "v.nii").read_bytes())
    data[88:92] = struct.pack("<f", 0)
    (tmp_path / "v.nii").write_bytes(data)
    assert open_volume(tmp_path / "v.nii").voxel_um is None
    assert "pixdim" in caplog.text
