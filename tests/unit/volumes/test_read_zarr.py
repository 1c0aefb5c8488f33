"""OME-Zarr of several versions and plain Zarr arrays: read lazily and exactly, or refused by name."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
import yaozarrs
import zarr
from format_volumes import SHAPE, VALUES, check

from utils.errors import UserError
from volumes.open import open_volume


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
            f"s{level}",
            shape=data.shape,
            dtype=data.dtype,
            chunks=(1,) * (len(axes) - 3) + (3, 16, 20),
            chunk_key_encoding={"name": "v2", "separator": separator},
        )
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
        tmp_path / "v.zarr",
        VALUES,
        "zyx",
        [[scale(2, 500, 4e-4), shift(1, 10, 1e-3)], [scale(2, 1000, 8e-4)]],
        UNITS,
        [scale(2, 1, 1), shift(100, 0, 0)],
        separator,
    )
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
            ({}, "3 channels .*; choose"),
            ({"channel": 0}, "2 time points .*; choose"),
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


def chunks(path, sides):
    about = json.loads((path / "s0" / ".zarray").read_text())
    (path / "s0" / ".zarray").write_text(json.dumps({**about, "chunks": sides}))


ZARR_FAULTS = {
    "no array": (lambda p: shutil.rmtree(p / "s0"), "name an array 's0' that does not exist"),
    "axes": (lambda p: edit(p, lambda m: m["axes"].insert(0, {"name": "c", "type": "channel"})), "contradict"),
    "zero scale": (
        lambda p: edit(p, lambda m: m["datasets"][0].update(coordinateTransformations=[scale(0, 1, 1)])),
        "contradicts",
    ),
    "2-D": (lambda p: edit(p, lambda m: m["axes"].pop(0)), "contradicts its 2 axes"),
    "rotation": (lambda p: edit(p, lambda m: m.update(coordinateTransformations=[{"type": "rotation"}])), "not supported"),
    "no path": (lambda p: edit(p, lambda m: m["datasets"][0].pop("path")), "incomplete or damaged"),
    "twice z": (lambda p: edit(p, lambda m: m["axes"][1].update(name="z")), r"axes z, z, x .* are not a volume"),
    "text": (lambda p: (p / ".zattrs").write_text("{"), "cannot be read"),
    "levels": (lambda p: edit(p, lambda m: m.update(datasets=7)), "name '7' as levels"),
    "no chunks": (lambda p: chunks(p, [2, 0, 16]), r"not a readable Zarr array"),
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
