"""What applying a run takes of a CPU's memory, counted from the shapes of its networks' passes before anything is computed."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch._subclasses import FakeTensorMode

from inference.encoding import SliceEncoder
from inference.fields import Field
from inference.passes import Tiled
from inference.source import Source
from utils.errors import UserError
from utils.machine import Alive, held_memory, total_memory
from utils.recent import CACHE_BYTES
from utils.units import as_size
from volumes.recent_blocks import LIMIT

SHARD = 256  # voxels along each side of a piece of an output that is written as one, about
_AT_ONCE = 3  # pieces: one that is computed, one that is put together, one that is written
_TILES = (256, 128, 64, 32, 16, 8)


def require_memory(part: Field | SliceEncoder) -> str:
    """Before anything is computed on a CPU: a UserError says that it needs more memory than the machine has, and what to lower.

    Args:
        part: what is computed.

    Returns:
        What is needed and what is there, for a message; nothing on another device.
    """
    parts = list(dict.fromkeys(_networks(part)))
    if not parts or parts[0].run.engine.device.type != "cpu":
        return ""
    passes, kept = _passes(parts)
    rest = held_memory() + kept + sum(map(_read, parts)) + _written(part)
    needed, there = rest + passes, total_memory()
    if needed > there:
        tile = max((side * scale for axis, scale in zip(parts[0].axes, parts[0].scale, strict=True) for side in [axis.core]))
        fitting = [side for side in _TILES if side < tile and rest + passes * (side / tile) ** 3 < there]
        ways = ["--batch 1"] * (parts[0].batch > 1) + [f"--tile {side}" for side in fitting[:1] if len(parts[0].divisible) == 3]
        raise UserError(
            f"computing this needs about {as_size(needed)} of memory, of which this machine has {as_size(there)}; "
            f"use {' or '.join([*ways, '--precision bf16, or another --device'])}"
        )
    return f"about {as_size(needed)} of memory, of which this machine has {as_size(there)}"


def _written(part: Field | SliceEncoder) -> int:
    """Bytes of the pieces that are under way to an output; of codes they are next to nothing."""
    if isinstance(part, SliceEncoder):
        return 0
    piece = (min(size, max(side, SHARD)) for side, size in zip(part.unit, part.shape, strict=True))
    return _AT_ONCE * math.prod(piece) * part.channels * part.dtype.itemsize


def _networks(part: object) -> Iterator[Tiled]:
    """All whose tiles are computed for a field."""
    if isinstance(part, Tiled):
        yield part
    for name in ("field", "codes", "slices"):
        yield from _networks(getattr(part, name)) if isinstance(getattr(part, name, None), Field | Tiled) else ()
    for one in getattr(part, "passes", ()):
        yield from _networks(one)


def _passes(parts: Iterable[Tiled]) -> tuple[int, int]:
    """Bytes of the largest pass, and of the tiles that are kept."""
    most, kept = 0, 0.0
    for part in parts:
        shapes = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.no_grad(), part.run.engine.computing(), shapes, Alive() as alive:
            tile = part.widest()
            made = part.stored(part.network([tile] * part.batch, torch.zeros(part.entrance(tile))))
            if part.keeps:
                kept += made.nbytes / part.batch * math.prod(map(len, part.axes))
            del made
        most = max(most, round(part.scratch * alive.most))
    return most, min(CACHE_BYTES, round(kept))


def _read(part: Tiled) -> int:
    """Bytes that are read for tiles of one piece, ahead and as the network takes them, and of blocks of the file."""
    source = part.origin
    if not isinstance(source, Source):
        return 0
    k, rows, columns = (side.stop - side.start for side in part.needed(part.widest()))
    blocks = sum(min(LIMIT, math.prod(v.shape) * v.dtype.itemsize) for v in source.volumes if v.block_columns > 1)
    return 3 * 4 * len(source.volumes) * k * rows * columns * part.batch + blocks
