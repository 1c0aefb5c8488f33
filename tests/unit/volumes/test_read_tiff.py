"""Every kind of TIFF is read lazily and exactly; damaged and unsuitable files are refused by name."""

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from utils.errors import UserError
from volumes import contiguous
from volumes.open import open_volume
from volumes.volume import ArrayVolume
from writing.write import write_tiff

SHAPE = (7, 45, 53)


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)


def one_write(path, values, **options):
    tifffile.imwrite(path, values, photometric="minisblack", **options)


def page_per_slice(path, values, **options):
    with tifffile.TiffWriter(path) as writer:
        for plane in values:
            writer.write(plane, photometric="minisblack", contiguous=False, **options)


def by_pillow(path, values, compression):
    first, *others = [Image.fromarray(plane) for plane in values]
    first.save(path, save_all=True, append_images=others, compression=compression)


def with_a_pyramid(path, values):
    with tifffile.TiffWriter(path) as writer:
        writer.write(values, subifds=1, tile=(16, 16), metadata={"axes": "ZYX"})
        writer.write(values[:, ::2, ::2], subfiletype=1, tile=(16, 16))


KINDS = {
    "contiguous": (one_write, {}),
    "undescribed": (one_write, {"metadata": None}),
    "bigtiff": (one_write, {"bigtiff": True}),
    "big-endian": (one_write, {"byteorder": ">"}),
    "many raw strips": (one_write, {"rowsperstrip": 8}),
    "raw tiles": (one_write, {"tile": (16, 32)}),
    "strips lzw": (one_write, {"compression": "lzw", "rowsperstrip": 8}),
    "strips zlib predictor": (one_write, {"compression": "zlib", "predictor": True, "rowsperstrip": 10}),
    "strips zstd": (one_write, {"compression": "zstd", "rowsperstrip": 45}),
    "tiles lzw": (one_write, {"compression": "lzw", "tile": (16, 16)}),
    "tiles zlib big-endian": (one_write, {"compression": "zlib", "predictor": True, "tile": (16, 16), "byteorder": ">"}),
    "tiles zstd": (one_write, {"compression": "zstd", "tile": (32, 16)}),
    "imagej": (one_write, {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "imagej time as z": (one_write, {"imagej": True, "metadata": {"axes": "TYX"}}),
    "imagej undescribed": (one_write, {"imagej": True}),
    "ome": (one_write, {"ome": True, "metadata": {"axes": "ZYX"}}),
    "ome tiles": (one_write, {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib", "tile": (16, 16)}),
    "pages": (page_per_slice, {}),
    "pages undescribed": (page_per_slice, {"metadata": None}),
    "pages zlib": (page_per_slice, {"compression": "zlib"}),
    "pages zlib undescribed": (page_per_slice, {"metadata": None, "compression": "zlib", "rowsperstrip": 7}),
    "pillow raw": (by_pillow, {"compression": None}),
    "pillow lzw": (by_pillow, {"compression": "tiff_lzw"}),
    "pyramid": (with_a_pyramid, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_exactly_and_survives_pickling(kind, values, tmp_path):
    write, options = KINDS[kind]
    path = tmp_path / "volume.tif"
    write(path, values, **options)
    volume = open_volume(path)
    assert (volume.shape, volume.dtype) == (SHAPE, np.uint16)
    for this in (volume, pickle.loads(pickle.dumps(volume))):
        np.testing.assert_array_equal(this[:], values)
        np.testing.assert_array_equal(this[1:7:2, 3:40, 5:9], values[1:7:2, 3:40, 5:9])  # narrow: row by row
        np.testing.assert_array_equal(this[2:3, 17:44, 30:53], values[2:3, 17:44, 30:53])
        assert this[:].dtype.isnative


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_when_opened(kind, values, tmp_path):
    write, options = KINDS[kind]
    path = tmp_path / "whole.tif"
    write(path, values, **options)
    data, cut_path = path.read_bytes(), tmp_path / "cut.tif"
    refused = 0
    for cut in np.linspace(1, len(data) - 1, 25).astype(int):
        cut_path.write_bytes(data[:cut])
        try:
            volume = open_volume(cut_path)
        except UserError as error:
            assert "cut.tif" in str(error)
            refused += 1
        else:  # only bytes that hold no image were lost
            np.testing.assert_array_equal(volume[:], values)
    assert refused >= 18


def test_indexing_follows_numpy_but_keeps_three_axes(values):
    volume = ArrayVolume(values)
    np.testing.assert_array_equal(volume[2:100], values[2:])
    np.testing.assert_array_equal(volume[-2:, :5], values[-2:, :5])
    assert volume[5:2].shape == (0, 45, 53)
    for key in (3, (0, slice(None)), (slice(None),) * 4):
        with pytest.raises(ValueError, match="three slices"):
            volume[key]
    for key in (np.s_[::-1], np.s_[:, ::2]):
        with pytest.raises(ValueError, match="positive along Z"):
            volume[key]


@pytest.mark.parametrize("voxels", [1, 500, 2000, 5000, 10**6])
def test_blocks_cover_every_voxel_once(voxels, values):
    volume = ArrayVolume(values)
    volume.block_rows = 8
    seen = np.zeros(SHAPE, int)
    for box in volume.blocks(voxels):
        seen[box] += 1
        assert volume[box].size <= max(voxels, 8 * 53)
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "float16", "float32", "float64"])
def test_dtypes_are_kept(dtype, tmp_path):
    values = (np.arange(2 * 3 * 5).reshape(2, 3, 5) - (0 if dtype[0] == "u" else 11)).astype(dtype)
    tifffile.imwrite(tmp_path / "v.tif", values)
    volume = open_volume(tmp_path / "v.tif")
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume[:], values)


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 1, 7), (5, 1, 1), (1, 7, 1)])
def test_single_rows_and_columns_come_back(shape, tmp_path):
    values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    write_tiff(tmp_path / "v.tif", values, voxel_um=(1.0, 0.25, 0.25))
    volume = open_volume(tmp_path / "v.tif")
    assert volume.shape == shape and volume.voxel_um == (1.0, 0.25, 0.25)
    np.testing.assert_array_equal(volume[:], values)


