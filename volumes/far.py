"""What zarr reads of a folder at an address, file by file and part by part."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from utils.errors import UserError
from utils.far import FarPath
from volumes.block_array import EVERY_BLOCK

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class FarStore(Store):
    """The files of a far array or group, to be read.

    Zarr takes a chunk that is not there for zeros. So that a server that has lost a folder does not become a black volume, it is
    asked then whether the array is still there, and whether zeros have files, too.
    """

    supports_writes = supports_deletes = supports_listing = False

    def __init__(self, folder: FarPath) -> None:
        super().__init__(read_only=True)
        self.folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FarStore) and other.folder == self.folder

    def __str__(self) -> str:
        return str(self.folder)

    async def get(self, key: str, prototype: Any, byte_range: ByteRequest | None = None) -> Any:
        """The bytes of a file, or some of them; None: there is no such file, and need not be."""
        start: int | None = None
        stop: int | None = None
        match byte_range:
            case RangeByteRequest():
                start, stop = byte_range.start, byte_range.end
            case OffsetByteRequest():
                start = byte_range.offset
            case SuffixByteRequest():
                start = -byte_range.suffix
        found = await asyncio.to_thread((self.folder / key).fetch, start, stop)
        if found is None and not key.endswith(_METADATA):
            await asyncio.to_thread(self._require, key)
        return None if found is None else prototype.buffer.from_bytes(found)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, ByteRequest | None]]) -> list[Any]:
        """Several of them, at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return await asyncio.to_thread((self.folder / key).is_file)

    async def set(self, key: str, value: Any) -> None:
        """Raises ValueError: nothing is written at an address."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Raises ValueError, too."""
        self._check_writable()

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Nothing: few servers say what they have."""
        nothing: tuple[str, ...] = ()
        for key in nothing:
            yield key

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Nothing, either."""
        return self.list_prefix(prefix)

    def list(self) -> AsyncIterator[str]:
        """Nothing, either."""
        return self.list_prefix("")

    def _require(self, key: str) -> None:
        described = (self.folder / "zarr.json").fetch()
        if described is None and not (self.folder / ".zarray").is_file():
            raise UserError(f"{self.folder} is not there any more; check its server, and run the same command again")
        if described is not None and json.loads(described).get("attributes", {}).get(EVERY_BLOCK):
            raise FileNotFoundError(f"{self.folder / key} is missing")
