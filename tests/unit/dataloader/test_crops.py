"""Where crops lie and how they are cut: unequal sizes throughout, so that a swapped axis cannot pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from dataloader.crops import (
    Crop,
    CropSettings,
    box_under,
    centre_crop,
    neighbourhood,
    places,
    random_crop,
    read_crop,
    rotation_margin,
)
from utils.axes import to_memory
from utils.boxes import sample
from utils.errors import UserError
from utils.geometry import Geometry
from volumes.volume import ArrayVolume, Region


class Recording(ArrayVolume):
    """Remembers what was asked of the file."""

    def __init__(self, array):
        super().__init__(array)
        self.boxes = []

    def _read(self, planes, rows, columns):
        self.boxes.append((planes, rows, columns))
        return super()._read(planes, rows, columns)


def settings(**options):
    return CropSettings(**{"cropsize": 16, "cropz": 6, "rotate": False} | options)


def crops(shape, chosen, count):
    return [random_crop(places(shape, chosen), chosen, np.random.default_rng([0, 0, k])) for k in range(count)]


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).random((11, 40, 53)).astype(np.float32)


def test_a_plain_crop_is_a_piece_of_the_file(values):
    for crop in crops(values.shape, settings(), 20):
        piece = values[crop.z : crop.z + 6, crop.row : crop.row + 16, crop.column : crop.column + 16]
        result = read_crop(ArrayVolume(values), crop, settings())
        np.testing.assert_array_equal(result, np.moveaxis(piece, 0, -1))
        assert result.dtype == np.float32 and result.flags.c_contiguous


def test_every_position_is_reached_the_last_ones_too():
    drawn = crops((9, 18, 19), settings(), 1200)
    for name, last in (("z", 3), ("row", 2), ("column", 3)):
        counts = np.bincount([getattr(crop, name) for crop in drawn])
        expected = 1200 / (last + 1)
        assert len(counts) == last + 1
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_neighbours_reach_every_position_equally_often(monkeypatch):
    monkeypatch.setattr("dataloader.crops._CELL", (2, 1, 1))
    chosen, everywhere = settings(cropz=2), places((6, 39, 16), settings(cropz=2))  # neighbourhoods of 2, 2, 1 planes, 16, 8 rows
    rngs = [np.random.default_rng([k, 1]) for k in range(2400)]
    nearby = [neighbourhood(everywhere, chosen, rng) for rng in rngs]
    assert {(part.start, part.stop) for part, _, _ in nearby} == {(0, 2), (2, 4), (4, 5)}
    drawn = [random_crop(within, chosen, rng) for within, rng in zip(nearby, rngs, strict=True)]
    assert all(z.start <= crop.z < z.stop and y.start <= crop.row < y.stop for (z, y, _), crop in zip(nearby, drawn, strict=True))
    for name, count in (("z", 5), ("row", 24)):
        counts, expected = np.bincount([getattr(crop, name) for crop in drawn]), 2400 / count
        assert len(counts) == count and (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize(
    "options", [{"rotate": True}, {"resize": 24, "rotate": True}, {"precrop": 36, "resize": 60}, {"dsp": 2, "usp": 1.5}]
)
def test_a_region_holds_what_its_neighbours_need_and_no_more(values, options):
    chosen, volume, rng = settings(**options), Recording(values), np.random.default_rng(1)
    everywhere = places(values.shape, chosen)
    for within in (everywhere, tuple(slice(part.stop // 3, part.stop - part.stop // 3) for part in everywhere)):
        volume.boxes.clear()
        region = Region(volume, box_under(within, values.shape, chosen))
        for _ in range(20):
            crop = random_crop(within, chosen, rng)
            np.testing.assert_array_equal(read_crop(region, crop, chosen), read_crop(ArrayVolume(values), crop, chosen))
        for at, offset in (([part.start for part in within], 0), ([part.stop - 1 for part in within], chosen.dsp - 1)):
            read_crop(volume, replace(crop, z=at[0], row=at[1], column=at[2], offset=offset), chosen)
        for own, *ends in zip(*volume.boxes, strict=True):
            assert own.start == min(end.start for end in ends) and own.stop == max(end.stop for end in ends)


def test_crops_lie_where_they_did_in_earlier_versions():
    """A training of theirs that is resumed goes on with the same crops."""
    (crop,) = crops((90, 180, 190), settings(dsp=2, rotate=True), 1)
    assert crop == Crop(z=72, offset=1, row=84, column=47, rotation=661058652)


def test_a_volume_as_large_as_the_crop_has_one_position(values):
    exact = values[:6, :16, :16]
    assert {(c.z, c.row, c.column) for c in crops(exact.shape, settings(), 10)} == {(0, 0, 0)}
    np.testing.assert_array_equal(
        read_crop(ArrayVolume(exact), centre_crop(exact.shape, settings()), settings()), to_memory(exact)
    )


def test_the_centre_crop_is_the_middle(values):
    result = read_crop(ArrayVolume(values), centre_crop(values.shape, settings()), settings())
    np.testing.assert_array_equal(result, np.moveaxis(values[2:8, 12:28, 18:34], 0, -1))


def test_precrop_keeps_to_the_centre(values):
    chosen = settings(precrop=18)
    for crop in crops(values.shape, chosen, 30):
        top, left = 11 + crop.row, 17 + crop.column
        assert 0 <= crop.row <= 2 and 0 <= crop.column <= 2
        piece = values[crop.z : crop.z + 6, top : top + 16, left : left + 16]
        np.testing.assert_array_equal(read_crop(ArrayVolume(values), crop, chosen), np.moveaxis(piece, 0, -1))


def test_pick_thins_with_every_offset_and_reads_no_other_plane(values):
    chosen = settings(cropz=9, dsp=3)
    offsets = set()
    for crop in crops(values.shape, chosen, 40):
        volume = Recording(values)
        result = read_crop(volume, crop, chosen)
        planes, _, _ = volume.boxes[0]
        assert list(planes) == [crop.z + crop.offset + 3 * k for k in range(3)]
        piece = values[list(planes), crop.row : crop.row + 16, crop.column : crop.column + 16]
        np.testing.assert_array_equal(result, np.moveaxis(piece, 0, -1))
        offsets.add(crop.offset)
    assert offsets == {0, 1, 2}
    assert centre_crop(values.shape, chosen).offset == 0


def test_mean_averages_whole_groups(values):
    chosen = settings(cropz=8, dsp=3, dsp_how="mean")  # 2 groups of 3; planes 6 and 7 are left over
    crop = crops(values.shape, chosen, 1)[0]
    piece = values[crop.z : crop.z + 6, crop.row : crop.row + 16, crop.column : crop.column + 16]
    by_hand = np.stack([piece[:3].mean(axis=0), piece[3:].mean(axis=0)], axis=-1)
    np.testing.assert_allclose(read_crop(ArrayVolume(values), crop, chosen), by_hand, atol=1e-6)


@pytest.mark.parametrize("usp", [2, 1.5, 0.5])
def test_usp_interpolates_along_z_like_torch(usp, values):
    plain, chosen = settings(), settings(usp=usp)
    crop = centre_crop(values.shape, plain)
    volume = torch.from_numpy(read_crop(ArrayVolume(values), crop, plain))[None, None]
    expected = functional.interpolate(volume, scale_factor=(1, 1, usp), mode="trilinear", align_corners=False)[0, 0]
    result = read_crop(ArrayVolume(values), crop, chosen)
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-6)
    assert result.shape == (16, 16, chosen.slices)


@pytest.mark.parametrize(
    ("cropsize", "cropz", "dsp", "usp"),
    [(32, 4, 1, 1), (32, 32, 8, 1), (32, 9, 2, 1), (32, 8, 4, 2), (24, 2, 1, 1.5), (16, 5, 2, 1)],
)
def test_slices_are_those_of_the_geometry(cropsize, cropz, dsp, usp):
    geometry = Geometry.from_settings({"cropsize": cropsize, "cropz": cropz, "dsp": dsp, "usp": usp})
    chosen = settings(cropsize=cropsize, cropz=cropz, dsp=dsp, usp=usp)
    volume = ArrayVolume(np.zeros((cropz, cropsize, cropsize), np.uint8))
    assert read_crop(volume, centre_crop(volume.shape, chosen), chosen).shape == (cropsize, cropsize, geometry.slices)


@pytest.mark.parametrize("precrop", [0, 33])
@pytest.mark.parametrize("resize", [24, 71])
def test_resize_equals_a_crop_of_the_resized_plane(resize, precrop, values):
    chosen = settings(resize=resize, precrop=precrop)
    region = values[:, 3:36, 10:43] if precrop else values
    whole = functional.interpolate(torch.from_numpy(region)[None], (resize, resize), mode="bilinear", align_corners=False)[0]
    for crop in crops(values.shape, chosen, 10):
        piece = whole[crop.z : crop.z + 6, crop.row : crop.row + 16, crop.column : crop.column + 16].numpy()
        np.testing.assert_allclose(read_crop(ArrayVolume(values), crop, chosen), np.moveaxis(piece, 0, -1), atol=1e-5)


def test_interpolation_clamps_at_the_ends():
    ramp = np.array([[1.0, 3.0, 7.0]], np.float32)
    np.testing.assert_allclose(sample(ramp, np.array([-0.25, 0.5, 1.25, 2.5]), axis=1), [[1, 2, 4, 7]])


def test_rotation_is_about_the_centre_of_the_crop():
    """Of a linear ramp the rotated crop is the analytic ramp about the crop's own centre, whatever the angle."""
    rows, columns = np.mgrid[:90, :97].astype(np.float32)
    volume, chosen = ArrayVolume(np.stack([3 * rows, 5 * columns, rows])), settings(cropz=3, rotate=True)
    angles = []
    for crop in crops(volume.shape, chosen, 60):
        if not (5 <= crop.row <= 90 - 21 and 5 <= crop.column <= 97 - 21):
            continue  # reflection would bend the ramp
        result = read_crop(volume, crop, chosen)
        y, x = result[..., 0] / 3, result[..., 1] / 5
        centre = crop.row + 7.5, crop.column + 7.5
        assert np.allclose((y.mean(), x.mean()), centre, atol=1e-3)
        step = y[1, 0] - y[0, 0], x[1, 0] - x[0, 0]  # one row further, on the file's grid: (cos, ∓sin)
        assert np.hypot(*step) == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose([y[0, 1] - y[0, 0], x[0, 1] - x[0, 0]], [-step[1], step[0]], atol=1e-3)
        angles.append(np.degrees(np.arctan2(step[1], step[0])))
    assert len(angles) > 30
    assert -45.1 < min(angles) < -30 and 30 < max(angles) < 45.1


