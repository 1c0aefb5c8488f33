"""Slice folders, OME-Zarr and plain Zarr, NIfTI, MRC, TIFF hyperstacks: read lazily and exactly, or refused by name."""

import gzip
import json
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from PIL import Image

import utils.volumes.optional_package
from utils.errors import UserError
from utils.volumes.raw_volume import GzipBytes
from utils.volumes.volume_io import expand_inputs, open_volume, write_volume

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (7, 45, 53)
VALUES = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)


def check(volume, values=VALUES):
    """The volume reads exactly, whole and in part, also after pickling."""
    assert (volume.shape, volume.dtype) == (values.shape, values.dtype)
    for this in (volume, pickle.loads(pickle.dumps(volume))):
        np.testing.assert_array_equal(this[:], values)
        np.testing.assert_array_equal(this[1:7:2, 3:40, 5:9], values[1:7:2, 3:40, 5:9])
        np.testing.assert_array_equal(this[2:3, 17:44, 30:53], values[2:3, 17:44, 30:53])
        assert this[:].dtype.isnative and this[:].flags.c_contiguous
    seen = np.concatenate([volume[box].ravel() for box in volume.in_plane_order(8, 1000)])
    np.testing.assert_array_equal(seen, values.ravel())


# --- slices ---------------------------------------------------------------------------------------------------------------


def save_slices(folder, values=VALUES, name="slice_{}.tif", start=8, **options):
    folder.mkdir(exist_ok=True)
    for k, plane in enumerate(values):
        path = folder / name.format(k + start)
        if path.suffix == ".png":
            Image.fromarray(plane).save(path)
        else:
            tifffile.imwrite(path, plane, **options)
    return folder


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}, {"imagej": True}, {"ome": True}])
def test_slices_are_sorted_as_people_do(options, tmp_path):
    folder = save_slices(tmp_path / "s", **options)  # slice_8 … slice_14
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.tif").touch()
    volume = open_volume(folder)
    check(volume)
    assert volume.voxel_um is None


def test_png_slices(tmp_path):
    check(open_volume(save_slices(tmp_path / "a", name="z{}_488nm.png")))
    check(open_volume(save_slices(tmp_path / "b", (VALUES >> 8).astype(np.uint8), "{}.png")), (VALUES >> 8).astype(np.uint8))


def test_slices_with_channels(tmp_path):
    values = np.stack([VALUES, VALUES[::-1]], 1)
    save_slices(tmp_path / "s", values, imagej=True, metadata={"axes": "CYX"})
    check(open_volume(tmp_path / "s", channel=1), VALUES[::-1])
    with pytest.raises(UserError, match=r"slice_8\.tif: 2 channels.*choose one"):
        open_volume(tmp_path / "s")


def drop(name):
    return lambda folder: (folder / name).unlink()


SLICE_FAULTS = {
    "gap": (drop("slice_11.tif"), r"missing after slice_10\.tif \(numbers advance by 2"),
    "shape": (lambda f: tifffile.imwrite(f / "slice_9.tif", VALUES[0, :44]), r"slice_9\.tif .* unlike slice_8\.tif"),
    "dtype": (lambda f: tifffile.imwrite(f / "slice_9.tif", VALUES[0].astype("u1")), r"slice_9\.tif .* unlike slice_8\.tif"),
    "stack": (lambda f: tifffile.imwrite(f / "slice_9.tif", VALUES), r"slice_9\.tif is a stack of 7 planes"),
    "RGB": (
        lambda f: tifffile.imwrite(f / "slice_9.tif", np.zeros((45, 53, 3), "u1"), photometric="rgb"),
        r"slice_9\.tif: an RGB",
    ),
    "damaged": (lambda f: (f / "slice_9.tif").write_bytes(b"II*\0junk"), r"slice_9\.tif: "),
    "two kinds": (lambda f: Image.fromarray(VALUES[0]).save(f / "slice_7.png"), "PNG and TIFF"),
    "two series": (lambda f: save_slices(f, name="other_{}.tif"), "have one number"),
    "two numbers": (lambda f: save_slices(f, name="slice_{}.tif".replace("{}", "9{}")), "missing after"),
    "two channels": (
        lambda f: [drop(p.name)(f) for p in f.glob("*")] + [save_slices(f, name=f"c{c}_z{{}}.tif") for c in (0, 1)],
        "two numbers vary",
    ),
    "empty": (lambda f: [p.unlink() for p in f.glob("*")], "not a file, and a folder without slices"),
    "color PNG": (
        lambda f: [drop(p.name)(f) for p in f.glob("*")] + [Image.new("RGB", (5, 6)).save(f / "a.png")],
        "PNG of mode RGB",
    ),
}


