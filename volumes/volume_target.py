"""An output volume that several processes write, that survives being killed, and that appears only when it is whole.

It grows as a Zarr folder ``OUT.partial.zarr``, whatever the format of OUT. Each process writes whole shards and notes them in a
journal of its own; a command that is started again reads the journals and leaves out what is done. At the end the pyramid and
the metadata are added and the folder takes its name, or a TIFF or NIfTI file is streamed from it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import CONTINUES, put_folder, writing
from volumes.ome_zarr_metadata import image_metadata
from volumes.output_files import partial_path, refuse_existing
from volumes.pyramid import halved
from volumes.sharded_array import ShardedArray
from volumes.single_file import write_single_file
from volumes.target_plan import TargetPlan, read_plan
from volumes.volume import Box, Volume, extent, relative, split
from volumes.zarr_volume import RUN_KEY, UNFINISHED

_BUILDERS = 2  # shards of the pyramid that are made at once; each holds a row of chunks of the level before
Progress = Callable[[int, int], None]
_WORK = ".work"  # inside the partial folder: the plan, the journals, files that are not complete
_PLAN = Path(_WORK, "plan.json")


def create_target(output: Path | str, plan: TargetPlan, *, overwrite: bool = False) -> VolumeTarget:
    """Begin an output, or continue one that the same command has begun.

    All processes of a command may call it at once: the folder is made aside and renamed, and who comes second opens the first's.
    Only where ``overwrite`` discards the unfinished output of another command one process has to go first.

    Args:
        output: the file or folder that :func:`volumes.target_plan.plan_target` made the plan of.
        plan: what it is to be.
        overwrite: replace an existing output when this one is whole, and discard an unfinished one of another command now.

    Raises:
        UserError: the output exists, its folder does not exist, or an unfinished output of another command lies there.
    """
    output = Path(output)
    refuse_existing(output, overwrite)
    partial = partial_path(output)
    if partial.exists() and overwrite and read_plan(partial, partial / _PLAN) != plan:
        discarded = partial.with_name(f".{partial.name}.{uuid.uuid4().hex[:8]}")
        os.rename(partial, discarded)
        shutil.rmtree(discarded)
    if not partial.exists():
        _begin(partial, plan)
    different = read_plan(partial, partial / _PLAN).differences(plan)
    if different:
        raise UserError(
            f"{partial} was begun by another command ({'; '.join(different)}); finish it with that command, delete the folder, "
            "or start anew with --overwrite"
        )
    return VolumeTarget(output, overwrite)


class VolumeTarget:
    """An unfinished output that :func:`create_target` has begun, in this process or in another one.

    Attributes:
        output: what it becomes.
        partial: the folder in which it grows.
        plan: everything that decides its bytes.
        shape: (Z, Y, X).
        dtype: dtype of the values.
        shard: (z, y, x) of the unit of writing.
        channels: how many channels; 0 without an axis of channels.
        boxes: what every shard covers, (Z, Y, X); a shard's number is its index here.
    """

    def __init__(self, output: Path, overwrite: bool = False):
        """Args: output: as for :func:`create_target`; overwrite: likewise. Raises UserError where nothing is begun."""
        self.output = output
        self.partial = partial_path(output)
        self.plan = read_plan(self.partial, self.partial / _PLAN)
        self.shape = self.plan.shape
        self.dtype = np.dtype(self.plan.dtype)
        self.shard = self.plan.shard
        self.channels = len(self.plan.channel_names or ())
        self._overwrite = overwrite
        self._levels = self.plan.pyramid
        self._arrays = [self.plan.array(self.partial, number) for number in range(len(self._levels))]
        self._token = uuid.uuid4().hex[:8]
        self.boxes: tuple[Box, ...] = tuple(_space(self._arrays[0].box(n)) for n in range(self._arrays[0].count))

    def pending(self) -> list[int]:
        """Numbers of the shards that no process has finished, in order; reads the journals of all processes."""
        return self._pending(0)

    def write_region(self, box: Box, values: np.ndarray) -> None:
        """Write whole shards and note them as done. Threads and processes may write different boxes at once.

        Args:
            box: one of ``boxes``, or several that form a box.
            values: (Z, Y, X), or (C, Z, Y, X) with channels, of the target's dtype.

        Raises:
            ValueError: the box is not made of whole shards, or values do not fit.
            UserError: the disc is full.
        """
        self._write(0, self._full(box), values)

    def finish(
        self,
        *,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] | None = None,
        extra: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Complete the output and give it its name; every process of the command calls this.

        The levels of an OME-Zarr's pyramid are shared out over the processes by shards. A TIFF or NIfTI file is streamed by the
        first process. Memory depends on the shard, not on the volume. Killed in between, it can be called again.

        Args:
            rank: number of this process.
            world: how many processes call.
            barrier: waits until all have called it; needed when there are several.
            extra: joined to the attributes in the output: counts, times, names of machines.
            progress: called with (blocks done, blocks in all) of this process, once for every level and once for a file.

        Returns:
            The output.

        Raises:
            UserError: shards are missing, the output has appeared meanwhile, or the disc is full.
        """
        if world > 1 and barrier is None:
            raise ValueError(f"{world} processes finish together; pass barrier=torch.distributed.barrier or the like")
        wait = barrier or _no_others
        wait()  # no process is still writing
        missing = self.pending()
        if missing:
            raise UserError(f"{self.partial}: {len(missing)} of {len(self.boxes)} shards are not written; run the command again")
        refuse_existing(self.output, self._overwrite)
        wait()  # all have looked before the first renames
        for number in range(1, len(self._levels)):
            self._build(number, rank, world, progress)
            wait()
        if rank == 0:
            self._complete({**self.plan.attributes, **(extra or {})}, progress)
        wait()
        return self.output

    def _complete(self, attributes: dict[str, Any], progress: Progress | None) -> None:
        if self.plan.kind == "zarr":
            with writing(self.output, CONTINUES):
                _write_group(self.partial, {"ome": self._metadata(), RUN_KEY: attributes})
                put_folder(self.partial, self.output)
                shutil.rmtree(self.output / _WORK)
            return
        channels = [self.volume(channel) for channel in range(max(self.channels, 1))]
        write_single_file(
            self.output,
            channels,
            channel_names=self.plan.channel_names,
            attributes=attributes,
            compression=self.plan.compression,
            progress=progress,
        )
        shutil.rmtree(self.partial)

    def _metadata(self) -> dict[str, Any]:
        return image_metadata(
            self.output.name.removesuffix(".zarr").removesuffix(".ome"),
            [(str(k), level) for k, level in enumerate(self._levels)],
            voxel_um=self.plan.voxel_um,
            translation_um=self.plan.translation_um,
            channel_names=self.plan.channel_names,
            dtype=self.dtype,
        )

    def _build(self, number: int, rank: int, world: int, progress: Progress | None) -> None:
        """This process's share of a level, shard by shard from the level before, a few at once."""
        pending = [shard for shard in self._pending(number) if shard % world == rank]

        def build(shard: int) -> None:
            box = self._arrays[number].box(shard)
            self._write(number, box, self._reduced(number, box))

        builders = ThreadPoolExecutor(_BUILDERS, "pyramid")
        try:
            for done, _ in enumerate(builders.map(build, pending), 1):
                if progress is not None:
                    progress(done, len(pending))
        finally:
            builders.shutdown(cancel_futures=True)

    def _reduced(self, number: int, box: tuple[slice, ...]) -> np.ndarray:
        """A box of a level, made a row of chunks at a time so that the finer voxels need little memory."""
        lead, (planes, rows, columns) = box[:-3], box[-3:]
        finer = self._arrays[number - 1]
        step = (*(1 for _ in lead), *self._levels[number].step)
        out = np.empty(extent(box), self.dtype)
        for z, y in product(split(planes, self.plan.chunk[0]), split(rows, self.plan.chunk[1])):
            source = tuple(
                slice(part.start * by, min(part.stop * by, size))
                for part, by, size in zip((*lead, z, y, columns), step, finer.shape, strict=True)
            )
            out[(..., *relative((z, y, columns), (planes, rows, columns)))] = halved(finer.read(source), step)
        return out

    def _write(self, level: int, box: tuple[slice, ...], values: np.ndarray) -> None:
        self._arrays[level].write(box, values, self.partial / _WORK)
        self._note(level, self._arrays[level].shards_of(box))

    def _note(self, level: int, shards: Sequence[int]) -> None:
        """One append of whole lines; the journal is this process's alone, also after a fork."""
        name = f"{socket.gethostname()}-{os.getpid()}-{self._token}.done"
        with writing(self.output, CONTINUES), (self.partial / _WORK / name).open("ab", buffering=0) as journal:
            journal.write("".join(f"{level} {shard}\n" for shard in shards).encode())

    def _pending(self, level: int) -> list[int]:
        done: set[str] = set()
        for journal in sorted((self.partial / _WORK).glob("*.done")):
            done.update(journal.read_text().split("\n")[:-1])  # what follows the last line end was cut off by a kill
        return [n for n in range(self._arrays[level].count) if f"{level} {n}" not in done]

    def _full(self, box: Box) -> tuple[slice, ...]:
        return (slice(0, self.channels), *box) if self.channels else tuple(box)

    def volume(self, channel: int = 0) -> Volume:
        """A channel of the output as far as it is written, 0 elsewhere."""
        return _Unfinished(self, channel)

    def read(self, box: Box, channel: int = 0) -> np.ndarray:
        """Values (Z, Y, X) as far as they are written, 0 elsewhere."""
        if not self.channels:
            return self._arrays[0].read(box)
        return self._arrays[0].read((slice(channel, channel + 1), *box))[0]


