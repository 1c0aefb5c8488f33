"""Labelled pictures: which plane is where, one common scale, exact pixels, bounded number of files."""

import os

import numpy as np
import pytest

from utils.pictures import _lay_out, keep_newest, orthogonal_planes, save_png

SIZE = (24, 32, 16)  # memory X (rows), Y (columns), Z


def drawn(image, size, row, column):
    """The magnified plane as it stands in the picture, reduced to one pixel per voxel."""
    layout = _lay_out(size)
    top, left = layout.top + row * layout.row, layout.column(column)
    m = layout.magnify
    return image[top + m // 2 : top + layout.heights[column] : m, left + m // 2 : left + layout.widths[column] : m]


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).uniform(-1, 1, SIZE).astype(np.float32)


@pytest.fixture(scope="module")
def picture(volume):
    return orthogonal_planes({"input": volume, "half as bright": volume / 2}, title="a title", limits=(-1, 1))


def test_planes_are_the_middle_ones_in_the_orientation_of_fiji(volume, picture):
    expected = [volume[:, :, 8], volume[12].T, volume[:, 16].T]  # rows down, columns right; z down in XZ and YZ
    for row, gain in enumerate((1, 0.5)):
        for column, plane in enumerate(expected):
            grey = np.rint((plane * gain + 1) / 2 * 255).astype(np.uint8)
            shown = drawn(picture, SIZE, row, column)
            assert shown.shape == (*grey.shape, 3)
            for colour in range(3):
                np.testing.assert_allclose(shown[..., colour].astype(int), grey, atol=1)


