"""An output volume that several processes fill shard by shard; see volumes.target.

At the end the pyramid and the metadata are added and the folder takes its name, or a TIFF or NIfTI file is streamed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from volumes.block_array import BlockArray
from volumes.ome_zarr_metadata import image_metadata
from volumes.pyramid import reduced
from volumes.single_file import write_single_file
from volumes.target import Target, begin
from volumes.target_plan import TargetPlan
from volumes.volume import Box, Volume, voxels_of
from volumes.zarr_volume import RUN_KEY

_BUILDERS = 2  # shards of the pyramid that are made at once; each holds a row of chunks of the level before


def create_target(output: Path | str, plan: TargetPlan, *, overwrite: bool = False) -> VolumeTarget:
    """Begin an output volume, or continue one that the same command has begun; see :func:`volumes.target.begin`.

    Args:
        output: the file or folder that :func:`volumes.target_plan.plan_target` made the plan of.
        plan: what it is to be.
        overwrite: replace an existing output when this one is whole, and discard an unfinished one of another command now.

    Raises:
        UserError: the output exists, its folder does not exist, or an unfinished output of another command lies there.
    """
    begin(Path(output), plan.as_json(), plan.create, overwrite=overwrite)
    return VolumeTarget(Path(output), overwrite)


class VolumeTarget(Target):
    """An unfinished volume that :func:`create_target` has begun, in this process or in another one.

    Attributes:
        plan: everything that decides its bytes.
        shape: (Z, Y, X).
        dtype: dtype of the values.
        shard: (z, y, x) of the unit of writing.
        channels: how many channels; 0 without an axis of channels.
        boxes: what every shard covers, (Z, Y, X); a shard's number is its index here.
    """

    def __init__(self, output: Path, overwrite: bool = False):
        super().__init__(output, overwrite)
        self.plan = TargetPlan.from_json(self.stored_plan)
        self.shape = self.plan.shape
        self.dtype = np.dtype(self.plan.dtype)
        self.shard = self.plan.shard
        self.channels = len(self.plan.channel_names or ())
        self._arrays = self.plan.arrays(self.partial)
        self.boxes: tuple[Box, ...] = tuple((z, y, x) for *_, z, y, x in self._arrays[0].boxes)

    def pending(self) -> list[int]:
        """Numbers of the shards that no process has finished, in order; reads the journals of all processes."""
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
        self._arrays[level].write(box, values)
        self.note(self._arrays[level].blocks_of(box), level)

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
        mine = {level: [n for n in self.missing(len(self._arrays[level].boxes), level) if n % world == rank] for level in levels}
        total = sum(voxels_of(self._arrays[level].boxes[n]) for level, numbers in mine.items() for n in numbers)
        bar = tqdm(total=total, desc=f"{self.output.name}: pyramid", unit="voxel", unit_scale=True, disable=rank > 0 or not total)

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
                [(str(k), level) for k, level in enumerate(plan.pyramid)],
                voxel_um=plan.voxel_um,
                translation_um=plan.translation_um,
                channel_names=plan.channel_names,
                dtype=self.dtype,
            )
            self.put_in_place({"ome": ome, RUN_KEY: attributes})
        else:
            channels = [self.volume(channel) for channel in range(max(self.channels, 1))]
            write_single_file(self.output, plan, channels, attributes)
            self.discard()

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
