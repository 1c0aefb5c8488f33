"""Where patches lie, which part is for validation, and reading them at constant memory."""

import numpy as np
import pytest

from dataloader.cutting import Lattice, Window, split_box
from utils.boxes import whole_box
from utils.errors import UserError
from volumes.volume import ArrayVolume


def volume(*shape):
    return ArrayVolume(np.arange(np.prod(shape), dtype=np.int32).reshape(shape), "v.tif")


def boxes(lattice, shape):
    return dict(lattice.patches(whole_box(shape)))


def starts(lattice, box):
    return [[span.start for span in spans] for spans in lattice.spans(box)]


def test_steps_are_true_and_the_far_end_is_shifted_or_dropped():
    box = whole_box((9, 20, 24))
    assert starts(Lattice((4, 8, 8), (2, 4, 8), "drop"), box) == [[0, 2, 4], [0, 4, 8, 12], [0, 8, 16]]
    assert starts(Lattice((4, 8, 8), (0, 0, 0), "drop"), box) == [[0, 4], [0, 8], [0, 8, 16]]
    assert starts(Lattice((4, 8, 8)), box) == [[0, 4, 5], [0, 8, 12], [0, 8, 16]]


def test_shifted_patches_cover_every_voxel():
    seen = np.zeros((9, 20, 23), int)
    for box in boxes(Lattice((4, 8, 8), (3, 5, 8)), seen.shape).values():
        assert seen[box].shape == (4, 8, 8)
        seen[box] += 1
    assert seen.min() == 1


def test_names_are_row_column_z():
    found = boxes(Lattice((2, 5, 4)), (6, 10, 12))
    assert found["001002000"] == (slice(0, 2), slice(5, 10), slice(8, 12))
    assert len(found) == 3 * 2 * 3
    assert list(boxes(Lattice(), (6, 10, 12)).items()) == [("", whole_box((6, 10, 12)))]
    many = boxes(Lattice((1, 1, 1)), (1, 1, 1001))
    assert len(many) == 1001 and len(set(map(len, many))) == 1  # a fourth digit for all


@pytest.mark.parametrize("shape", [(40, 100, 30), (100, 20, 30)])
def test_the_parts_of_one_volume_keep_a_gap(shape):
    lattice = Lattice((8, 16, 16))
    train, val = split_box(volume(*shape), lattice, 0.1)
    axis = 1 if shape[1] == 100 else 0
    patch = lattice.patch[axis]
    assert (val[axis].start, val[axis].stop) == (100 - max(patch, 10), 100)
    assert train[axis] == slice(0, val[axis].start - patch // 8)
    assert all(train[k] == val[k] == slice(0, shape[k]) for k in range(3) if k != axis)


def test_whole_volumes_are_split_only_where_crops_fit():
    train, val = split_box(volume(2, 300, 5), Lattice(), 0.1)
    assert (train[1], val[1]) == (slice(0, 156), slice(172, 300))
    for shape in ((2, 271, 5), (20, 20, 20)):
        with pytest.raises(
            UserError, match="too small to be split, which takes 272 rows or 272 planes; give several volumes, or --val 0"
        ):
            split_box(volume(*shape), Lattice(), 0.1)


@pytest.mark.parametrize("budget", [1, 60, 500, 10**6])
def test_a_window_reads_what_is_there(budget):
    source = volume(9, 20, 24)
    window = Window(source, budget)
    for _, box in Lattice((4, 8, 8), (3, 4, 8)).patches(whole_box(source.shape)):
        np.testing.assert_array_equal(np.concatenate(list(window.pieces(box))), source.array[box])


def test_neighbours_come_from_one_reading(monkeypatch):
    source, readings = volume(8, 20, 24), []
    read = source._read
    monkeypatch.setattr(source, "_read", lambda *box: readings.append(box) or read(*box))
    window = Window(source)
    for _, box in Lattice((4, 5, 8)).patches(whole_box(source.shape)):
        list(window.pieces(box))
    assert len(readings) == 2  # slabs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((-1, 0, 0),), "must not be negative"),
        (((4, 8, 8), (4, 9, 8)), "step 9 along y is larger than the patch (8)"),
        (((0, 8, 8), (4, 0, 0)), "step 4 along z is larger than the patch (the whole axis)"),
    ],
)
def test_impossible_lattices(arguments, message):
    with pytest.raises(UserError) as error:
        Lattice(*arguments)
    assert message in str(error.value)