@pytest.mark.parametrize("fault", SLICE_FAULTS)
def test_folders_that_are_not_one_volume(fault, tmp_path):
    make, message = SLICE_FAULTS[fault]
    make(save_slices(tmp_path / "s"))
    with pytest.raises(UserError, match=message):
        open_volume(tmp_path / "s")


def test_inputs_of_a_command(tmp_path):
    slices = save_slices(tmp_path / "slices")
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for name in ("v10.tif", "v9.tif", "v11.nii.gz", "v12.zarr"):
        write_volume(volumes / name, VALUES)
    save_slices(volumes / "v13")
    (volumes / "log.txt").touch()
    (volumes / "v14.zarr.partial.zarr").mkdir()
    inside = [volumes / name for name in ("v9.tif", "v10.tif", "v11.nii.gz", "v12.zarr", "v13")]
    assert expand_inputs([slices, volumes]) == [slices, *inside]
    assert expand_inputs([volumes / "v10.tif", str(volumes)]) == [inside[1], inside[0], *inside[2:]]
    assert all(open_volume(path).shape == SHAPE for path in inside)
    tifffile.imwrite(slices / "stack.tif", VALUES)
    with pytest.raises(UserError, match=r"holds 2-D slices \(slice_8.tif, 7 in all\) and volumes \(stack.tif, 1 in all\)"):
        expand_inputs([slices])
    (tmp_path / "none").mkdir()
    for wrong, message in (([], "no input"), ([tmp_path / "x"], "no such file"), ([tmp_path / "none"], "without volumes")):
        with pytest.raises(UserError, match=message):
            expand_inputs(wrong)


# --- Zarr -----------------------------------------------------------------------------------------------------------------


