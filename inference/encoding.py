"""Slices to codes: tiles of a training crop, each position's code from the tile in whose core it lies."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.batches import Passes, no_memory
from inference.run import Run
from inference.source import Slices
from inference.tiling import Axis, round_up, training_axis
from inference.transfer import to_tensor
from utils.geometry import LATENT_STRIDE
from volumes.volume import Span

LOCAL_CORE = 48  # latents of a tile's core where the autoencoder is local: large against the halo, one slice at a time
GROUP = 16  # slices that are encoded at once
CACHE_BYTES = 512 * 2**20

Key = tuple[int, int, int]  # group of slices, tile along rows, tile along columns
Window = tuple[NDArray[np.float32], NDArray[np.bool_]]  # (C, n, rows, columns) pixels, (n, h, w): which blocks are background
Value = TypeVar("Value")


class Packed(NamedTuple):
    """What the volume is decoded from, for a box of latents.

    Attributes:
        codes: (n, h, w) or (n, h, w, d): codes of one level, of several, or features.
        empty: (n, h, w) bool: positions whose pixels are background.
    """

    codes: NDArray[Any]
    empty: NDArray[np.bool_]


class Codes(Protocol):
    """Where decoding takes codes from: an encoder at work, or a store on disc."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, latents along rows and columns."""

    def prefetch(self, k: Span, y: Span, x: Span) -> None:
        """Begin to read what :meth:`read` of the same box will need."""

    def read(self, k: Span, y: Span, x: Span) -> Packed:
        """The codes of slices [k) at latents [y), [x)."""

    def cost(self) -> float:
        """Seconds that a code takes, from a trial."""