def test_an_impulse_at_the_centre_stays_there():
    values = np.zeros((1, 60, 70), np.float32)
    chosen = settings(cropz=1, rotate=True)
    for crop in crops(values.shape, chosen, 20):
        values[:] = 0
        values[0, crop.row + 7 : crop.row + 9, crop.column + 7 : crop.column + 9] = 1
        result = read_crop(ArrayVolume(values), crop, chosen)[..., 0]
        rows, columns = np.indices(result.shape)
        assert result.sum() == pytest.approx(4, abs=0.5)
        assert (result * rows).sum() / result.sum() == pytest.approx(7.5, abs=1e-3)
        assert (result * columns).sum() / result.sum() == pytest.approx(7.5, abs=1e-3)


def test_rotation_brings_in_no_grey_corners():
    chosen = settings(rotate=True)
    for shape in ((6, 16, 16), (7, 17, 40), (9, 40, 16)):
        volume = ArrayVolume(np.full(shape, 1234.5, np.float32))
        for crop in crops(shape, chosen, 15):
            assert (read_crop(volume, crop, chosen) == 1234.5).all()


def test_beyond_the_border_lies_the_reflection(values):
    chosen, margin = settings(rotate=True), rotation_margin(16)
    larger = ArrayVolume(np.pad(values, ((0, 0), (margin, margin), (margin, margin)), mode="reflect"))
    for crop in crops(values.shape, chosen, 25):
        moved = type(crop)(crop.z, crop.offset, crop.row + margin, crop.column + margin, crop.rotation)
        np.testing.assert_array_equal(read_crop(ArrayVolume(values), crop, chosen), read_crop(larger, moved, chosen))


