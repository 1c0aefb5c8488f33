"""The algebra of boxes."""

import numpy as np

from utils.boxes import boxes, corner, extent, moved, overlap, parts, relative, split, voxels_of, whole_box


def test_boxes_are_ordered_with_x_fastest():
    found = boxes((2, 3, 5), (2, 2, 4))
    assert [(b[1].start, b[2].start) for b in found] == [(0, 0), (0, 4), (2, 0), (2, 4)]
    assert found[-1] == (slice(0, 2), slice(2, 3), slice(4, 5))


def test_parts_of_a_box_begin_at_its_corner():
    box = (slice(4, 9), slice(0, 2), slice(3, 6))
    assert parts(box, (4, 2, 2)) == [
        (slice(4, 8), slice(0, 2), slice(3, 5)),
        (slice(4, 8), slice(0, 2), slice(5, 6)),
        (slice(8, 9), slice(0, 2), slice(3, 5)),
        (slice(8, 9), slice(0, 2), slice(5, 6)),
    ]
    assert moved(box, (-4, 0, -3)) == (slice(0, 5), slice(0, 2), slice(0, 3))


def test_what_two_boxes_share_is_found_in_the_values_of_either():
    values = np.arange(6 * 7 * 8).reshape(6, 7, 8)
    box, other = (slice(1, 5), slice(0, 4), slice(2, 8)), (slice(3, 6), slice(2, 7), slice(0, 3))
    met = overlap(box, other)
    assert met == (slice(3, 5), slice(2, 4), slice(2, 3))
    np.testing.assert_array_equal(values[box][relative(met, box)], values[other][relative(met, other)])
    assert extent(met) == (2, 2, 1) and voxels_of(met) == 4 and corner(met) == (3, 2, 2)
    assert overlap((slice(0, 4),), (slice(2, 9),)) == (slice(2, 4),)  # arrays of any number of axes


def test_pieces_of_a_span_and_the_whole():
    assert split(slice(3, 10), 3) == [slice(3, 6), slice(6, 9), slice(9, 10)]
    assert whole_box((2, 3, 4)) == (slice(0, 2), slice(0, 3), slice(0, 4))
