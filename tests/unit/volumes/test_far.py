"""Volumes at addresses: what is asked for, what becomes of a server that fails, refuses, is slow or gone."""

import os
import pickle

import numpy as np
import pytest
import zarr
from target_volumes import PLACE, VOXEL, write_volume

from tests.far_server import serving
from utils import far
from utils.errors import UserError
from utils.far import FarPath, path_of
from volumes.open import expand_inputs, open_volume, stem_of

VALUES = np.random.default_rng(0).integers(1, 255, (20, 70, 90)).astype(np.uint8)
BOX = (slice(3, 5), slice(10, 20), slice(5, 9))
CHUNK = "x.zarr/c/0/0/0"


def store(root):
    """A sharded array, one of Zarr 2, and one of our own outputs, which has checksums and a block for all zeros."""
    named = {"shape": VALUES.shape, "dtype": "uint8", "chunks": (4, 32, 32)}
    zarr.create_array(str(root / "x.zarr"), shards=(8, 64, 64), dimension_names="zyx", **named)[:] = VALUES
    zarr.create_array(str(root / "two.zarr"), zarr_format=2, **named)[:] = VALUES
    write_volume(root / "ours.ome.zarr", VALUES, voxel_um=VOXEL, translation_um=PLACE, shard=(8, 64, 64))


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(far, "FIRST_WAIT", 0.001)
    store(tmp_path)
    with serving(tmp_path) as server:
        yield server