def test_a_binary_volume_is_uint8(tmp_path):
    values = np.random.default_rng(0).random((3, 5, 9)) > 0.5
    tifffile.imwrite(tmp_path / "v.tif", values)
    volume = open_volume(tmp_path / "v.tif")
    assert volume.dtype == volume[:].dtype == np.uint8
    np.testing.assert_array_equal(volume[:], values)


def test_tiles_that_were_never_written_are_zero(tmp_path):
    path = tmp_path / "sparse.tif"
    values = np.zeros((2, 40, 40), np.uint8)
    values[0, :16, :16] = 7
    tiles = (None if not block.any() else block for plane in values for block in plane_tiles(plane))
    tifffile.imwrite(path, tiles, shape=values.shape, dtype=values.dtype, tile=(16, 16), compression="zlib")
    np.testing.assert_array_equal(open_volume(path)[:], values)


def plane_tiles(plane):
    padded = np.pad(plane, ((0, 8), (0, 8)))
    return (padded[y : y + 16, x : x + 16].copy() for y in range(0, 48, 16) for x in range(0, 48, 16))


def test_channels_are_chosen_and_never_guessed(tmp_path):
    values = np.random.default_rng(1).integers(0, 255, (5, 2, 6, 7)).astype(np.uint8)
    one_write(tmp_path / "ij.tif", values, imagej=True, metadata={"axes": "ZCYX"})
    one_write(tmp_path / "x.ome.tif", values.swapaxes(0, 1), metadata={"axes": "CZYX"}, compression="zlib")
    for name in ("ij.tif", "x.ome.tif"):
        for channel in (0, 1):
            np.testing.assert_array_equal(open_volume(tmp_path / name, channel=channel)[:], values[:, channel])
        with pytest.raises(UserError, match=r"2 channels.*choose one"):
            open_volume(tmp_path / name)
        with pytest.raises(UserError, match="channel 2 of 2"):
            open_volume(tmp_path / name, channel=2)


def test_an_ome_set_of_several_files(tmp_path):
    values = np.random.default_rng(2).integers(0, 2**16, (3, 5, 6)).astype(np.uint16)
    ids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{k}" for k in range(3)]
    listed = "".join(
        f'<TiffData FirstZ="{k}" IFD="0" PlaneCount="1"><UUID FileName="s{k}.ome.tif">{i}</UUID></TiffData>'
        for k, i in enumerate(ids)
    )
    for k in range(3):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[k]}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="6" SizeY="5" SizeZ="3" '
            'SizeC="1" SizeT="1" PhysicalSizeX="4" PhysicalSizeXUnit="nm" PhysicalSizeY="5" PhysicalSizeZ="0.006" '
            f'PhysicalSizeZUnit="mm">{listed}</Pixels></Image></OME>'
        )
        one_write(tmp_path / f"s{k}.ome.tif", values[k], metadata=None, description=xml.encode(), compression="zlib")
    volume = open_volume(tmp_path / "s0.ome.tif")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:], values)
    assert volume.voxel_um == pytest.approx((6, 5, 0.004))
    (tmp_path / "s1.ome.tif").unlink()
    with pytest.raises(UserError, match="plane 1 and others are missing"):
        open_volume(tmp_path / "s0.ome.tif")


