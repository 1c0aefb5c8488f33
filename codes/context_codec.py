"""The Zarr codec ``isoscopexx.context``: blocks of codes by interleaved asymmetric numeral systems (Duda 2014; Giesen 2014).

A chunk is: how far it is filled from its first corner, three uint16, the rest being 0; the states of the lanes, uint32; then
words, uint16, all little-endian. Codes go in wavefronts, so that all of one can be decoded at once: their neighbours are known.
Code i of a wavefront belongs to lane i modulo their number; a lane whose state falls below 2^16 takes the next word, in the order
of lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
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
_AT_ONCE = 64  # codes whose tables are made at once: larger ones leave the cache, and memory for them is asked for anew


@lru_cache(maxsize=16)
def _wavefronts(shape: tuple[int, int, int]) -> list[NDArray[np.int64]]:
    """Places in the raveled block, a group after the other whose neighbours all lie in groups before it."""
    z, y, x = np.indices(shape)
    steps = (z + 2 * y + x).ravel()  # each of NEIGHBOURS is at least one step back
    order = np.argsort(steps, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(steps[order])) + 1)


def encoded(codes: NDArray[np.integer], model: ContextModel) -> bytes:
    """A block of codes (slices, rows, columns), each less than ``model.codes``, as bytes.

    Raises:
        ValueError: there are other codes.
    """
    if codes.size and not 0 <= codes.min() <= codes.max() < model.codes:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} for a model of {model.codes}")
    filled = tuple(int(places.max()) + 1 if len(places) else 0 for places in np.nonzero(codes))
    codes = codes[tuple(slice(0, side) for side in filled)]
    header = np.array(filled, "<u2").tobytes()
    if not codes.size:
        return header
    frequency, start = _intervals(codes, model)
    lanes = _lanes(codes.size)
    state, words = np.full(lanes, TOTAL, np.int64), []
    for places in reversed(_wavefronts(codes.shape)):
        for begin in reversed(range(0, len(places), lanes)):
            step = places[begin : begin + lanes]
            own, f = state[: len(step)], frequency[step]
            full = own >= f << _BITS
            words.append((own[full] & TOTAL - 1).astype("<u2"))
            own = np.where(full, own >> _BITS, own)
            state[: len(step)] = (own // f << _BITS) + own % f + start[step]
    return header + state.astype("<u4").tobytes() + b"".join(part.tobytes() for part in reversed(words))


def _lanes(count: int) -> int:
    return min(_LANES, -(-count // _OF_A_LANE))


def _intervals(codes: NDArray[np.integer], model: ContextModel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Length and begin of every code's interval."""
    context, own = contexts(codes, model.codes), codes.ravel().astype(np.int64)
    length, begin = np.empty_like(own), np.empty_like(own)
    for n in range(0, len(own), _AT_ONCE):
        part = slice(n, n + _AT_ONCE)
        table, rows = model.frequencies(context[part]), np.arange(len(own[part]))
        length[part] = table[rows, own[part]]
        begin[part] = table.cumsum(1, dtype=np.int32)[rows, own[part]] - length[part]
    return length, begin


def decoded(data: bytes, shape: tuple[int, int, int], model: ContextModel) -> NDArray[np.int64]:
    """The block that :func:`encoded` made bytes of.

    Raises:
        ValueError: they are not whole, or of another shape.
    """
    filled = tuple(int(side) for side in np.frombuffer(data[:6], "<u2"))
    if len(filled) != 3 or any(side > most for side, most in zip(filled, shape, strict=True)):
        raise ValueError(f"a chunk of {filled} codes where {shape} fit")
    out, count = np.zeros(shape, np.int64), int(np.prod(filled))
    if not count:
        return out
    lanes = _lanes(count)
    words = np.frombuffer(data[6 + 4 * lanes :], "<u2").astype(np.int64)
    state = np.frombuffer(data[6 : 6 + 4 * lanes], "<u4").astype(np.int64)
    d, h, w = filled
    padded = np.full((d + 1, h + 1, w + 2), model.codes, np.int64)
    flat, inside = padded.reshape(-1), np.arange(padded.size).reshape(padded.shape)[1:, 1:, 1:-1].ravel()
    offsets = np.array([(z * (h + 1) + y) * (w + 2) + x for z, y, x in NEIGHBOURS])
    taken, most = 0, _AT_ONCE // lanes * lanes
    for places in (front[begin : begin + most] for front in _wavefronts((d, h, w)) for begin in range(0, len(front), most)):
        targets = inside[places]
        frequency = model.frequencies(flat[targets[:, None] + offsets]).ravel()
        ends = frequency.cumsum(dtype=np.int64)  # row after row, each of TOTAL: one search finds row and code
        for begin in range(0, len(places), lanes):
            target = targets[begin : begin + lanes]
            own, rows = state[: len(target)], np.arange(begin, begin + len(target))
            slot = (rows << _BITS) + (own & TOTAL - 1)
            found = ends.searchsorted(slot, side="right")
            f: NDArray[Any] = frequency[found]
            own = f * (own >> _BITS) + slot - (ends[found] - f)
            low = np.flatnonzero(own < TOTAL)
            if taken + len(low) > len(words):
                raise ValueError("a chunk of codes is cut short")
            own[low] = own[low] << _BITS | words[taken : taken + len(low)]
            taken += len(low)
            state[: len(own)] = own
            flat[target] = found - rows * model.codes
    if taken != len(words) or (state != TOTAL).any():  # where the encoder began
        raise ValueError("a chunk of codes is damaged")
    out[:d, :h, :w] = padded[1:, 1:, 1:-1]
    return out


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

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return chunk_spec.prototype.buffer.from_bytes(encoded(chunk_array.as_numpy_array(), self.model))

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        z, y, x = chunk_spec.shape
        codes = decoded(chunk_bytes.to_bytes(), (z, y, x), self.model).astype(chunk_spec.dtype.to_native_dtype())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(codes)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Not known before."""
        raise NotImplementedError


register_codec(NAME, ContextCodec)
