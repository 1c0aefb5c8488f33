"""A chunk that claims more than it holds is damaged; a machine without memory is said to lack it."""

import struct
import warnings
import zipfile

import h5py
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from format_volumes import VALUES
from zarr.codecs import BloscCodec
from zarr.codecs.numcodecs import LZ4

import volumes.ome_zarr
from tests.outcomes import limited, measures_memory
from utils.errors import UserError
from volumes.open import open_volume
from volumes.volume import reading

KINDS = {  # codec; format; where a frame says how much it holds; whether in a shard
    "blosc 2": (numcodecs.Blosc("lz4"), 2, 4, False),
    "blosc 3": (BloscCodec(cname="zstd"), 3, 4, False),
    "blosc in shards": (BloscCodec(cname="lz4"), 3, 4, True),
    "lz4 2": (numcodecs.LZ4(), 2, 0, False),
    "lz4 3": (LZ4, 3, 0, False),
    "lz4 in shards": (LZ4, 3, 0, True),
}


def stored(path, codec, zarr_format, sharded=False):
    """A volume of which every chunk has a file; its first file."""
    shards = {"shards": (4, 48, 64)} if sharded else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LZ4 is in no standard of Zarr 3
        codec = codec() if codec is LZ4 else codec
        settings = {"shape": VALUES.shape, "chunks": (4, 16, 16), "dtype": "uint16", "zarr_format": zarr_format, **shards}
        zarr.create_array(path, compressors=codec, **settings)[:] = VALUES // 256
    return path / ("0.0.0" if zarr_format == 2 else "c/0/0/0")


def claims(file, place, size=2**31 - 16):
    data = bytearray(file.read_bytes())
    data[place : place + 4] = struct.pack("<I", size)
    file.write_bytes(data)


@measures_memory
@pytest.mark.filterwarnings("ignore:.*in the Zarr")
@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_claims_more_than_it_holds_is_damaged(kind, tmp_path):
    codec, zarr_format, place, sharded = KINDS[kind]
    file = stored(tmp_path / "v.zarr", codec, zarr_format, sharded)
    volume = open_volume(tmp_path / "v.zarr")
    np.testing.assert_array_equal(volume[:], VALUES // 256)
    claims(file, place)
    with limited(2**27), pytest.raises(UserError, match=rf"{file.name}: this chunk cannot be read \(.*damaged, copy it again"):
        volume[:]
    np.testing.assert_array_equal(volume[4:], VALUES[4:] // 256)


@measures_memory
def test_likewise_in_a_zip_file(tmp_path):
    claims(stored(tmp_path / "v.zarr", numcodecs.Blosc("lz4"), 2), 4)
    with zipfile.ZipFile(tmp_path / "v.zarr.zip", "w") as packed:
        for file in sorted((tmp_path / "v.zarr").iterdir()):
            packed.write(file, file.name)
    with limited(2**27), pytest.raises(UserError, match=r"zip/0\.0\.0: this chunk cannot be read \(it claims to hold 2147483632"):
        open_volume(tmp_path / "v.zarr.zip")[:]


def test_a_frame_of_blosc_that_ends_early_is_not_read_beyond_its_end(tmp_path):
    """Blosc itself goes on in memory behind it, and gives any values without a word."""
    file = stored(tmp_path / "v.zarr", numcodecs.Blosc("blosclz"), 2)
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"0\.0\.0: this chunk cannot be read \(it has {len(data) - 1} of {len(data)} bytes\)"):
        open_volume(tmp_path / "v.zarr")[:]


HUGE = (2**11, 2**10, 2**9)  # a gigabyte of background, which takes none on disc


def hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("v", shape=HUGE, dtype="u1", chunks=(64, 1024, 512))


def zarr_3(path):
    zarr.create_array(path, shape=HUGE, chunks=(64, 1024, 512), dtype="u1")


@measures_memory
@pytest.mark.parametrize(("name", "make"), [("v.h5", hdf5), ("v.zarr", zarr_3)])
def test_a_machine_without_memory_is_not_a_damaged_file(name, make, tmp_path):
    make(tmp_path / name)
    volume = open_volume(tmp_path / name)
    assert not volume[:4].any()
    with limited(2**26), pytest.raises(MemoryError):
        volume[:]


def test_memory_that_ends_within_a_chunk_is_not_damage(tmp_path, monkeypatch):
    file = stored(tmp_path / "v.zarr", numcodecs.Zstd(), 2)
    volume = open_volume(tmp_path / "v.zarr")

    def ends(*_):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(zarr.Array, "__getitem__", ends)
    with pytest.raises(UserError, match=rf"{file.name}: this chunk .* asks for more memory than its values take"):
        volume[:]
    monkeypatch.setattr(volumes.ome_zarr, "lacks_memory_for", lambda *_: True)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        volume[:]


@measures_memory
def test_what_a_parser_asks_for_in_vain_is_judged_by_what_the_values_take(tmp_path):
    def parse(size):
        with reading(tmp_path, "not readable", size=size):
            np.empty(2**40, np.uint8)

    with limited(2**26), pytest.raises(UserError, match=r"not readable \(it asks for more memory than its values take"):
        parse(2**20)
    with limited(2**26), pytest.raises(MemoryError):
        parse(2**30)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lzma"])
def test_a_strip_that_is_cut_off_names_its_plane(compression, tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", VALUES // 256, compression=compression, rowsperstrip=45, metadata=None)
    volume = open_volume(tmp_path / "v.tif")
    with tifffile.TiffFile(tmp_path / "v.tif") as file:
        end = file.pages[3].dataoffsets[0] + file.pages[3].databytecounts[0]
    data = bytearray((tmp_path / "v.tif").read_bytes())
    data[end - 500 : end] = bytes(500)
    (tmp_path / "v.tif").write_bytes(data)
    with pytest.raises(UserError, match=r"v\.tif: plane 3 cannot be decoded .*damaged, copy it again"):
        volume[:]
    np.testing.assert_array_equal(volume[4:], VALUES[4:] // 256)