def test_every_pixel_is_a_square_block(picture):
    layout = _lay_out(SIZE)
    assert layout.magnify == 8
    area = picture[layout.top : layout.top + layout.heights[0], layout.column(0) : layout.column(0) + layout.widths[0]]
    blocks = area.reshape(SIZE[0], 8, SIZE[1], 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_one_scale_for_all_panels():
    panels = {"dim": np.full((16, 16, 16), 3.0), "bright": np.full((16, 16, 16), 9.0)}
    panels["dim"][8, 8, 8] = 9.0
    image = orthogonal_planes(panels)
    dim, bright = (drawn(image, (16, 16, 16), row, 0) for row in range(2))
    assert (dim[8, 8] == bright[8, 8]).all()
    assert bright.min() == 255
    assert dim[0, 0].max() == 0


def test_one_panel_may_set_the_scale_of_all():
    panels = {"input": np.linspace(0, 10, 16**3).reshape(16, 16, 16), "output": np.full((16, 16, 16), 10.0)}
    panels["output"][8] = 1000.0
    image = orthogonal_planes(panels, scale_of="input")
    output = drawn(image, (16, 16, 16), 1, 0)
    assert output.min() == 255
    assert np.array_equal(
        drawn(image, (16, 16, 16), 0, 0), drawn(orthogonal_planes({"input": panels["input"]}), (16, 16, 16), 0, 0)
    )


def test_labels_are_drawn(volume, picture):
    plain = orthogonal_planes({"": volume, " ": volume / 2}, limits=(-1, 1))
    layout = _lay_out(SIZE)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == layout.top + 2 * layout.row
    for top, bottom in ((0, 22), (layout.top - 22, layout.top), (layout.top + layout.row - 22, layout.top + layout.row)):
        band = np.s_[top:bottom, layout.left : layout.left + 90]
        assert (picture[band] < 128).any(axis=(0, 1)).all(), "the title or a row's name is missing"
        assert not (plain[band] < 128).any()
    for column in range(3):  # the columns' titles, x y z below and beside each plane
        left = layout.column(column)
        assert (picture[layout.top - 40 : layout.top - 22, left : left + 40] < 128).any()
        assert (picture[layout.top : layout.top + 90, left - 20 : left - 4] < 128).any()
        bottom = layout.top + layout.heights[column]
        assert (picture[bottom + 2 : bottom + 18, left : left + layout.widths[column]] < 128).any()
    assert (picture[layout.top : layout.top + layout.heights[0], layout.bars + 10 :] < 128).any(), "the colour bar is missing"


def test_long_titles_widen_the_picture(volume):
    short, long = (orthogonal_planes({"a": volume}, title=title).shape[1] for title in ("t", 200 * "t"))
    assert long > 200 * 8 > short


def test_scale_bar_only_with_voxel_sizes(volume):
    panels = {"a": np.zeros_like(volume)}
    without, with_bar = (orthogonal_planes(panels, voxel_um=um, limits=(0, 1)) for um in (None, (0.5, 0.5, 0.5)))
    layout = _lay_out(SIZE)
    bottom, right = layout.top + layout.heights[0], layout.column(0) + layout.widths[0]
    line = with_bar[bottom - 8, layout.column(0) : right, 0]
    # a quarter of 32 voxels of 0.5 µm is 4 µm, rounded down to 2 µm = 4 voxels of 8 pixels
    assert abs(int((line > 128).sum()) - 32) <= 2
    assert without[bottom - 8, layout.column(0) : right, 0].max() == 0


def test_coarse_slices_are_drawn_as_high_as_they_are(volume):
    slices = volume[:, :, ::4]
    image = orthogonal_planes({"input": slices, "output": volume}, limits=(-1, 1))
    expected = np.rint((np.repeat(slices, 4, axis=2)[12].T + 1) / 2 * 255)
    np.testing.assert_allclose(drawn(image, SIZE, 0, 1)[..., 0].astype(int), expected, atol=1)
    stretched = orthogonal_planes({"input": slices}, limits=(-1, 1), voxel_um=(2.0, 0.5, 0.5))
    np.testing.assert_allclose(drawn(stretched, SIZE, 0, 1)[:12, ..., 0].astype(int), expected[:12], atol=1)


def test_two_channels_become_magenta_and_green():
    volume = np.zeros((2, 16, 16, 16))
    volume[0, :8], volume[1, :, :8] = 1, 5
    image = drawn(orthogonal_planes({"both": volume}), (16, 16, 16), 0, 0)
    assert [tuple(image[r, c]) for r, c in ((0, 15), (15, 0), (0, 0), (15, 15))] == [
        (255, 0, 255),
        (0, 255, 0),
        (255, 255, 255),
        (0, 0, 0),
    ]


def test_a_panel_with_one_channel_beside_two_is_grey():
    """The reconstructed slices of a two-channel training show channel 0 alone."""
    both, one = np.zeros((2, 16, 16, 16)), np.zeros((16, 16, 16))
    both[1], one[:8] = 1, 1
    image = orthogonal_planes({"both": both, "one": one}, limits=(0, 1))
    row = drawn(image, (16, 16, 16), 1, 0)
    assert [tuple(row[r, 15]) for r in (0, 15)] == [(255, 255, 255), (0, 0, 0)]
    assert tuple(drawn(image, (16, 16, 16), 0, 0)[8, 8]) == (0, 255, 0)


def test_large_planes_are_thinned():
    size = (1600, 8, 8)
    image = orthogonal_planes({"long": np.broadcast_to(np.linspace(0, 1, 1600)[:, None, None], size)}, limits=(0, 1))
    assert _lay_out(size).heights[0] == 534
    assert image.shape[0] < 700


def test_values_that_are_not_finite_are_red(volume):
    broken = volume.copy()
    broken[3, 5, 8] = np.nan
    image = drawn(orthogonal_planes({"a": broken}), SIZE, 0, 0)
    assert tuple(image[3, 5]) == (255, 0, 0)
    assert not (image == (255, 0, 0)).all(-1)[4:].any()
    all_broken = drawn(orthogonal_planes({"a": np.full(SIZE, np.inf)}), SIZE, 0, 0)
    assert (all_broken == (255, 0, 0)).all()


def test_png_is_written_completely_or_not_at_all(tmp_path, picture):
    from PIL import Image

    path = tmp_path / "pictures" / "a.png"
    save_png(path, picture)
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(stored), picture)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_png(path, np.zeros((4, 4, 7), np.uint8))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.png"]


def test_only_the_newest_files_are_kept(tmp_path):
    for age, name in enumerate(("e_9.png", "e_1.png", "e_5.png", "e_7.png")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "other.txt").touch()
    keep_newest(tmp_path, "e_*.png", 2)
    assert sorted(os.listdir(tmp_path)) == ["e_1.png", "e_9.png", "other.txt"]
    keep_newest(tmp_path, "e_*.png", 5)
    assert len(os.listdir(tmp_path)) == 3
