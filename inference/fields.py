"""Output volumes that are computed piece by piece: any box of them, always from the same tiles."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.encoding import Codes, Packed, Recent
from inference.intensity import Intensity, quantised
from inference.run import Run
from inference.tiles import Axis, Span
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from utils.volumes.volume import Box

CACHE_BYTES = 512 * 2**20  # of finished tiles, where boxes do not lie on the lattice
Array = NDArray[Any]


class Field(ABC):
    """A volume (C, Z, Y, X) of grey values that is computed when it is asked for.

    Attributes:
        shape: (Z, Y, X).
        channels: C.
        unit: (z, y, x) voxels of the lattice's cores: boxes made of whole ones are computed without waste.
        dtype: of the values.
        skipped: tiles of pure background that were filled, not computed.
    """

    shape: tuple[int, int, int]
    channels: int
    unit: tuple[int, int, int]
    skipped: int = 0

    def __init__(self, intensities: Sequence[Intensity], dtype: np.dtype) -> None:
        self.intensities, self.dtype = tuple(intensities), dtype

    @abstractmethod
    def prefetch(self, box: Box) -> None:
        """Begin to read what :meth:`render` of the same box will need."""

    @abstractmethod
    def render(self, box: Box) -> Array:
        """The box, (C, z, y, x)."""

    @abstractmethod
    def lattice(self) -> dict[str, Any]:
        """The tiles, as plain JSON for the metadata."""

    def cost(self, box: Box) -> float:
        """Seconds that the network takes for a voxel, from a trial with a box."""
        self.render(box)  # the first time costs more: memory is asked for, and codes that neighbours share are computed
        return seconds_of(lambda: self.render(box)) / math.prod(part.stop - part.start for part in box)

    def to_grey(self, values: Tensor) -> Tensor:
        """The network's values (C, ...) → grey values of the field's dtype."""
        channels = [self.intensities[min(c, len(self.intensities) - 1)].to_grey(v) for c, v in enumerate(values)]
        return quantised(torch.stack(channels), self.dtype)

    def background(self) -> Array:
        """The grey value of empty background, (C, 1, 1, 1)."""
        floors = [self.intensities[min(c, len(self.intensities) - 1)].floor for c in range(self.channels)]
        return self.to_grey(torch.tensor(floors)[:, None, None, None]).numpy()


class IsotropicField(Field):
    """The volume decoder's output, from exact tiles: what the decoder makes of the whole stack at once.

    Beyond the first and last slice, and beyond the padded rows and columns, each layer sees its own zeros, as at the edge of a
    training crop; everywhere else a tile sees as many latents as reach into it.

    Args:
        run: the model.
        codes: where codes come from.
        inner: rows and columns of the volume without padding.
        intensities: of the output's channels.
        dtype: of the output.
        core: latents (z, y, x) of a tile's core.
        skip_empty: fill tiles that see nothing but background.
        seed: dropout is active and drawn from this seed and the tile's place; None: it is not.
    """

    def __init__(
        self, run: Run, codes: Codes, inner: Sequence[int], intensities: Sequence[Intensity], dtype: np.dtype, *,
        core: Sequence[int], skip_empty: bool = True, seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(intensities, dtype)
        self.run, self.codes, self.skip_empty, self.seed = run, codes, skip_empty, seed
        geometry = run.geometry
        n, h, w = codes.shape
        self.pooling, self.resizing = geometry.downbranch, geometry.resizebranch
        self.stack = -(-n // self.pooling) * self.resizing
        self.shape = (n * geometry.factor, int(inner[0]), int(inner[1]))
        self.channels = int(run.settings["output_nc"])
        halo = run.model.volume_halo
        self.axes = tuple(Axis(size, int(c), m, m) for size, c, m in zip((self.stack, h, w), core, halo, strict=True))
        self.unit = (LATENT_STRIDE * int(core[0]), LATENT_STRIDE * int(core[1]), LATENT_STRIDE * int(core[2]))
        self._tiles: Recent[Array] = Recent(CACHE_BYTES)
        self._largest: int | None = None  # latents of a core that fitted into memory, after one did not

    def lattice(self) -> dict[str, Any]:
        """Cores and halos in latents."""
        return {"core": [axis.core for axis in self.axes], "halo": [axis.before for axis in self.axes], "exact": True}

    def prefetch(self, box: Box) -> None:
        """Lets the codes be read."""
        for numbers in self._tiles_of(box):
            self.codes.prefetch(*self._needed([axis[n].window for axis, n in zip(self.axes, numbers, strict=True)]))

    def render(self, box: Box) -> Array:
        """The box, from the tiles that meet it."""
        sides = zip(box, self.unit, self.shape, strict=True)
        aligned = all(b.start % u == 0 and (b.stop % u == 0 or b.stop == s) for b, u, s in sides)
        out = np.empty((self.channels, *(b.stop - b.start for b in box)), self.dtype)
        for numbers in self._tiles_of(box):
            tile = self._tile(numbers, keep=not aligned)
            cores = [axis[n].core for axis, n in zip(self.axes, numbers, strict=True)]
            place(out, box, tile, [(LATENT_STRIDE * a, LATENT_STRIDE * b) for a, b in cores])
        return out

    def cost(self, box: Box) -> float:
        """As above; each code is computed once, and stands for several voxels."""
        return super().cost(box) + self.codes.cost() * math.prod(self.codes.shape) / math.prod(self.shape)

    def _tiles_of(self, box: Box) -> product[tuple[int, ...]]:
        spans = [(b.start // LATENT_STRIDE, -(-b.stop // LATENT_STRIDE)) for b in box]
        return product(*(axis.covering(span) for axis, span in zip(self.axes, spans, strict=True)))

    def _tile(self, numbers: tuple[int, ...], keep: bool) -> Array:
        if numbers in self._tiles:
            return self._tiles.get(numbers)
        tile = self._core([axis[n].core for axis, n in zip(self.axes, numbers, strict=True)])
        if keep:
            self._tiles.put(numbers, tile, tile.nbytes)
        return tile

    # One core ----------------------------------------------------------------------------------------------------------

    def _core(self, core: list[Span]) -> Array:
        """A core in latents → (C, z, y, x) voxels; where memory does not suffice, in halves."""
        longest = max(range(3), key=lambda axis: core[axis][1] - core[axis][0])
        if self._largest is None or max(b - a for a, b in core) <= self._largest:
            try:
                return self._decode(core)
            except (torch.OutOfMemoryError, MemoryError):
                length = core[longest][1] - core[longest][0]
                if length == 1:
                    raise UserError("not even a tile of one latent fits into memory; use another --device") from None
                self._largest = (length + 1) // 2
            if self.run.engine.device.type == "cuda":
                torch.cuda.empty_cache()
        start, stop = core[longest]
        middle = (start + stop) // 2
        halves = [[*core[:longest], part, *core[longest + 1 :]] for part in ((start, middle), (middle, stop))]
        return np.concatenate([self._core(half) for half in halves], axis=longest + 1)

    def _decode(self, core: list[Span]) -> Array:
        windows = [
            (max(0, a - axis.before), min(axis.size, b + axis.after)) for (a, b), axis in zip(core, self.axes, strict=True)
        ]
        packed = self.codes.read(*self._needed(windows))
        if self.skip_empty and packed.empty.all():
            self.skipped += 1
            sides = [LATENT_STRIDE * (b - a) for a, b in core]
            return np.broadcast_to(self.background(), (self.channels, *sides))
        margins = [(a - lo, hi - b) for (a, b), (lo, hi) in zip(core, windows, strict=True)]
        return self._through_network(packed, windows[0], margins, core)

    def _needed(self, windows: Sequence[Span]) -> tuple[Span, Span, Span]:
        """The codes under a window of the stack: slices, latents along rows, along columns."""
        first, last = self._pooled(windows[0])
        return (first * self.pooling, min(last * self.pooling, self.codes.shape[0])), windows[1], windows[2]

    def _pooled(self, window: Span) -> Span:
        """Planes before resizing under a window of the stack, with the neighbours that interpolation reads."""
        if self.resizing == 1:
            return window
        count = self.stack // self.resizing
        return max(0, window[0] // self.resizing - 1), min(count, -(-window[1] // self.resizing) + 1)

    @torch.inference_mode()
    def _through_network(self, packed: Packed, window: Span, margins: list[Span], core: list[Span]) -> Array:
        model, device = self.run.model, self.run.engine.device
        first, last = self._pooled(window)
        with self.run.engine.autocast():
            latent = model.unpack(packed_tensor(packed.codes, device))
            short = (last - first) * self.pooling - len(latent)
            if short:  # the last group of pooled slices is incomplete
                latent = torch.cat([latent, latent[-1:].expand(short, *latent.shape[1:])])
            stack = model.restack(latent.movedim(0, -1)[None])
            skip = window[0] - first * self.resizing
            stack = stack[..., skip : skip + window[1] - window[0]]
            stack = stack.contiguous(memory_format=torch.channels_last_3d)
            z, y, x = margins
            with dropout(model.G["net_g"], self.seed, core):
                volume = model.expand(stack, (y, x, z))[0]
        return self.to_grey(volume.movedim(-1, 1)).contiguous().cpu().numpy()


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def place(out: Array, box: Box, tile: Array, spans: Sequence[Span], *, add: bool = False) -> None:
    """Puts the part of a tile (C, ...) at ``spans`` that lies in a box into the box's array (C, ...), or adds it."""
    inside, source = [slice(None)], [slice(None)]
    for b, (start, stop) in zip(box, spans, strict=True):
        lo, hi = max(b.start, start), min(b.stop, stop)
        inside.append(slice(lo - b.start, hi - b.start))
        source.append(slice(lo - start, hi - start))
    if add:
        out[tuple(inside)] += tile[tuple(source)]
    else:
        out[tuple(inside)] = tile[tuple(source)]


def to_tensor(values: Array, device: torch.device) -> Tensor:
    """An array on the device; codes of two bytes as int32, which every operation knows."""
    if values.dtype == np.uint16:
        values = values.astype(np.int32)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def packed_tensor(codes: Array, device: torch.device) -> Tensor:
    """Codes as the model's ``unpack`` takes them: features (n, h, w, d) become (n, d, h, w)."""
    tensor = to_tensor(codes, device)
    return tensor.movedim(-1, 1) if tensor.is_floating_point() else tensor


@contextmanager
def dropout(network: torch.nn.Module, seed: int | None, core: Sequence[Span]) -> Iterator[None]:
    """Dropout as in training, drawn from a seed and a place; without a seed nothing changes."""
    layers = [] if seed is None else [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    if seed is not None:
        torch.manual_seed(int(np.random.SeedSequence([seed, *(a for a, _ in core)]).generate_state(1)[0]))
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