class Recent(Generic[Value]):
    """Values by key, the least recently used ones forgotten when their sizes exceed a limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._values: OrderedDict[Any, tuple[Value, int]] = OrderedDict()

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def get(self, key: Any) -> Value:
        """The value, which becomes the most recent one."""
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Any, value: Value, size: int) -> None:
        """Keeps a value of `size` bytes."""
        if key in self._values:
            return
        self._values[key] = value, size
        self.size += size
        while self.size > self.limit and len(self._values) > 1:
            self.size -= self._values.popitem(last=False)[1][1]


@dataclass(frozen=True)
class EncodingLattice:
    """The tiles of an encoding.

    Attributes:
        group: slices encoded together.
        rows, columns: axes of latents.
    """

    group: int
    rows: Axis
    columns: Axis

    def as_json(self) -> dict[str, Any]:
        """For the metadata: all in latents."""
        side = self.rows.before + self.rows.core + self.rows.after
        return {"slices": self.group, "core": self.rows.core, "tile": side, "before": self.rows.before, "after": self.rows.after}


def encoding_lattice(run: Run, shape: tuple[int, int, int]) -> EncodingLattice:
    """Tiles for slices of a padded shape (n, rows, columns): with the encoder's halo where it is local, else training crops."""
    height, width = shape[1] // LATENT_STRIDE, shape[2] // LATENT_STRIDE
    halo = run.model.slice_halo("encoder")
    if halo is None:
        group = min(GROUP, shape[0])
        return EncodingLattice(group, training_axis(height, run.crop_latents), training_axis(width, run.crop_latents))
    before, after = (round_up(pixels, LATENT_STRIDE) // LATENT_STRIDE for pixels in halo)
    rows, columns = (Axis(size, LOCAL_CORE, before, after, full=True) for size in (height, width))
    return EncodingLattice(1, rows, columns)


class SliceEncoder:
    """Codes of a volume's slices, computed when they are asked for, tile by tile; recent tiles are kept.

    Rounding can tip a code between two that are equally near. So a pass that is not full is filled up (see :class:`Passes`), and
    the codes do not depend on what else was asked for.

    Attributes:
        shape: slices, latents along rows and columns.
        lattice: the tiles.
        passes: of the network, several tiles in each.
        skipped: tiles of pure background that were not computed.
    """

    def __init__(self, run: Run, slices: Slices, *, batch: int | None = None, skip_empty: bool = True) -> None:
        self.run, self.slices, self.skip_empty = run, slices, skip_empty
        self.shape = (slices.count, slices.shape[1] // LATENT_STRIDE, slices.shape[2] // LATENT_STRIDE)
        self.lattice = encoding_lattice(run, slices.shape)
        self.passes = Passes(batch or run.engine.batch, fill=True)
        self.skipped = 0
        self._tiles: Recent[Packed] = Recent(CACHE_BYTES)
        self._windows: dict[Key, Future[Window]] = {}
        self._reader = ThreadPoolExecutor(1, "read")
        self._floors = np.array([i.floor for i in slices.intensities], np.float32)[:, None, None, None]
        self._blank: NDArray[Any] | None = None
        self._dtype = code_dtype(run)

    def prefetch(self, k: Span, y: Span, x: Span) -> None:
        """Reads the pixels of a box's missing tiles in the background."""
        for key in self._missing(k, y, x):
            if key not in self._windows:
                self._windows[key] = self._reader.submit(self._window, key)

    def read(self, k: Span, y: Span, x: Span) -> Packed:
        """The codes of a box; tiles that are missing are computed."""
        kept = self._compute(self._missing(k, y, x))
        codes: NDArray[Any] | None = None
        empty = np.zeros([b - a for a, b in (k, y, x)], bool)
        for key in self._keys(k, y, x):
            tile = kept[key] if key in kept else self._tiles.get(key)
            if codes is None:
                codes = np.empty(empty.shape + tile.codes.shape[3:], tile.codes.dtype)
            inside, source = _overlap((k, y, x), self._box(key))
            codes[inside], empty[inside] = tile.codes[source], tile.empty[source]
        assert codes is not None
        return Packed(codes, empty)

    def cost(self) -> float:
        """From a full pass of the tile in the middle."""
        key = (len(range(0, self.shape[0], self.lattice.group)) // 2, len(self.lattice.rows) // 2, len(self.lattice.columns) // 2)
        window, _ = self._window(key)
        started = time.perf_counter()
        self._through_network([window])
        return (time.perf_counter() - started) / (self.passes.size * math.prod(b - a for a, b in self._box(key)))

    # Tiles -----------------------------------------------------------------------------------------------------------

    def _keys(self, k: Span, y: Span, x: Span) -> Iterable[Key]:
        groups = range(k[0] // self.lattice.group, (k[1] - 1) // self.lattice.group + 1)
        rows, columns = self.lattice.rows.covering(y), self.lattice.columns.covering(x)
        return ((g, i, j) for g in groups for i in rows for j in columns)

    def _missing(self, k: Span, y: Span, x: Span) -> list[Key]:
        return [key for key in self._keys(k, y, x) if key not in self._tiles]

    def _group(self, number: int) -> Span:
        return number * self.lattice.group, min((number + 1) * self.lattice.group, self.shape[0])

    def _box(self, key: Key) -> tuple[Span, Span, Span]:
        return self._group(key[0]), self.lattice.rows[key[1]].core, self.lattice.columns[key[2]].core

    def _window(self, key: Key) -> Window:
        """What a tile sees; the last group of slices is filled up, so that the network sees one shape only."""
        rows, columns = self.lattice.rows[key[1]].window, self.lattice.columns[key[2]].window
        pixels = [(LATENT_STRIDE * a, LATENT_STRIDE * b) for a, b in (rows, columns)]
        window = self.slices.read(self._group(key[0]), *pixels)
        missing = self.lattice.group - window.shape[1]
        if missing:
            window = np.concatenate([window, window[:, -1:].repeat(missing, axis=1)], axis=1)
        return window, _blocks_empty(window, self._floors)

    def _compute(self, keys: list[Key]) -> dict[Key, Packed]:
        """Tiles by key; they are kept for later as well."""
        made: dict[Key, Packed] = {}
        waiting: dict[Key, Window] = {}

        def encode() -> None:
            codes = self._through_network([window for window, _ in waiting.values()])
            made.update((key, self._core(key, c, waiting[key][1])) for key, c in zip(waiting, codes, strict=True))
            waiting.clear()

        for key in keys:
            future = self._windows.pop(key, None)
            window, empty = self._window(key) if future is None else future.result()
            if self.skip_empty and empty.all():
                self.skipped += 1
                made[key] = self._core(key, self._blank_codes(window), empty)
                continue
            waiting[key] = window, empty
            if len(waiting) >= self.passes.size:
                encode()
        encode()
        for key, tile in made.items():
            self._tiles.put(key, tile, tile.codes.nbytes + tile.empty.nbytes)
        return made

    def _blank_codes(self, window: NDArray[np.float32]) -> NDArray[Any]:
        """The codes of a tile of pure background, computed once."""
        if self._blank is None:
            self._blank = self._through_network([np.broadcast_to(self._floors, window.shape)])[0]
        return self._blank

    def _core(self, key: Key, codes: NDArray[Any], empty: NDArray[np.bool_]) -> Packed:
        parts = []
        for axis, number in ((self.lattice.rows, key[1]), (self.lattice.columns, key[2])):
            tile = axis[number]
            parts.append(slice(tile.core[0] - tile.window[0], tile.core[1] - tile.window[0]))
        count = len(range(*self._group(key[0])))
        return Packed(codes[(slice(0, count), *parts)].copy(), empty[(slice(0, count), *parts)].copy())

    # Network ---------------------------------------------------------------------------------------------------------

    def _through_network(self, windows: Sequence[NDArray[np.float32]]) -> list[NDArray[Any]]:
        """Windows (C, n, rows, columns) → codes (n, h, w, ...) of each."""
        return self.passes(self._pass, windows, self._in_halves)

    def _in_halves(self, window: NDArray[np.float32]) -> NDArray[Any]:
        """The codes of a window for which memory does not suffice, from half of its slices at a time."""
        if window.shape[1] == 1:
            raise no_memory("one slice of a tile", "--batch 1")
        return np.concatenate([self._through_network([half])[0] for half in np.array_split(window, 2, axis=1)])

    @torch.inference_mode()
    def _pass(self, windows: Sequence[NDArray[np.float32]]) -> list[NDArray[Any]]:
        slices = to_tensor(np.stack(windows), self.run.engine.device).movedim(1, 2).flatten(0, 1)
        with self.run.engine.computing():
            packed: Tensor = self.run.model.pack(slices)
        if packed.is_floating_point():
            packed = packed.movedim(1, -1)
        codes = packed.to(torch.float32 if packed.dtype == torch.bfloat16 else packed.dtype).cpu().numpy()
        return list(codes.astype(self._dtype, copy=False).reshape(len(windows), -1, *codes.shape[1:]))


def code_dtype(run: Run) -> np.dtype:
    """How codes are held: one byte up to 256 codes, else two; float16 for a posterior's mean, float32 for features."""
    if "quantize" in run.model.G:
        return np.dtype(np.uint8 if run.settings["autoencoder"]["n_embed"] <= 256 else np.uint16)
    return np.dtype(np.float32 if run.model.from_encoder else np.float16)


def _blocks_empty(window: NDArray[np.float32], floors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(C, n, 8h, 8w) → (n, h, w): blocks of 8x8 pixels that are all at the floor."""
    channels, count, height, width = window.shape
    step = LATENT_STRIDE
    blocks = window.reshape(channels, count, height // step, step, width // step, step)
    empty = (blocks[:, :, :, 0, :, 0] == floors).all(axis=0)
    k, y, x = np.nonzero(empty)  # most blocks are out of question by their first pixel
    empty[k, y, x] = (blocks[:, k, y, :, x] == floors[:, 0]).all(axis=(1, 2, 3))
    return empty


def _overlap(box: tuple[Span, Span, Span], other: tuple[Span, Span, Span]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where two boxes meet, as slices of the one and of the other."""
    met = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(box, other, strict=True)]
    inside = tuple(slice(lo - a[0], hi - a[0]) for (lo, hi), a in zip(met, box, strict=True))
    source = tuple(slice(lo - b[0], hi - b[0]) for (lo, hi), b in zip(met, other, strict=True))
    return inside, source
