"""An output that several processes write, that survives being killed, and that appears only when it is whole.

It grows as a Zarr folder ``OUT.partial.zarr``, whatever the format of OUT. Its plan lies inside, so that no other command goes on
with it. Each process notes what it has written in a journal of its own; a command that is started again reads the journals and
leaves out what is done. Kept so: volumes (here) and codes (codes.store).
"""

import errno
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.boxes import Box, voxels_of
from utils.checksums import sealed
from utils.errors import UserError, printable
from utils.files import CONTINUES, discard, new_folder, put_folder, write_json, writing
from volumes.block_array import LEFT_OVER, BlockArray
from volumes.ome_zarr import RUN_KEY, UNFINISHED, image_metadata
from volumes.volume import Volume
from writing.pyramid import reduced
from writing.target_plan import WHOLE, WORK, TargetPlan, partial_path, refuse_existing
from writing.write import write_single_file

log = logging.getLogger("isoscope")

_PLAN = Path(WORK, "plan.json")
_BUILDERS = 2  # shards of the pyramid that are made at once; each holds a row of chunks of the level before


class Target:
    """An unfinished output, begun now or by an earlier attempt of the same command.

    All processes of a command may make one at once: the folder is made aside and renamed, and who comes second finds that
    of the first. Only where ``overwrite`` discards the unfinished output of another command one process has to go first.

    Args:
        output: what it becomes, by its suffix a file or a folder.
        plan: everything that decides its bytes, as plain JSON.
        create: makes the empty arrays in a folder.
        overwrite: replace an existing output when this one is whole, and discard an unfinished one of another command now.

    Attributes:
        output: what it becomes.
        partial: the folder in which it grows.

    Raises:
        UserError: the output exists, its folder does not exist, or an unfinished output of another command lies there.
    """

    def __init__(self, output: Path, plan: Mapping[str, Any], create: Callable[[Path], None], *, overwrite: bool) -> None:
        self.output, self.partial = output, partial_path(output)
        self._overwrite = overwrite
        self._journal = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.done"
        refuse_existing(output, overwrite)
        if self.partial.exists() and overwrite and _stored_plan(self.partial) != plan:
            discard(self.partial)
        if not self.partial.exists():
            try:
                with new_folder(self.partial) as folder:
                    (folder / WORK).mkdir()
                    write_json(folder / _PLAN, plan)
                    _write_group(folder, {UNFINISHED: True})
                    create(folder)
            except UserError as error:
                if not (self.partial / _PLAN).is_file():  # else another process was faster
                    refuse_existing(output, overwrite)
                    if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        self.require_there()
                    raise
        different = _differences(_stored_plan(self.partial), plan)
        if different:
            raise UserError(
                f"{self.partial} was begun by another command ({'; '.join(different)}); finish it with that command, delete the "
                "folder, or start anew with --overwrite"
            )

    def require_there(self) -> None:
        """Checks that what has begun still grows where it began; what was written after that ended is removed.

        Raises:
            UserError: another command has finished or removed it.
        """
        if not (self.partial / _PLAN).is_file():
            shutil.rmtree(self.partial, ignore_errors=True)
            how = "let one command at a time work on an output"
            raise UserError(f"{self.output}: another command has finished or removed it meanwhile; {how}")

    @contextmanager
    def growing(self) -> Iterator[None]:
        """While a piece is written: what fails because the output is gone meanwhile is said as :meth:`require_there` does."""
        self.require_there()
        try:
            yield
        except UserError:
            self.require_there()
            raise

    def note(self, numbers: Iterable[int], level: int = 0) -> None:
        """Note pieces of a level as written: one append of whole lines to a journal that is this process's alone."""
        self.require_there()
        with writing(self.output, CONTINUES), (self.partial / WORK / self._journal).open("ab", buffering=0) as journal:
            journal.write("".join(f"{level} {number}\n" for number in numbers).encode())

    def missing(self, count: int, level: int = 0) -> list[int]:
        """Which of so many pieces of a level are not written, in order; reads the journals of all processes."""
        done: set[bytes] = set()
        for journal in sorted((self.partial / WORK).glob("*.done")):
            done.update(journal.read_bytes().split(b"\n")[:-1])  # what follows the last line end was cut off by a kill
        return [n for n in range(count) if b"%d %d" % (level, n) not in done or not self._is_there(n, level)]

    def _is_there(self, number: int, level: int) -> bool:
        return all(file.is_file() for array, box in self.blocks(number, level) for file in array.files(box))

    def blocks(self, number: int, level: int = 0) -> list[tuple[BlockArray, tuple[slice, ...]]]:
        """The boxes of arrays that make up a piece of a level."""
        raise NotImplementedError

    def drop_damaged(self, numbers: Iterable[int], level: int = 0) -> None:
        """Deletes those of written pieces that are not as they were written; they are missing then."""
        numbers = list(numbers)
        for number in sorted({*numbers} - {*self.missing(max(numbers, default=-1) + 1, level)}):
            try:
                for array, box in self.blocks(number, level):
                    array.read(box)
            except UserError as error:
                log.warning("%s; it is made again", error)
                for array, box in self.blocks(number, level):
                    for file in array.files(box):
                        file.unlink(missing_ok=True)

    def require_whole(self, count: int) -> None:
        """A UserError says that of so many pieces some are missing, or that the output has appeared meanwhile."""
        missing = self.missing(count)
        if missing:
            self.require_there()
            raise UserError(f"{self.partial}: {len(missing)} of {count} shards are not written; run the command again")
        refuse_existing(self.output, self._overwrite)

    def put_in_place(self, attributes: Mapping[str, Any], *, indent: int | None = 2) -> None:
        """Give a Zarr output its attributes, indented so (None: in as few bytes as it takes), and its name."""
        with writing(self.output, CONTINUES):
            for left_over in self.partial.rglob(LEFT_OVER):
                left_over.unlink()
            _write_group(self.partial, sealed(self.partial, attributes), indent)
            put_folder(self.partial, self.output)
            shutil.rmtree(self.output / WORK)