def test_rotation_reads_little_more_than_the_diagonal():
    volume, chosen = Recording(np.zeros((6, 400, 500), np.uint8)), settings(cropsize=64, rotate=True)
    for crop in crops(volume.shape, chosen, 20):
        read_crop(volume, crop, chosen)
    assert len(volume.boxes) == 20
    for planes, rows, columns in volume.boxes:
        assert len(planes) == 6
        assert max(rows.stop - rows.start, columns.stop - columns.start) <= 64 * np.sqrt(2) + 4


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float64"])
def test_values_are_the_file_s_own_in_float32(dtype, values):
    scaled = (values * 200).astype(dtype)
    result = read_crop(ArrayVolume(scaled), centre_crop(values.shape, settings()), settings(dsp=2, cropz=2, dsp_how="mean"))
    assert result.dtype == np.float32
    by_hand = scaled[2:4, 12:28, 18:34].astype(np.float64).mean(axis=0)[..., None]
    np.testing.assert_allclose(result, by_hand, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5, 40, 40), {}, r"\(5, 40, 40\): fewer planes than cropz=6"),
        ((6, 15, 40), {}, r"\(6, 15, 40\): smaller in-plane than cropsize=16"),
        ((6, 40, 15), {}, r"smaller in-plane than cropsize=16"),
        ((6, 40, 30), {"precrop": 31}, r"smaller than precrop=31"),
    ],
)
def test_a_volume_smaller_than_the_crop_is_named(shape, options, message):
    with pytest.raises(UserError, match=message) as caught:
        settings(**options).check(ArrayVolume(np.zeros(shape, np.uint8), "small.tif"))
    assert "small.tif" in str(caught.value)


def test_small_planes_may_be_enlarged():
    settings(resize=16).check(ArrayVolume(np.zeros((6, 9, 7), np.uint8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precrop": 12}, "precrop=12 is smaller than cropsize=16"),
        ({"resize": 12}, "resize=12 is smaller than cropsize=16"),
        ({"dsp": 7, "usp": 2}, "leaves no slice"),
    ],
)
def test_settings_that_contradict_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        settings(**options)
