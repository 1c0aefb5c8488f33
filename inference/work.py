"""Reading, network and writing at the same time, piece by piece, with few pieces in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from volumes.volume import Box, voxels_of

_WAITING = 1  # pieces that are being written while the next one is computed
_WRITERS = 4  # threads that put pieces together, compress and write them

Piece = TypeVar("Piece")


def work_through(
    pieces: Sequence[Box],
    *,
    prefetch: Callable[[Box], None],
    begin: Callable[[Box], Piece],
    write: Callable[[Box, Piece], None],
    title: str,
    split: Callable[[Box], Sequence[Box]] | None = None,
    show: bool = True,
) -> int:
    """Computes and writes boxes: while one is computed, the next one is read and the last ones are written.

    Args:
        pieces: boxes, in the order of work.
        prefetch: begins to read what a box needs; returns at once.
        begin: computes a box, or has a GPU compute it.
        write: puts a part of what was begun to disc, or all; called in other threads, for several parts at once.
        split: the parts of a box; None: it is written as one.
        title: of the progress bar, which counts voxels and tells the time left.
        show: whether there is a bar.

    Returns:
        Voxels done.
    """
    sizes = [voxels_of(box) for box in pieces]
    writing: deque[list[Future[None]]] = deque()
    with (
        tqdm(total=sum(sizes), desc=title, unit="voxel", unit_scale=True, disable=not show, mininterval=1) as bar,
        ThreadPoolExecutor(_WRITERS, "write") as writers,
    ):
        for number, (box, size) in enumerate(zip(pieces, sizes, strict=True)):
            if number + 1 < len(pieces):
                prefetch(pieces[number + 1])
            begun = begin(box)
            writing.append([writers.submit(write, part, begun) for part in (split(box) if split else [box])])
            del begun
            while len(writing) > (_WAITING if number + 1 < len(pieces) else 0):
                for future in writing.popleft():
                    future.result()
            bar.update(size)
    return sum(sizes)
