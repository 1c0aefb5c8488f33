"""The Zarr codec ``isoscopexx.context``: blocks of codes by interleaved asymmetric numeral systems (Duda 2014; Giesen 2014).

A chunk is: how far it is filled from its first corner, three uint16, the rest being 0; the states of the lanes, uint32; then
words, uint16, all little-endian. Codes go in wavefronts, so that all of one can be decoded at once: their neighbours are known.
Code i of a wavefront belongs to lane i modulo their number; a lane whose state falls below 2^16 takes the next word, in the order
of lanes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from codes.context_model import NEIGHBOURS, TOTAL, ContextModel, contexts

NAME = "isoscopexx.context"
_BITS = TOTAL.bit_length() - 1
_LANES = 16
_OF_A_LANE = 512  # codes at least, for its state of four bytes
_BLOCKS = 1024  # that are coded at once


@lru_cache(maxsize=16)
def _wavefronts(shape: tuple[int, int, int]) -> list[NDArray[np.int64]]:
    """Places in the raveled block, a group after the other whose neighbours all lie in groups before it."""
    z, y, x = np.indices(shape)
    steps = (z + 2 * y + x).ravel()  # each of NEIGHBOURS is at least one step back
    order = np.argsort(steps, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(steps[order])) + 1)


def encoded(blocks: Sequence[NDArray[np.integer]], model: ContextModel) -> list[bytes]:
    """Blocks of codes (slices, rows, columns), each less than ``model.codes``, as bytes; alike ones take the same steps at once.

    Raises:
        ValueError: there are other codes.
    """
    for codes in blocks:
        if codes.size and not 0 <= codes.min() <= codes.max() < model.codes:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} for a model of {model.codes}")
    filled = [tuple(int(places.max()) + 1 if len(places) else 0 for places in np.nonzero(codes)) for codes in blocks]
    streams = [np.array(sides, "<u2").tobytes() for sides in filled]
    for sides, numbers in _alike(filled):
        parts = [blocks[n][tuple(slice(0, side) for side in sides)] for n in numbers]
        for n, stream in zip(numbers, _encoded_alike(parts, model), strict=True):
            streams[n] += stream
    return streams


def _alike(filled: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """The numbers of blocks that are filled alike, as many as are coded at once; none of those that are empty."""
    found: dict[tuple[int, ...], list[int]] = {}
    for n, sides in enumerate(filled):
        if all(sides):
            found.setdefault(sides, []).append(n)
    for sides, numbers in found.items():
        for begin in range(0, len(numbers), _BLOCKS):
            yield sides, numbers[begin : begin + _BLOCKS]


def _lanes(count: int) -> int:
    return min(_LANES, -(-count // _OF_A_LANE))


@lru_cache(maxsize=16)
def _steps(shape: tuple[int, int, int]) -> list[NDArray[np.int64]]:
    """Places of each step, one of every lane at most."""
    lanes = _lanes(math.prod(shape))
    return [front[begin : begin + lanes] for front in _wavefronts(shape) for begin in range(0, len(front), lanes)]


def _encoded_alike(blocks: Sequence[NDArray[np.integer]], model: ContextModel) -> list[bytes]:
    """States and words of blocks of one shape."""
    d, h, w = blocks[0].shape
    intervals = [model.intervals(codes.ravel(), partial(contexts, codes, model.codes)) for codes in blocks]
    length, start = (np.stack(each) for each in zip(*intervals, strict=True))
    state = np.full((len(blocks), _lanes(d * h * w)), TOTAL, np.int64)
    words, written = [], []
    for step in reversed(_steps((d, h, w))):
        own, f = state[:, : len(step)], length[:, step]
        full = own >= f << _BITS
        words.append((own & TOTAL - 1).astype("<u2"))
        written.append(full)
        own = np.where(full, own >> _BITS, own)
        state[:, : len(step)] = (own // f << _BITS) + own % f + start[:, step]
    all_words, kept = (np.concatenate(each[::-1], axis=1) for each in (words, written))
    return [own.astype("<u4").tobytes() + w[k].tobytes() for own, w, k in zip(state, all_words, kept, strict=True)]


def decoded(streams: Sequence[bytes], shape: tuple[int, int, int], model: ContextModel) -> list[NDArray[np.int64]]:
    """The blocks that :func:`encoded` made bytes of.

    Raises:
        ValueError: they are not whole, or of another shape.
    """
    filled = [tuple(int(side) for side in np.frombuffer(data[:6], "<u2")) for data in streams]
    for sides in filled:
        if len(sides) != 3 or any(side > most for side, most in zip(sides, shape, strict=True)):
            raise ValueError(f"a chunk of {sides} codes where {shape} fit")
    out = [np.zeros(shape, np.int64) for _ in streams]
    for (d, h, w), numbers in _alike(filled):
        for n, codes in zip(numbers, _decoded_alike([streams[n][6:] for n in numbers], (d, h, w), model), strict=True):
            out[n][:d, :h, :w] = codes
    return out


def _decoded_alike(streams: Sequence[bytes], shape: tuple[int, int, int], model: ContextModel) -> NDArray[np.int64]:
    """Blocks of one shape (block, slices, rows, columns) of their states and words."""
    d, h, w = shape
    lanes, count = _lanes(math.prod(shape)), len(streams)
    if any(len(data) < 4 * lanes or len(data) % 2 for data in streams):
        raise ValueError("a chunk of codes is cut short")
    state = np.stack([np.frombuffer(data[: 4 * lanes], "<u4") for data in streams]).astype(np.int64)
    words = np.frombuffer(b"".join(data[4 * lanes :] for data in streams) + bytes(2), "<u2").astype(np.int64)
    sizes = [len(data) // 2 - 2 * lanes for data in streams]
    end = np.cumsum(sizes)
    taken = end - sizes
    padded = np.full((count, d + 1, h + 1, w + 2), model.codes, np.int64)
    flat, inside = padded.reshape(count, -1), np.arange(padded[0].size).reshape(padded.shape[1:])[1:, 1:, 1:-1].ravel()
    offsets = np.array([(z * (h + 1) + y) * (w + 2) + x for z, y, x in NEIGHBOURS])
    for places in _steps(shape):
        target, own = inside[places], state[:, : len(places)]
        slot = (own & TOTAL - 1).ravel()
        found = model.found(slot, lambda: flat[:, target[:, None] + offsets].reshape(len(slot), -1))  # noqa: B023  called at once
        code, f, begin = (each.reshape(own.shape) for each in found)
        own = f * (own >> _BITS) + (own & TOTAL - 1) - begin
        low = own < TOTAL
        after = taken[:, None] + low.cumsum(axis=1)
        taken = after[:, -1]
        if (taken > end).any():
            raise ValueError("a chunk of codes is cut short")
        state[:, : len(places)] = np.where(low, own << _BITS | words[after - 1], own)
        flat[:, target] = code
    if (taken != end).any() or (state != TOTAL).any():  # where the encoder began
        raise ValueError("a chunk of codes is damaged")
    return padded[:, 1:, 1:, 1:-1]


@dataclass(frozen=True)
class ContextCodec(ArrayBytesCodec):
    """What zarr-python calls for arrays with this codec; its configuration is the model."""

    model: ContextModel
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ContextCodec:
        """Of an array's metadata."""
        return cls(ContextModel.from_json(data.get("configuration", {})))

    def to_dict(self) -> dict[str, Any]:
        """For an array's metadata."""
        return {"name": NAME, "configuration": self.model.as_json()}

    async def encode(self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]) -> list[Buffer | None]:
        """All chunks that zarr asks for at once."""
        pairs = [(chunk, spec) for chunk, spec in chunks_and_specs if chunk is not None]
        streams = encoded([chunk.as_numpy_array() for chunk, _ in pairs], self.model)
        return [spec.prototype.buffer.from_bytes(data) for (_, spec), data in zip(pairs, streams, strict=True)]

    async def decode(self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]) -> list[NDBuffer | None]:
        """All chunks that zarr asks for at once."""
        pairs = list(chunks_and_specs)
        found: dict[int, NDArray[np.int64]] = {}
        there = [n for n, (chunk, _) in enumerate(pairs) if chunk is not None]
        if there:
            z, y, x = pairs[0][1].shape
            streams = [chunk.to_bytes() for chunk, _ in pairs if chunk is not None]
            found = dict(zip(there, decoded(streams, (z, y, x), self.model), strict=True))
        return [
            spec.prototype.nd_buffer.from_numpy_array(found[n].astype(spec.dtype.to_native_dtype())) if n in found else None
            for n, (_, spec) in enumerate(pairs)
        ]

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Not known before."""
        raise NotImplementedError


register_codec(NAME, ContextCodec)