@pytest.mark.parametrize("name", ["x.zarr", "two.zarr", "ours.ome.zarr"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_box_reads_what_it_needs(served, name, ranges):
    served.ranges = ranges
    volume = open_volume(f"{served.address}/{name}")
    assert volume.shape == VALUES.shape and str(volume.path) == f"{served.address}/{name}"
    assert (volume.voxel_um, volume.translation_um) == ((VOXEL, PLACE) if "ours" in name else (None, None))
    served.given = 0
    np.testing.assert_array_equal(volume[BOX], VALUES[BOX])
    assert not ranges or served.given < VALUES.size / (3 if "ours" in name else 10)  # ours has one chunk in a shard
    np.testing.assert_array_equal(volume[:], VALUES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:], VALUES)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("part", [(None, None), (0, 1), (5, 90), (5, None), (-7, None), (None, 6)])
def test_parts_of_a_file(served, ranges, part):
    (served.folder / "file").write_bytes(whole := bytes(range(200)))
    served.ranges = ranges
    assert path_of(f"{served.address}/file").fetch(*part) == whole[slice(*part)]


def test_it_is_read_after_a_fork(served):
    volume = open_volume(f"{served.address}/x.zarr")
    volume[BOX]
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(volume[:], VALUES) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(volume[:], VALUES)


@pytest.mark.parametrize("status", [500, 503, 429, 0])
def test_what_passes_is_asked_for_again(served, status):
    """0: the connection ends in the middle of a file."""
    volume = open_volume(f"{served.address}/x.zarr")
    served.status, served.failing[CHUNK] = status, 4
    np.testing.assert_array_equal(volume[BOX], VALUES[BOX])


@pytest.mark.parametrize(
    ("status", "asked", "said"),
    [
        (500, 5, "asked 5 times and does not give it .status 500"),
        (403, 1, "refuses it .status 403"),
        (410, 1, "check the address"),
    ],
)
def test_what_does_not_pass_is_named(served, status, asked, said):
    volume = open_volume(f"{served.address}/x.zarr")
    served.status, served.failing[CHUNK] = status, 99
    with pytest.raises(UserError, match=f"{CHUNK}: .*{said}"):
        volume[BOX]
    assert served.asked[CHUNK] == asked


def test_a_server_that_does_not_go_on(served, monkeypatch):
    monkeypatch.setattr(far, "SILENT", 0.05)
    monkeypatch.setattr(far, "_systems", {})
    served.wait = 0.4
    with pytest.raises(UserError, match="asked 5 times and does not give it"):
        open_volume(f"{served.address}/x.zarr")


def test_a_server_that_is_gone(served):
    volume = open_volume(f"{served.address}/x.zarr")
    served.stop()
    with pytest.raises(UserError, match=r"asked 5 times .*Cannot connect.*run the same command again"):
        volume[BOX]


def test_a_folder_that_is_gone_is_no_black_volume(served):
    volume = open_volume(f"{served.address}/x.zarr")
    (served.folder / "x.zarr").rename(served.folder / "elsewhere")
    with pytest.raises(UserError, match=r"x.zarr is not there any more"):
        volume[BOX]


def test_a_chunk_that_is_not_there(served):
    """Of others it stands for zeros; ours have a file for these too."""
    (served.folder / CHUNK).unlink()
    assert not open_volume(f"{served.address}/x.zarr")[:8, :64, :64].any()
    ours = open_volume(f"{served.address}/ours.ome.zarr")
    next((served.folder / "ours.ome.zarr" / "0" / "c" / "0" / "0").glob("0")).unlink()
    with pytest.raises(UserError, match="c/0/0/0 is missing"):
        ours[BOX]


def test_ours_that_was_changed_is_refused(served):
    described = served.folder / "ours.ome.zarr" / "0" / "zarr.json"
    described.write_text(described.read_text() + " ")
    with pytest.raises(UserError, match=r"0/zarr.json is damaged"):
        open_volume(f"{served.address}/ours.ome.zarr")


def test_links_and_inputs(served, tmp_path):
    address = f"{served.address}/ours.ome.zarr"
    (tmp_path / "v").mkdir()
    far.write_link(tmp_path / "v" / "a.url", path_of(address))
    (found,) = expand_inputs([tmp_path / "v"])
    np.testing.assert_array_equal(open_volume(found)[BOX], VALUES[BOX])
    (found,) = expand_inputs([address, f"{address}/"])
    assert isinstance(found, FarPath) and str(found) == address and stem_of(found) == "ours"
    for text in ("nothing", "URL=/etc/passwd", "URL=file:///etc/passwd"):
        (tmp_path / "v" / "a.url").write_text(text)
        with pytest.raises(UserError, match=r"names a volume in a line URL|file:// is not read"):
            open_volume(tmp_path / "v" / "a.url")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("{}/none.zarr", "no OME-Zarr image or Zarr array is there"),
        ("gs://bucket/x.zarr", "gs:// is not read"),
        ("https://", "names a server"),
        ("s3://bucket", "names a server"),
        ("https://me:secret@host/x.zarr", "^https://…: an address"),
        ("https://host/x.zarr?token=secret", "^https://…: an address"),
    ],
)
def test_addresses_that_cannot_be_read(served, address, said):
    with pytest.raises(UserError, match=said) as caught:
        open_volume(address.format(served.address))
    assert "secret" not in str(caught.value)


def test_from_s3(tmp_path, monkeypatch):
    """With an account, and without one of a bucket that is open to all; moto stands in for S3."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(far, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(far, "_systems", {})
    store(tmp_path)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for file in tmp_path.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "bucket", file.relative_to(tmp_path).as_posix())
        for name in ("x.zarr", "two.zarr", "ours.ome.zarr"):
            np.testing.assert_array_equal(open_volume(f"s3://bucket/{name}")[BOX], VALUES[BOX])
        with pytest.raises(UserError, match=r"s3://bucket/none.zarr: no OME-Zarr"):
            open_volume("s3://bucket/none.zarr")
        client.delete_object(Bucket="bucket", Key="ours.ome.zarr/0/c/0/0/0")
        with pytest.raises(UserError, match=r"s3://bucket/ours.ome.zarr/0/c/0/0/0.*missing"):
            open_volume("s3://bucket/ours.ome.zarr")[BOX]
    finally:
        server.stop()
