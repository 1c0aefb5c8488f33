"""Blocks of an input that were read lately: tiles that look at the same voxels read and decode them once."""

from itertools import product
from threading import Lock

import numpy as np

from utils.boxes import extent, overlap, relative
from utils.recent import Recent
from volumes.volume import Volume

LIMIT = 2**28  # bytes kept of each channel
_LEAST = 2**20  # voxels read at once: of several small chunks together


class RecentBlocks:
    """A volume whose file has blocks, read in whole ones; ``blocks[z0:z1:step, y0:y1, x0:x1]`` as the volume itself."""

    def __init__(self, volume: Volume) -> None:
        planes, rows, columns = volume.block_planes, volume.block_rows, volume.block_columns
        while planes * rows * columns < _LEAST:
            rows, columns = (2 * rows, columns) if rows < columns else (rows, 2 * columns)
        self.volume, self.unit = volume, (planes, rows, columns)
        self._recent, self._lock = Recent(), Lock()  # one thread reads ahead
        self._recent.limit = LIMIT

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        box = tuple(slice(*side.indices(size)[:2]) for side, size in zip(key, self.volume.shape, strict=True))
        out = np.empty(extent(box), self.volume.dtype)
        with self._lock:
            for number in product(*(range(s.start // u, -(-s.stop // u)) for s, u in zip(box, self.unit, strict=True))):
                own = tuple(slice(n * u, (n + 1) * u) for n, u in zip(number, self.unit, strict=True))
                if number not in self._recent:
                    self._recent.put(number, self.volume[own])
                common = overlap(own, box)
                out[relative(common, box)] = self._recent.latest(number)[relative(common, own)]
        return out[:: key[0].step]
