"""NRRD as ITK, 3D Slicer and teem write it: axes, types, units, orientation; what cannot be read is named."""

import gzip
import itertools
import pickle

import numpy as np
import pytest

from utils.errors import UserError
from volumes.open import open_volume

VALUES = np.arange(5 * 18 * 22, dtype=np.uint16).reshape(5, 18, 22)
SLICER = (  # as 3D Slicer writes it
    "space: left-posterior-superior\nspace directions: (0.1,0,0) (0,-0.2,0) (0,0,0.4)\nkinds: domain domain domain\n"
    "space origin: (1,-2,3)\n"
)


def nrrd(path, values=VALUES, more="", *, kind="unsigned short", endian="little", encoding="raw", end="\n", sizes=None):
    """Writes a NRRD file by hand; ``values`` have their slowest axis first."""
    named = " ".join(map(str, values.shape[::-1])) if sizes is None else sizes
    head = (
        f"NRRD0005\n# by hand\ntype: {kind}\ndimension: {values.ndim}\nsizes: {named}\nendian: {endian}\nencoding: {encoding}\n"
    )
    data = values.astype(values.dtype.newbyteorder(">" if endian == "big" else "<")).tobytes()
    text = f"{head}{more}note:=anything\n\n".replace("\n", end)
    path.write_bytes(text.encode() + (gzip.compress(data) if encoding in ("gzip", "gz") else data))
    return path


@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_values(encoding, endian, end, tmp_path):
    volume = pickle.loads(pickle.dumps(open_volume(nrrd(tmp_path / "v.nrrd", endian=endian, encoding=encoding, end=end))))
    assert np.array_equal(volume[:], VALUES) and np.array_equal(volume[1:4, 2:9, 5:20], VALUES[1:4, 2:9, 5:20])
    assert np.array_equal(volume[0:2], VALUES[:2])  # back, behind gzip too
    assert (volume.dtype, volume.voxel_um, volume.space) == (np.uint16, None, None)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("uchar", "u1"), ("int8", "i1"), ("short", "i2"), ("uint16_t", "u2"), ("float", "f4"), ("double", "f8")]
)
def test_types(kind, dtype, tmp_path):
    assert np.array_equal(open_volume(nrrd(tmp_path / "v.nrrd", VALUES.astype(dtype), kind=kind))[:], VALUES.astype(dtype))


@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("xyz")])
def test_axes_as_they_are_labelled(order, tmp_path):
    stored = np.ascontiguousarray(VALUES.transpose(["zyx".index(axis) for axis in order[::-1]]))
    labels = " ".join(f'"{axis}"' for axis in order)
    spacings = " ".join(str({"x": 0.1, "y": 0.2, "z": 0.4}[axis]) for axis in order)
    path = nrrd(tmp_path / "v.nrrd", stored, f'labels: {labels}\nspacings: {spacings}\nunits: "um" "um" "um"\n')
    volume = open_volume(path)
    assert np.array_equal(volume[:], VALUES) and volume.voxel_um == pytest.approx((0.4, 0.2, 0.1))


def test_channels_before_space(tmp_path):
    both = np.stack([VALUES, VALUES[::-1]], -1)
    path = nrrd(tmp_path / "v.nrrd", both, "kinds: list domain domain domain\nspace directions: none (1,0,0) (0,1,0) (0,0,2)\n")
    with pytest.raises(UserError, match="planes with channels or time points in them"):
        open_volume(path, channel=1)
    path = nrrd(tmp_path / "v.nrrd", np.stack([VALUES, VALUES[::-1]]), "kinds: domain domain domain list\n")
    assert np.array_equal(open_volume(path, channel=1)[:], VALUES[::-1])


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1e3), ("um", 1), ("microns", 1), ("nm", 1e-3)])
def test_place_in_the_scanner(unit, factor, tmp_path):
    volume = open_volume(nrrd(tmp_path / "v.nrrd", more=f'{SLICER}space units: "{unit}" "{unit}" "{unit}"\n'))
    assert volume.voxel_um == pytest.approx(np.array([0.4, 0.2, 0.1]) * factor)
    assert volume.translation_um == pytest.approx(np.array([3, 2, 1]) * factor)  # along the file's own axes
    expected = [[-0.1, 0, 0, -1], [0, 0.2, 0, 2], [0, 0, 0.4, 3]]  # in right, anterior, superior
    assert volume.space["sform"]["code"] == 1
    assert np.allclose(volume.space["sform"]["affine_um"], np.array(expected) * factor)


def test_without_a_unit_it_is_mm_and_says_so(tmp_path, caplog):
    assert open_volume(nrrd(tmp_path / "v.nrrd", more=SLICER)).voxel_um == pytest.approx((400, 200, 100))
    assert "states no unit of length; it is read as mm" in caplog.text
    plain = nrrd(tmp_path / "p.nrrd", more="spacings: 1 1 4\n")
    assert open_volume(plain).voxel_um is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"more": "data file: v.raw\n"}, "lie in another file"),
        ({"encoding": "bzip2"}, "encoded as bzip2"),
        ({"kind": "block"}, "values of type block"),
        ({"more": "byte skip: 100\n"}, "behind others"),
        ({"sizes": "22 18"}, "2-D image"),
        ({"sizes": "22 18 6"}, "truncated"),
        ({"sizes": "22 18 five"}, "not a readable NRRD"),
        ({"sizes": "22 18 -5"}, "empty array"),
        ({"more": "kinds: domain domain domain domain\n", "sizes": "22 18 5 1000000000000"}, "axes|another|dimension|truncated"),
        ({"more": "space directions: (0,0,0) (0,0,0) (0,0,0)\n" + SLICER[:31]}, None),
        ({"more": "space directions: (1,a,0) (0,1,0) (0,0,1)\n"}, "not a readable NRRD"),
    ],
)
def test_what_cannot_be_read_is_named(how, message, tmp_path):
    path = nrrd(tmp_path / "v.nrrd", **how)
    if message is None:
        assert open_volume(path).voxel_um is None
        return
    with pytest.raises(UserError, match=message):
        open_volume(path)


def test_a_header_without_end(tmp_path):
    (tmp_path / "v.nhdr").write_bytes(b"NRRD0004\ntype: short\ndata file: v.raw\n")
    with pytest.raises(UserError, match="lie in another file; 3D Slicer"):
        open_volume(tmp_path / "v.nhdr")
    (tmp_path / "v.nrrd").write_bytes(b"NRRD0004\ntype: short\n" * 3)
    with pytest.raises(UserError, match="its header has no end"):
        open_volume(tmp_path / "v.nrrd")