def test_a_stack_that_only_pillow_reads(tmp_path):
    values = np.random.default_rng(3).integers(0, 255, (3, 6, 8)).astype(np.uint8)
    frames = []
    for plane in values:
        Image.fromarray(plane).save(tmp_path / "frame.pcx")
        frames.append((tmp_path / "frame.pcx").read_bytes())
    starts = np.cumsum([4 + 4 * (len(frames) + 1)] + [len(frame) for frame in frames[:-1]])
    path = tmp_path / "stack.tif"  # a DCX file: magic number, list of offsets, the frames
    path.write_bytes(struct.pack(f"<{len(frames) + 2}I", 0x3ADE68B1, *starts, 0) + b"".join(frames))
    volume = open_volume(path)
    assert (volume.shape, volume.dtype) == (values.shape, np.uint8)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[::2, 1:4, 2:7], values[::2, 1:4, 2:7])


BAD = {
    "2-D": (lambda p: tifffile.imwrite(p, np.zeros((5, 6), np.uint8)), "a 2-D image"),
    "2-D ImageJ": (lambda p: tifffile.imwrite(p, np.zeros((5, 6), np.uint8), imagej=True), "a 2-D image"),
    "2-D Pillow": (lambda p: Image.fromarray(np.zeros((5, 6), np.uint8)).save(p, "png"), "a 2-D image"),
    "RGB": (lambda p: tifffile.imwrite(p, np.zeros((4, 5, 6, 3), np.uint8), photometric="rgb"), "RGB"),
    "RGB PNG": (lambda p: Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(p, "png"), "mode RGB"),
    "3 channels": (
        lambda p: tifffile.imwrite(p, np.zeros((3, 5, 6), np.uint8), imagej=True, metadata={"axes": "CYX"}),
        "no Z axis",
    ),
    "time series": (
        lambda p: tifffile.imwrite(p, np.zeros((3, 4, 5, 6), np.uint8), imagej=True, metadata={"axes": "TZYX"}),
        "one time point",
    ),
    "unnamed 4-D": (lambda p: one_write(p, np.zeros((3, 4, 5, 6), np.uint8)), "not a volume"),
    "labels": (lambda p: one_write(p, np.zeros((3, 4, 5), np.uint32)), "uint32 are not supported"),
    "empty": (lambda p: p.touch(), "empty file"),
    "text": (lambda p: p.write_text("no image"), "of no format that is read here .*save it as OME-TIFF"),
    "folder": (lambda p: p.mkdir(), "not a file"),
    "missing": (lambda p: None, "no such file or folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_unsuitable_files_are_named(name, tmp_path):
    make, message = BAD[name]
    make(tmp_path / "bad.tif")
    with pytest.raises(UserError, match=message) as caught:
        open_volume(tmp_path / "bad.tif")
    assert "bad.tif" in str(caught.value)


def test_a_damaged_segment_is_refused(values, tmp_path):
    path = tmp_path / "v.tif"
    one_write(path, values, compression="zlib", tile=(16, 16))
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[4]
        start, count = page.dataoffsets[5], page.databytecounts[5]
    data = bytearray(path.read_bytes())
    data[start : start + count] = b"\x55" * count
    path.write_bytes(data)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[0:4], values[0:4])
    with pytest.raises(UserError, match=r"v\.tif: plane 4 cannot be decoded"):
        volume[4:5]


@pytest.mark.parametrize("name", ["v.tif", "v.ome.tif"])
def test_written_volumes_come_back_with_their_voxel_size(name, values, tmp_path):
    write_tiff(tmp_path / name, values, voxel_um=(2.5, 0.4, 0.3))
    write_tiff(tmp_path / ("s" + name), iter(values), shape=SHAPE, dtype=np.uint16)
    volume, streamed = open_volume(tmp_path / name), open_volume(tmp_path / ("s" + name))
    np.testing.assert_array_equal(volume[:], values)
    np.testing.assert_array_equal(streamed[:], values)
    assert volume.voxel_um == pytest.approx((2.5, 0.4, 0.3))
    assert streamed.voxel_um is None
    with tifffile.TiffFile(tmp_path / name) as tif:
        assert tif.is_ome == (name == "v.ome.tif")
        assert tif.series[0].axes == "ZYX"


def test_a_single_plane_written_is_a_volume_of_depth_one(values, tmp_path):
    write_tiff(tmp_path / "v.tif", values[:1])
    np.testing.assert_array_equal(open_volume(tmp_path / "v.tif")[:], values[:1])


def test_imagej_voxel_sizes_as_imagej_reads_them(values, tmp_path):
    def voxel_um(metadata, **tags):
        one_write(tmp_path / "v.tif", values, imagej=True, metadata={"axes": "ZYX", **metadata}, **tags)
        return open_volume(tmp_path / "v.tif").voxel_um

    resolution = (1 / 0.2, 1 / 0.25)
    assert voxel_um({"spacing": 3.0, "unit": "nm"}, resolution=resolution) == pytest.approx((3e-3, 0.25e-3, 0.2e-3))
    assert voxel_um({"unit": "micron"}, resolution=resolution) == pytest.approx((1, 0.25, 0.2))  # spacing 1 is left out
    assert voxel_um({"spacing": 3.0}, resolution=resolution) is None
    assert voxel_um({"spacing": 3.0, "unit": "pixel"}, resolution=resolution) is None
    per_cm = voxel_um({"spacing": 3.0, "unit": "um"}, resolution=(1e4 / 0.2, 1e4 / 0.25), resolutionunit="CENTIMETER")
    assert per_cm == pytest.approx((3, 0.25, 0.2))


def test_writing_leaves_nothing_half_done(values, tmp_path):
    path = tmp_path / "v.tif"
    write_tiff(path, values)
    for planes, shape in ((values[:3], SHAPE), (values, (3, 45, 53)), (values[:, 1:], SHAPE)):
        with pytest.raises(ValueError, match="volume of shape"):
            write_tiff(path, iter(planes), shape=shape, dtype=np.uint16)
    np.testing.assert_array_equal(open_volume(path)[:], values)
    assert [p.name for p in tmp_path.iterdir()] == ["v.tif"]
    with pytest.raises(ValueError, match="need shape"):
        write_tiff(path, iter(values))


@pytest.mark.parametrize(("gap", "rows"), [(39, [20, 20, 10]), (38, [1] * 50)])
def test_rows_are_read_together_where_little_lies_between_them(gap, rows, tmp_path, monkeypatch):
    values = np.random.default_rng(3).integers(0, 255, (1, 60, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", values, metadata={"axes": "ZYX"})
    volume = open_volume(tmp_path / "v.tif")
    monkeypatch.setattr(contiguous, "_GAP", gap)
    monkeypatch.setattr(contiguous, "_BAND", 1000)  # bytes: twenty rows
    asked, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, into, start: asked.append(into[0].nbytes) or preadv(handle, into, start))
    for columns in (slice(0, 11), slice(7, 18), slice(39, 50)):
        asked.clear()
        np.testing.assert_array_equal(volume[:, 10:60, columns], values[:, 10:60, columns])
        assert asked == [(count - 1) * 50 + 11 for count in rows]


def test_memory_does_not_grow_with_an_uncompressed_file(tmp_path):
    tifffile.memmap(tmp_path / "big.tif", shape=(1024, 1024, 1024), dtype=np.uint16).flush()  # 2 GiB, sparse
    code = (
        "import itertools, resource, sys\nfrom volumes.open import open_volume\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = peak(); volume = open_volume(sys.argv[1]); assert volume.shape == (1024, 1024, 1024)\n"
        "volume[1000:1016, 500:690, 800:990]\nvoxels = sum(volume[box].size for box in itertools.islice(volume.blocks(), 32))\n"
        "assert voxels == 2**27; print(peak() - start)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "big.tif"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024, "KiB"


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 16}])
def test_only_the_segments_touched_are_decoded(options, tmp_path):
    one_write(tmp_path / "v.tif", np.ones((32, 1024, 1024), np.uint16), compression="zlib", **options)
    volume = open_volume(tmp_path / "v.tif")
    tracemalloc.start()
    volume[8:24, 500:628, 300:428]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5e6, "bytes: the result and a few segments, of 67 MB"


def test_a_file_is_open_only_while_it_is_read(values, tmp_path):
    for k in range(3):
        one_write(tmp_path / f"{k}.tif", values, compression="zlib" if k else None)
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else pytest.skip("needs /proc")
    volumes = [open_volume(tmp_path / f"{k}.tif") for k in range(3)]
    assert all(volume[0:1].shape == (1, 45, 53) for volume in volumes)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_real_volume():
    folder = os.environ.get("ISOSCOPE_SAMPLES") or pytest.skip("ISOSCOPE_SAMPLES is not set")
    volume = open_volume(Path(folder) / "fibsem_fib25_quickstart.tif")
    assert (volume.shape, volume.dtype) == ((192, 192, 192), np.uint8)
    whole = tifffile.imread(volume.path)
    np.testing.assert_array_equal(volume[3:190:8, 20:150, 100:192], whole[3:190:8, 20:150, 100:192])
    assert (whole.min(), whole.max()) == (27, 221)