class _Unfinished(Volume):
    """A channel of an unfinished output."""

    def __init__(self, target: VolumeTarget, channel: int):
        self.path, self.shape, self.dtype = target.output, target.shape, target.dtype
        self.voxel_um, self.translation_um = target.plan.voxel_um, target.plan.translation_um
        self.block_planes, self.block_rows = target.plan.chunk[:2]
        self._target, self._channel = target, channel

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        return self._target.read((slice(planes.start, planes.stop), rows, columns), self._channel)[:: planes.step]


def _no_others() -> None:
    """The barrier of a process that is alone."""


def _space(box: tuple[slice, ...]) -> Box:
    z, y, x = box[-3:]
    return z, y, x


def _begin(partial: Path, plan: TargetPlan) -> None:
    """Make the folder of a new output aside and rename it; where another process was faster its folder stays."""
    aside = partial.with_name(f".{partial.name}.{uuid.uuid4().hex[:8]}")
    try:
        with writing(partial, CONTINUES):
            (aside / _WORK).mkdir(parents=True)
            for number in range(len(plan.pyramid)):
                new = plan.array(aside, number)
                ShardedArray.create(new.folder, new.shape, new.dtype, shard=new.shard, chunk=new.chunk, dimension_names=plan.axes)
            (aside / _PLAN).write_text(plan.to_json(), encoding="utf-8")
            _write_group(aside, {UNFINISHED: True})
            try:
                os.rename(aside, partial)
            except OSError:
                if not (partial / _PLAN).is_file():
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1, ensure_ascii=False)
    unfinished = folder / _WORK / "zarr.json"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, folder / "zarr.json")