def ome_zarr_04(path, values, axes, transforms, units=None, group_transforms=None, separator="/"):
    """An OME-Zarr 0.4 image as the NGFF specification describes it, one array per entry of ``transforms``."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    described = []
    for axis in axes:
        kind = {"t": "time", "c": "channel"}.get(axis, "space")
        described.append({"name": axis, "type": kind, **({"unit": units[axis]} if units and axis in units else {})})
    datasets = []
    for level, transform in enumerate(transforms):
        data = values[tuple(slice(None, None, 2**level) if axis in "yx" else slice(None) for axis in axes)]
        array = group.create_array(
            f"s{level}", shape=data.shape, dtype=data.dtype, chunks=(1,) * (len(axes) - 3) + (3, 16, 20),
            chunk_key_encoding={"name": "v2", "separator": separator},
        )  # fmt: skip
        array[:] = data
        datasets.append({"path": f"s{level}", "coordinateTransformations": transform})
    multiscale = {"version": "0.4", "axes": described, "datasets": datasets}
    if group_transforms:
        multiscale["coordinateTransformations"] = group_transforms
    group.attrs["multiscales"] = [multiscale]
    return path


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def shift(*values):
    return {"type": "translation", "translation": list(values)}


UNITS = {"z": "micrometer", "y": "nanometer", "x": "millimeter"}


@pytest.mark.parametrize("separator", ["/", "."])
def test_ome_zarr_04_with_levels_and_all_transformations(separator, tmp_path):
    path = ome_zarr_04(
        tmp_path / "v.zarr", VALUES, "zyx", [[scale(2, 500, 4e-4), shift(1, 10, 1e-3)], [scale(2, 1000, 8e-4)]], UNITS,
        [scale(2, 1, 1), shift(100, 0, 0)], separator,
    )  # fmt: skip
    yaozarrs.validate_zarr_store(path)
    volume = open_volume(path)
    check(volume)
    assert volume.levels == 2
    assert (volume.block_planes, volume.block_rows) == (3, 16)
    assert volume.voxel_um == pytest.approx((4, 0.5, 0.4))
    assert volume.translation_um == pytest.approx((102, 0.01, 1))  # the image's own scale acts on the dataset's shift
    coarse = open_volume(path, level=1)
    check(coarse, VALUES[:, ::2, ::2])
    assert coarse.voxel_um == pytest.approx((4, 1, 0.8))
    with pytest.raises(UserError, match="level 2 of 2"):
        open_volume(path, level=2)


def test_channels_and_times_in_any_order_of_axes(tmp_path):
    values = np.random.default_rng(1).integers(0, 99, (2, 3, *SHAPE)).astype(np.uint8)
    ome_zarr_04(tmp_path / "a.zarr", values, "tczyx", [[scale(1, 1, 2, 500, 4e-4)]], UNITS)
    ome_zarr_04(tmp_path / "b.zarr", values.transpose(1, 0, 4, 2, 3), "ctxzy", [[scale(1, 1, 4e-4, 2, 500)]], UNITS)
    for name in ("a.zarr", "b.zarr"):
        volume = open_volume(tmp_path / name, channel=2, time=1)
        check(volume, values[1, 2])
        assert (volume.channels, volume.times) == (3, 2)
        assert volume.voxel_um == pytest.approx((2, 0.5, 0.4))
        assert volume.translation_um is None
        for options, message in (
            ({}, "3 channels; choose"),
            ({"channel": 0}, "2 time points; choose"),
            ({"channel": 3}, "3 of 3"),
        ):
            with pytest.raises(UserError, match=message):
                open_volume(tmp_path / name, **options)


def test_ome_zarr_05_of_another_writer(tmp_path):
    from yaozarrs import v05
    from yaozarrs.write.v05 import write_image

    image = v05.Image(
        multiscales=[
            v05.Multiscale(
                axes=[v05.ChannelAxis(name="c"), *(v05.SpaceAxis(name=n, unit="nanometer") for n in "zyx")],
                datasets=[
                    v05.Dataset(
                        path="0",
                        coordinateTransformations=[
                            v05.ScaleTransformation(scale=[1, 2000, 500, 400]),
                            v05.TranslationTransformation(translation=[0, 3000, 2000, 1000]),
                        ],
                    )
                ],
            )
        ]
    )
    write_image(tmp_path / "v.zarr", image, [np.stack([VALUES, VALUES // 2])], writer="zarr", chunks=(1, 2, 20, 20))
    volume = open_volume(tmp_path / "v.zarr", channel=1)
    check(volume, VALUES // 2)
    assert volume.voxel_um == pytest.approx((2, 0.5, 0.4))
    assert volume.translation_um == pytest.approx((3, 2, 1))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_plain_arrays(zarr_format, dtype, tmp_path):
    zarr.create_array(str(tmp_path / "v.zarr"), data=VALUES.astype(dtype), chunks=(2, 16, 16), zarr_format=zarr_format)
    volume = open_volume(tmp_path / "v.zarr")
    check(volume)
    assert volume.voxel_um is None


def test_plain_arrays_follow_the_names_of_their_axes(tmp_path):
    data = np.stack([VALUES.transpose(2, 0, 1)] * 2, 1)
    zarr.create_array(str(tmp_path / "v.zarr"), data=data, chunks=(9, 1, 4, 9), dimension_names=["x", "c", "z", "y"])
    check(open_volume(tmp_path / "v.zarr", channel=1))
    zarr.create_array(str(tmp_path / "w.zarr"), data=VALUES[None, None], chunks=(1, 1, 2, 9, 9))
    check(open_volume(tmp_path / "w.zarr", channel=0, time=0))


def edit(path, change):
    attributes = json.loads((path / ".zattrs").read_text())
    change(attributes["multiscales"][0])
    (path / ".zattrs").write_text(json.dumps(attributes))


ZARR_FAULTS = {
    "no array": (lambda p: shutil.rmtree(p / "s0"), "name an array 's0' that does not exist"),
    "axes": (lambda p: edit(p, lambda m: m["axes"].insert(0, {"name": "c", "type": "channel"})), "contradict"),
    "zero scale": (
        lambda p: edit(p, lambda m: m["datasets"][0].update(coordinateTransformations=[scale(0, 1, 1)])),
        "contradicts",
    ),
    "2-D": (lambda p: edit(p, lambda m: m["axes"].pop(0)), "2-D image"),
    "rotation": (lambda p: edit(p, lambda m: m.update(coordinateTransformations=[{"type": "rotation"}])), "not supported"),
    "no path": (lambda p: edit(p, lambda m: m["datasets"][0].pop("path")), "incomplete or damaged"),
    "twice z": (lambda p: edit(p, lambda m: m["axes"][1].update(name="z")), "not those of an image"),
    "text": (lambda p: (p / ".zattrs").write_text("{"), "cannot be read"),
    "damaged array": (lambda p: (p / "s0" / ".zarray").write_text('{"zarr_format": 2}'), "not a readable Zarr array"),
    "no image": (lambda p: (p / ".zattrs").write_text("{}"), r"a Zarr group without an image .* inside it: s0, s1"),
    "two images": (lambda p: (p / ".zattrs").write_text('{"multiscales": [{}, {}]}'), "describe 2 images"),
    "labels": (lambda p: zarr.create_array(str(p / "s0"), data=VALUES.astype("u4"), overwrite=True, zarr_format=2), "uint32"),
}


@pytest.mark.parametrize("fault", ZARR_FAULTS)
def test_faulty_metadata_are_named(fault, tmp_path):
    path = ome_zarr_04(tmp_path / "v.zarr", VALUES, "zyx", [[scale(1, 1, 1)], [scale(1, 2, 2)]], UNITS)
    make, message = ZARR_FAULTS[fault]
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        open_volume(path)
    assert "v.zarr" in str(caught.value)


def test_levels_that_contradict_each_other(tmp_path):
    path = ome_zarr_04(tmp_path / "v.zarr", VALUES, "zyx", [[scale(1, 1, 1)], [scale(1, 4, 4)]], UNITS)
    open_volume(path)
    with pytest.raises(UserError, match=r"level 1 spans .* along y .* contradict"):
        open_volume(path, level=1)


def test_unknown_units_are_not_guessed(tmp_path):
    for units in (None, {**UNITS, "x": "pixel"}):
        path = ome_zarr_04(tmp_path / "v.zarr", VALUES, "zyx", [[scale(1, 2, 2), shift(1, 1, 1)]], units)
        assert (open_volume(path).voxel_um, open_volume(path).translation_um) == (None, None)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_damaged_chunk_is_named(zarr_format, tmp_path):
    path = tmp_path / "v.zarr"
    zarr.create_array(str(path), data=VALUES, chunks=(2, 16, 16), zarr_format=zarr_format)
    chunk = path / ("1.2.0" if zarr_format == 2 else "c/1/2/0")
    chunk.write_bytes(chunk.read_bytes()[:-50])
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[4:, :, 20:], VALUES[4:, :, 20:])
    with pytest.raises(UserError, match=rf"v\.zarr/{chunk.relative_to(path)}: this chunk cannot be read"):
        volume[:]


def test_only_the_chunks_touched_are_read(tmp_path):
    zarr.create_array(str(tmp_path / "v.zarr"), shape=(4096, 4096, 4096), chunks=(64, 64, 64), dtype="u1")  # 64 GiB
    volume = open_volume(tmp_path / "v.zarr")
    volume[:1, :1, :1]
    tracemalloc.start()
    assert not volume[2000:2064, 10:90, 3000:3100].any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


# --- NIfTI and MRC --------------------------------------------------------------------------------------------------------


def nifti(path, values=VALUES, affine=None, unit="mm", kind=nibabel.Nifti1Image, **header):
    image = kind(values.T, np.diag([4e-4, 5e-4, 2e-3, 1]) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


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
    with pytest.raises(UserError, match="2 time points; choose"):
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
    turned = open_volume(nifti(tmp_path / "m.nii", affine=np.diag([-1, 1, 1, 1])))
    assert (turned.voxel_um, turned.translation_um) == ((1000, 1000, 1000), None)
    assert open_volume(nifti(tmp_path / "u.nii", unit="unknown")).voxel_um is None
    raw = bytearray(nifti(tmp_path / "p.nii").read_bytes())
    struct.pack_into("<f", raw, 280, 1e-3)  # srow_x[0], where pixdim says 4e-4
    (tmp_path / "p.nii").write_bytes(raw)
    with pytest.raises(UserError, match="contradict each other"):
        open_volume(tmp_path / "p.nii")
    check(open_volume(nifti(tmp_path / "b.nii", VALUES.astype(">u2"))))


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
    with pytest.raises(UserError, match="not a volume"):
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
    monkeypatch.setattr(source, "_step", lambda file: steps.append(1) or step(file))
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
        file.header.mapc, file.header.maps = 3, 1
    with pytest.raises(UserError, match=r"axes \(3, 2, 1\)"):
        open_volume(path)
    mrcfile.new(path, VALUES[0], overwrite=True).close()
    with pytest.raises(UserError, match="not one volume"):
        open_volume(path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    nifti(tmp_path / "v.nii")
    mrcfile.new(tmp_path / "v.mrc", VALUES).close()

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(utils.volumes.optional_package.importlib, "import_module", absent)
    for name in ("v.nii", "v.mrc"):
        with pytest.raises(UserError, match=r"pip install 'isoscopexx\[formats\]'"):
            open_volume(tmp_path / name)
    with pytest.raises(UserError, match=r"pip install 'isoscopexx\[formats\]'"):
        write_volume(tmp_path / "w.nii.gz", VALUES)


def test_nothing_optional_or_slow_is_imported_for_a_tiff():
    code = (
        "import sys, utils.volumes.volume_io\n"
        "assert not {'torch', 'zarr', 'numcodecs', 'nibabel', 'mrcfile'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- TIFF -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["TZCYX", "TZYX"])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_hyperstacks(kind, axes, tmp_path):
    values = np.random.default_rng(2).integers(0, 255, (3, 5, 2, 6, 9)).astype(np.uint8)
    values = values if "C" in axes else values[:, :, 0]
    tifffile.imwrite(tmp_path / "v.tif", values, metadata={"axes": axes}, **{kind: True})
    for time in range(3):
        volume = open_volume(tmp_path / "v.tif", time=time, channel=1 if "C" in axes else None)
        np.testing.assert_array_equal(volume[:], values[time, :, 1] if "C" in axes else values[time])
        assert (volume.times, volume.channels) == (3, 2 if "C" in axes else 1)
    with pytest.raises(UserError, match=r"time point 3 of 3"):
        open_volume(tmp_path / "v.tif", time=3, channel=0)
    with pytest.raises(UserError, match=r"3 time points .* choose one time point"):
        open_volume(tmp_path / "v.tif", channel=0)


def test_positions_are_those_of_the_plane_chosen_and_need_a_unit(tmp_path):
    def written(**plane):
        metadata = {"axes": "CZYX", "Plane": dict(plane)}
        tifffile.imwrite(tmp_path / "v.ome.tif", np.stack([VALUES[:2]] * 2), ome=True, metadata=metadata)
        return [open_volume(tmp_path / "v.ome.tif", channel=c).translation_um for c in (0, 1)]

    position = {"PositionX": [1000.0] * 4, "PositionY": [2.0] * 4, "PositionZ": [3.0, 4.0, 5.0, 6.0]}
    units = {"PositionXUnit": ["nm"] * 4, "PositionYUnit": ["µm"] * 4, "PositionZUnit": ["mm"] * 4}
    assert written(**position, **units) == [pytest.approx((3000, 2, 1)), pytest.approx((5000, 2, 1))]
    assert written(**position) == [None, None]  # OME's default is the frame of the microscope
    assert written(**units) == [None, None]


def test_levels_exist_in_ome_zarr_only(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", VALUES)
    with pytest.raises(UserError, match="level 1 of 1"):
        open_volume(tmp_path / "v.tif", level=1)
    zarr.create_array(str(tmp_path / "v.zarr"), data=VALUES)
    with pytest.raises(UserError, match="level 1 of 1"):
        open_volume(tmp_path / "v.zarr", level=1)
