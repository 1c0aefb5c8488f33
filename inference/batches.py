"""Tiles through a network several at a time, and what happens where memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from training.out_of_memory import lacks_memory
from utils.errors import UserError

log = logging.getLogger("isoscope")

Given = TypeVar("Given")
Made = TypeVar("Made")


class Passes:
    """Passes of a network over tiles.

    Attributes:
        size: tiles per pass; halved each time that memory does not suffice.
        fill: whether the network always gets ``size`` tiles, the last one again and again where there are fewer. Arithmetic
            rounds otherwise for another number of tiles; so filled, a tile's values do not depend on what else was asked for.
    """

    def __init__(self, size: int, *, fill: bool = False) -> None:
        self.size, self.fill = size, fill

    def __call__(
        self, network: Callable[[Sequence[Given]], Sequence[Made]], tiles: Sequence[Given], in_parts: Callable[[Given], Made]
    ) -> list[Made]:
        """What the network makes of each tile.

        Args:
            network: makes as many as it is given, ``size`` at most.
            tiles: what goes in.
            in_parts: makes a tile for which memory does not suffice with one tile per pass.
        """
        made: list[Made] = []
        while len(made) < len(tiles):
            part = tiles[len(made) : len(made) + self.size]
            try:
                filling = [part[-1]] * (self.size - len(part)) if self.fill else []
                made += network([*part, *filling])[: len(part)]
                continue
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
            # The memory of the failed pass is free only here: the block above holds its frames.
            torch.cuda.empty_cache()
            if self.size > 1:
                self.size //= 2
                log.info("memory does not suffice for so many tiles per pass; going on with %d", self.size)
            else:
                made.append(in_parts(part[0]))
        return made


def no_memory(what: str, remedy: str) -> UserError:
    """The error where nothing smaller is left to try."""
    return UserError(f"not even {what} fits into the memory that is left; start with {remedy}, or use another --device")
