"""Pieces that are begun one by one and written in parts by other threads."""

import threading

import numpy as np
import pytest

from inference.work import work_through
from utils.boxes import boxes


def test_every_part_is_written_once_from_what_was_begun():
    values = np.arange(7 * 5 * 9).reshape(7, 5, 9)
    out, threads, order = np.full_like(values, -1), set(), []

    def begin(box):
        order.append(box)
        return lambda part: values[part]

    def write(part, begun):
        threads.add(threading.current_thread().name)
        assert (out[part] == -1).all()
        out[part] = begun(part)

    pieces = boxes(values.shape, (4, 5, 4))
    done = work_through(pieces, lambda box: None, begin, write, shard=(2, 3, 4), title="", show=False)
    assert done == values.size and order == pieces
    np.testing.assert_array_equal(out, values)
    assert threading.current_thread().name not in threads


def test_an_error_in_writing_stops_the_work():
    begun = []

    def write(box, piece):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        work_through(boxes((20, 1, 1), (1, 1, 1)), lambda box: None, begun.append, write, title="", show=False)
    assert len(begun) < 20
