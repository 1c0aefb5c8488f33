"""NIfTI, packed or not, and MRC: read lazily and exactly, or refused by name."""

import gzip
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import mrcfile
import nibabel
import numpy as np
import pytest
from format_volumes import VALUES, check, nifti

from utils.errors import UserError
from volumes.contiguous import GzipBytes
from volumes.open import open_volume


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti(name, kind, tmp_path):
    affine = np.diag([4e-4, 5e-4, 2e-3, 1])
    affine[:3, 3] = 1e-3, 2e-3, 3e-3
    volume = open_volume(nifti(tmp_path / name, affine=affine, kind=kind))
    check(volume)
    assert volume.voxel_um == pytest.approx((2, 0.5, 0.4))
    assert volume.translation_um == pytest.approx((3, 2, 1))


def test_nifti_series_scaling_and_space(tmp_path):
    series = np.stack([VALUES, VALUES // 3])
    check(open_volume(nifti(tmp_path / "t.nii.gz", series), time=1), VALUES // 3)
    check(open_volume(nifti(tmp_path / "c.nii", series[:, None]), channel=1), VALUES // 3)
    with pytest.raises(UserError, match=r"2 time points .*; choose"):
        open_volume(tmp_path / "t.nii.gz")
    image = nibabel.Nifti1Image(VALUES.T, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "s.nii")
    raw = bytearray((tmp_path / "s.nii").read_bytes())
    struct.pack_into("<ff", raw, 112, 0.5, -3.0)  # scl_slope and scl_inter, which nibabel writes by its own rules
    (tmp_path / "s.nii").write_bytes(raw)
    stored = open_volume(tmp_path / "s.nii")
    np.testing.assert_allclose(stored[:], nibabel.load(tmp_path / "s.nii").get_fdata().T, rtol=1e-6)
    assert (stored.dtype, stored.voxel_um) == (np.float32, (1, 1, 1))
    raw = bytearray(nifti(tmp_path / "p.nii").read_bytes())
    struct.pack_into("<f", raw, 280, 1e-3)  # srow_x[0], where pixdim says 4e-4
    (tmp_path / "p.nii").write_bytes(raw)
    doubtful = open_volume(tmp_path / "p.nii")
    assert (doubtful.voxel_um, doubtful.translation_um, doubtful.space) == (None, None, None)
    assert "[0.4, 0.5, 2.0] µm (x, y, z) by pixdim and [1.0, 0.5, 2.0] by the affine contradict each other" in doubtful.doubt
    check(open_volume(nifti(tmp_path / "b.nii", VALUES.astype(">u2"))))


@pytest.mark.parametrize("zeros", [0, 1000, 2**20, 2**20 + 1, 3 * 2**20 + 7, 2**24])
def test_members_of_a_gzip_file_follow_each_other_wherever_they_end(tmp_path, zeros):
    """Also where a member ends in background, of which little input is more than one step gives back."""
    noise = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    members = [noise + bytes(zeros), bytes(zeros), bytes(zeros) + noise, b"", noise[:999] + bytes(zeros)]
    (tmp_path / "d.gz").write_bytes(b"".join(gzip.compress(member, level) for level, member in enumerate(members, 1)))
    content = b"".join(members)
    source = GzipBytes(tmp_path / "d.gz")
    for size in (len(content), 2**20, 70_001):
        assert b"".join(source.read(at, min(size, len(content) - at)) for at in range(0, len(content), size)) == content


def test_damaged_nifti_files(tmp_path):
    for name in ("v.nii", "v.nii.gz"):
        data = nifti(tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:40])
        with pytest.raises(UserError, match="not a readable NIfTI"):
            open_volume(tmp_path / name)
        (tmp_path / name).write_bytes(data[:-500])
        with pytest.raises(UserError, match="truncated"):
            open_volume(tmp_path / name)[:]
    (tmp_path / "v.nii.gz").write_bytes(data[: len(data) // 2] + b"\xff" * 99 + data[len(data) // 2 + 99 :])
    with pytest.raises(UserError, match="damaged near byte"):
        open_volume(tmp_path / "v.nii.gz")[:]
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6), "u1"), None), tmp_path / "flat.nii")
    with pytest.raises(UserError, match="a 2-D image"):
        open_volume(tmp_path / "flat.nii")


def test_gzip_by_position_forwards_and_back_at_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(GzipBytes, "_MOST_MARKS", 8)
    data = np.random.default_rng(0).integers(0, 3, 30_000_000).astype(np.uint8).tobytes()
    members = [gzip.compress(data[k : k + 12_000_000], 1) for k in range(0, len(data), 12_000_000)]
    (tmp_path / "d.gz").write_bytes(b"".join(members))
    source = GzipBytes(tmp_path / "d.gz")
    rng = np.random.default_rng(1)
    for start in (0, 11_999_990, 29_000_000, *rng.integers(0, 29_000_000, 6), 29_999_000):
        assert source.read(int(start), 1000) == data[start : start + 1000]
    assert 2 <= len(source._marks) <= 8
    steps = []
    step = source._step
    monkeypatch.setattr(source, "_step", lambda: steps.append(1) or step())
    assert b"".join(source.read(start, 500_000) for start in range(5_000_000, 15_000_000, 500_000)) == data[5_000_000:15_000_000]
    assert len(steps) < 100, "reading onwards never starts over"
    with pytest.raises(UserError, match="truncated"):
        source.read(29_999_000, 1001)


def test_gzip_can_be_read_by_several_threads(tmp_path):
    data = np.random.default_rng(0).integers(0, 3, 6_000_000).astype(np.uint8).tobytes()
    (tmp_path / "d.gz").write_bytes(gzip.compress(data, 1))
    source = pickle.loads(pickle.dumps(GzipBytes(tmp_path / "d.gz")))
    starts = np.random.default_rng(1).integers(0, 5_900_000, 40).tolist()
    with ThreadPoolExecutor(4) as pool:
        for start, piece in zip(starts, pool.map(lambda start: source.read(start, 90_000), starts), strict=True):
            assert piece == data[start : start + 90_000]


def test_a_damaged_packed_file_is_never_read_past_its_damage(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (50, 400, 300)).astype(np.uint8)
    content = nifti(tmp_path / "v.nii", values).read_bytes()
    members = [gzip.compress(content[k : k + 2_500_000], 1) for k in range(0, len(content), 2_500_000)]
    data = bytearray(b"".join(members))
    data[len(data) // 2 : len(data) // 2 + 99] = b"\xff" * 99
    (tmp_path / "v.nii.gz").write_bytes(data)
    volume = open_volume(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(volume[0:20], values[0:20])  # the first member
    for z in (49, 48, 49):
        with pytest.raises(UserError, match="damaged near byte"):
            volume[z : z + 1]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
def test_mrc(dtype, tmp_path):
    values = (VALUES >> 9).astype(dtype)
    with mrcfile.new(tmp_path / "v.mrc", values) as file:
        file.voxel_size = (4000, 5000, 20000)  # Å, x y z
        file.header.origin.z = 30000
        file.set_volume()
    volume = open_volume(tmp_path / "v.mrc")
    check(volume, values)
    assert volume.voxel_um == pytest.approx((2, 0.5, 0.4))
    assert volume.translation_um == pytest.approx((3, 0, 0))


def test_faulty_mrc_files(tmp_path):
    path = tmp_path / "v.mrc"
    mrcfile.new(path, VALUES, overwrite=True).close()
    assert open_volume(path).voxel_um is None and open_volume(path).translation_um is None
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(UserError, match="truncated"):
        open_volume(path)
    path.write_bytes(data[:500])
    with pytest.raises(UserError, match="not a readable MRC"):
        open_volume(path)
    with mrcfile.new(path, VALUES, overwrite=True) as file:
        file.header.mapc, file.header.maps = 3, 3
    with pytest.raises(UserError, match="axes z, y, z of shape"):
        open_volume(path)
    mrcfile.new(path, VALUES[0], overwrite=True).close()
    with pytest.raises(UserError, match="a 2-D image"):
        open_volume(path)