def _write_group(folder: Path, attributes: Mapping[str, Any], indent: int | None = 2) -> None:
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=indent)


def _stored_plan(partial: Path) -> dict[str, Any]:
    try:
        return json.loads((partial / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{partial} holds no plan that can be read ({error}); delete it and begin the output again") from error


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is wanted differently from what is stored, one phrase for each entry."""
    found = []
    for key in sorted({*stored, *wanted}):
        there, here = stored.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key}: {there} there, {here} here")
    return found


class VolumeTarget(Target):
    """An output volume that several processes fill shard by shard.

    At the end the pyramid and the metadata are added and the folder takes its name, or a TIFF or NIfTI file is streamed from it.

    Args:
        output: the file or folder that :func:`writing.target_plan.plan_target` made the plan of.
        plan: what it is to be.
        overwrite: as for :class:`Target`.

    Attributes:
        plan: everything that decides its bytes.
        channels: how many channels; 0 without an axis of channels.
        boxes: what every shard covers, (Z, Y, X); a shard's number is its index here.
    """

    def __init__(self, output: Path, plan: TargetPlan, *, overwrite: bool = False) -> None:
        super().__init__(output, plan.as_json(), plan.create, overwrite=overwrite)
        self.plan = plan
        self.channels = len(plan.channel_names or ())
        self._arrays = plan.arrays(self.partial)
        self.boxes: tuple[Box, ...] = tuple((z, y, x) for *_, z, y, x in self._arrays[0].boxes)

    def blocks(self, number: int, level: int = 0) -> list[tuple[BlockArray, tuple[slice, ...]]]:
        """A shard is a piece of a level."""
        return [(self._arrays[level], self._arrays[level].boxes[number])]

    def pending(self, numbers: Iterable[int] = ()) -> list[int]:
        """Numbers of the shards that no process has finished, in order; of these ``numbers`` those that are damaged, too."""
        self.drop_damaged(numbers)
        return self.missing(len(self.boxes))

    def write_region(self, box: Box, values: np.ndarray) -> None:
        """Write whole shards and note them as done. Threads and processes may write different boxes at once.

        Args:
            box: one of ``boxes``, or several that form a box.
            values: (Z, Y, X), or (C, Z, Y, X) with channels, of the target's dtype.

        Raises:
            ValueError: the box is not made of whole shards, or values do not fit.
            UserError: the disc is full.
        """
        self._write(0, (slice(0, self.channels), *box) if self.channels else box, values)

    def _write(self, level: int, box: tuple[slice, ...], values: np.ndarray) -> None:
        with self.growing():
            written = self._arrays[level].write(box, values)
        self.note(written, level)

    def finish(
        self,
        *,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Complete the output and give it its name; every process of the command calls this.

        The levels of an OME-Zarr's pyramid are shared out over the processes by shards. A TIFF or NIfTI file is streamed by the
        first process. Memory depends on the shard, not on the volume. Killed in between, it can be called again.

        Args:
            rank: number of this process.
            world: how many processes call.
            barrier: waits until all have called it; needed when there are several.
            extra: joined to the attributes in the output: counts, times, names of machines.

        Returns:
            The output.

        Raises:
            UserError: shards are missing, the output has appeared meanwhile, or the disc is full.
        """
        if world > 1 and barrier is None:
            raise ValueError(f"{world} processes finish together; pass barrier=torch.distributed.barrier or the like")
        wait = barrier or (lambda: None)
        wait()  # no process is still writing
        self.require_whole(len(self.boxes))
        wait()  # all have looked before the first renames
        self._build_pyramid(rank, world, wait)
        if rank == 0:
            self._complete({**self.plan.attributes, **(extra or {})})
        wait()
        return self.output

    def _build_pyramid(self, rank: int, world: int, wait: Callable[[], None]) -> None:
        """This process's share of all coarser levels, shard by shard from the level before; the first process shows its own."""
        levels = range(1, len(self._arrays))
        for level in levels:
            self.drop_damaged(range(rank, len(self._arrays[level].boxes), world), level)
        wait()
        mine = {level: [n for n in self.missing(len(self._arrays[level].boxes), level) if n % world == rank] for level in levels}
        total = sum(voxels_of(self._arrays[level].boxes[n]) for level, numbers in mine.items() for n in numbers)
        title = printable(f"{self.output.name}: pyramid")
        bar = tqdm(total=total, desc=title, unit="voxel", unit_scale=True, disable=rank > 0 or not total)

        def build(level: int, box: tuple[slice, ...]) -> int:
            self._write(level, box, reduced(self._arrays[level - 1], box, self.plan.pyramid[level].step, self.plan.chunk))
            return voxels_of(box)

        builders = ThreadPoolExecutor(_BUILDERS, "pyramid")
        try:
            for level, numbers in mine.items():
                boxes = [self._arrays[level].boxes[n] for n in numbers]
                for voxels in builders.map(build, [level] * len(boxes), boxes):
                    bar.update(voxels)
                wait()
        finally:
            builders.shutdown(cancel_futures=True)
            bar.close()

    def _complete(self, attributes: dict[str, Any]) -> None:
        plan = self.plan
        if plan.kind == "zarr":
            ome = image_metadata(
                self.output.name.removesuffix(".zarr").removesuffix(".ome"),
                [(str(k), level.factor) for k, level in enumerate(plan.pyramid)],
                voxel_um=plan.voxel_um,
                translation_um=plan.translation_um,
                channel_names=plan.channel_names,
                channel_looks=plan.channel_looks,
                dtype=plan.dtype,
            )
            self.put_in_place({"ome": ome, RUN_KEY: attributes})
        else:
            channels = [self.volume(channel) for channel in range(max(self.channels, 1))]
            (self.partial / WHOLE).touch()
            write_single_file(self.output, plan, channels, attributes)
            with suppress(FileNotFoundError):  # another command has seen that both are there
                discard(self.partial)

    def volume(self, channel: int = 0) -> Volume:
        """A channel of the output as far as it is written, 0 elsewhere."""
        return _Unfinished(self.output, self.plan, self._arrays[0], channel)


class _Unfinished(Volume):
    """A channel of an unfinished output."""

    def __init__(self, path: Path, plan: TargetPlan, array: BlockArray, channel: int):
        self.path, self.shape, self.dtype = path, plan.shape, array.dtype
        self.block_planes, self.block_rows = plan.chunk[:2]
        self._array, self._channel = array, () if plan.channel_names is None else (channel,)

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        return self._array.read((*self._channel, slice(planes.start, planes.stop), rows, columns))[:: planes.step]
