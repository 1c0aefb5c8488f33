"""A cache of what was used last."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

CACHE_BYTES = 2**30  # of recent tiles, of all networks that a command applies


class Recent(OrderedDict[Hashable, Any]):
    """Values by key, the least recently used ones forgotten when together they exceed ``limit`` bytes."""

    limit, size = CACHE_BYTES, 0

    def latest(self, key: Hashable) -> Any:
        """The value, which becomes the most recent one."""
        self.move_to_end(key)
        return self[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value, which knows its ``nbytes``."""
        if key not in self:
            self[key] = value
            self.size += value.nbytes
        while self.size > self.limit and len(self) > 1:
            self.size -= self.popitem(last=False)[1].nbytes
