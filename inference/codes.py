"""The code store: an OME-Zarr group that holds a volume's codes and all that decoding needs but the weights.

::

    X.codes.zarr/            attributes: ome (the codes as an image, one voxel per code), isoscope_codes (below)
        codes                (n, h, w) uint8 or uint16, one code per slice and 8x8 pixels; of a residual codebook the first level
        codes_1, ...         the further levels
        codebook             (levels, codes, dimensions) float32
        empty                (n, h, w) uint8: 1 where the pixels were background
    or, of a Gaussian model: codes (d, n, h, w) float16, the posterior's mean, and no codebook.

Codes are stored as zstd makes them, level 3, without shuffling: an index is a label, its bits have no order.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.encoding import Packed
from utils.errors import UserError
from utils.files import CONTINUES, put_folder, writing
from volumes.ome_zarr_metadata import image_metadata
from volumes.output_files import PARTIAL, partial_path, refuse_existing
from volumes.pyramid import Level
from volumes.volume import Box, Span, boxes

KEY = "isoscope_codes"
VERSION = 1
CHUNK = (16, 64, 64)
UNIT = (16, 512, 512)  # codes that are written at once
_PLAN, _WORK = "plan.json", ".work"
SUFFIX = ".codes.zarr"


@dataclass(frozen=True)
class CodeStore:
    """Codes on disc; what :class:`inference.decoding.IsotropicField` decodes from.

    Attributes:
        path: the group.
        about: what was recorded (attribute ``isoscope_codes``).
        shape: slices, latents along rows and columns.
    """

    path: Path
    about: Mapping[str, Any]
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path | str) -> CodeStore:
        """A finished store.

        Raises:
            UserError: there is none, it is unfinished, or of a newer version.
        """
        folder = Path(path)
        if folder.name.endswith(PARTIAL):
            raise UserError(f"{folder} is not finished; run the encode command again, it continues")
        attributes = stored_attributes(folder)
        if KEY not in attributes:
            raise UserError(f"{folder} is not a code store: it was not written by infer.py encode")
        about = attributes[KEY]
        if about.get("version") != VERSION:
            raise UserError(f"{folder} is of version {about.get('version')}, this program reads {VERSION}; encode it again")
        n, h, w = about["shape"]
        return cls(folder, about, (n, h, w))

    def prefetch(self, k: Span, y: Span, x: Span) -> None:
        """Nothing: codes are few."""

    def read(self, k: Span, y: Span, x: Span) -> Packed:
        """The codes of a box; only the chunks under it are read.

        Raises:
            UserError: a chunk is damaged.
        """
        part = tuple(slice(*span) for span in (k, y, x))
        empty = self._array("empty", part).astype(bool)
        if self.about["kind"] == "gaussian":
            return Packed(np.moveaxis(self._array("codes", (slice(None), *part)), 0, -1), empty)
        levels = [self._array(name, part) for name in level_names(self.about["levels"])]
        return Packed(levels[0] if len(levels) == 1 else np.stack(levels, axis=-1), empty)

    def cost(self) -> float:
        """Reading codes takes next to no time."""
        return 0.0

    def codebook(self) -> NDArray[np.float32]:
        """(levels, codes, dimensions)."""
        return self._array("codebook", (slice(None),))

    def bytes_of(self, name: str) -> int:
        """Bytes on disc of an array."""
        return sum(file.stat().st_size for file in (self.path / name).rglob("*") if file.is_file())

    def _array(self, name: str, part: tuple[slice, ...]) -> NDArray[Any]:
        import zarr

        try:
            return np.asarray(zarr.open_array(str(self.path / name), mode="r")[part])
        except Exception as error:  # every codec fails in its own way
            raise UserError(f"{self.path / name} cannot be read ({error}); it is damaged, copy or encode it again") from error


def level_names(levels: int) -> list[str]:
    """Names of the arrays of a residual codebook's levels."""
    return ["codes", *(f"codes_{level}" for level in range(1, levels))]


class CodeTarget:
    """A store that is being written by one or several processes; restartable.

    Args:
        output: the store, ``….zarr``.
        about: what decoding needs, plain JSON with ``shape``, ``kind``, ``levels``, ``dtype``, ``dimensions``.
        place: voxel size and position of the codes (µm) or None each.
        codebook: (levels, codes, dimensions) or None.
        overwrite: replace an existing store, and an unfinished one of other settings.
    """

    def __init__(
        self,
        output: Path,
        about: Mapping[str, Any],
        place: tuple[Any, Any],
        codebook: NDArray[np.float32] | None,
        *,
        overwrite: bool = False,
    ) -> None:
        refuse_existing(output, overwrite)
        self.output, self.partial = output, partial_path(output)
        self.about = json.loads(json.dumps({"version": VERSION, **about}))
        self.place = place
        n, h, w = self.about["shape"]
        self.units = boxes((n, h, w), UNIT)
        self._create(codebook, overwrite)
        self._journal = self.partial / _WORK / f"done.{uuid.uuid4().hex[:8]}"

    def _create(self, codebook: NDArray[np.float32] | None, overwrite: bool) -> None:
        if self.partial.exists():
            stored = json.loads((self.partial / _WORK / _PLAN).read_text())
            if stored == self.about:
                return
            if not overwrite:
                different = sorted(k for k in {*stored, *self.about} if stored.get(k) != self.about.get(k))
                raise UserError(
                    f"{self.partial} was begun by another command (different: {', '.join(different)}); finish it with that "
                    "command, delete the folder, or start anew with --overwrite"
                )
            shutil.rmtree(self.partial)
        aside = self.partial.with_name(f".{self.partial.name}.{uuid.uuid4().hex[:8]}")
        with writing(self.output, CONTINUES):
            (aside / _WORK).mkdir(parents=True)
            (aside / _WORK / _PLAN).write_text(json.dumps(self.about))
            self._create_arrays(aside, codebook)
            try:
                os.rename(aside, self.partial)
            except OSError:  # another process was first
                shutil.rmtree(aside)

    def _create_arrays(self, folder: Path, codebook: NDArray[np.float32] | None) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        def create(name: str, shape: Sequence[int], chunk: Sequence[int], dtype: str, axes: Sequence[str]) -> Any:
            return zarr.create_array(
                str(folder / name),
                shape=tuple(shape),
                chunks=tuple(chunk),
                dtype=dtype,
                fill_value=0,
                compressors=[ZstdCodec(level=3)],
                filters=None,
                dimension_names=list(axes),
            )

        shape = tuple(self.about["shape"])
        create("empty", shape, CHUNK, "uint8", "zyx")
        if self.about["kind"] == "gaussian":
            d = self.about["dimensions"]
            create("codes", (d, *shape), (d, *CHUNK), self.about["dtype"], "czyx")
            return
        for name in level_names(self.about["levels"]):
            create(name, shape, CHUNK, self.about["dtype"], "zyx")
        assert codebook is not None
        create("codebook", codebook.shape, codebook.shape, "float32", ("level", "code", "dimension"))[...] = codebook

    def pending(self) -> list[Box]:
        """Units that no process has finished."""
        done: set[int] = set()
        for journal in (self.partial / _WORK).glob("done.*"):
            done.update(int(line) for line in journal.read_text().split("\n")[:-1])  # a torn last line is not counted
        return [box for number, box in enumerate(self.units) if number not in done]

    def write(self, box: Box, packed: Packed) -> None:
        """Writes one of ``units`` and notes it."""
        import zarr

        with writing(self.output, CONTINUES):
            if packed.empty.any():
                zarr.open_array(str(self.partial / "empty"), mode="r+")[box] = packed.empty.astype(np.uint8)
            if self.about["kind"] == "gaussian":
                zarr.open_array(str(self.partial / "codes"), mode="r+")[(slice(None), *box)] = np.moveaxis(packed.codes, -1, 0)
            else:
                levels = np.moveaxis(packed.codes, -1, 0) if packed.codes.ndim == 4 else packed.codes[None]
                for name, level in zip(level_names(self.about["levels"]), levels, strict=True):
                    zarr.open_array(str(self.partial / name), mode="r+")[box] = level
            with self._journal.open("a") as file:
                file.write(f"{self.units.index(box)}\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> CodeStore:
        """Gives the store its metadata and name; called by one process when all are done."""
        left = len(self.pending())
        if left:
            raise UserError(f"{self.partial}: {left} of {len(self.units)} units are not written; run the command again")
        channels = [f"mean {d}" for d in range(self.about["dimensions"])] if self.about["kind"] == "gaussian" else None
        ome = image_metadata(
            self.output.name.removesuffix(".zarr"),
            [("codes", Level(tuple(self.about["shape"]), (1, 1, 1), (1, 1, 1)))],
            voxel_um=self.place[0],
            translation_um=self.place[1],
            channel_names=channels,
            dtype=self.about["dtype"],
        )
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, KEY: self.about}}
        with writing(self.output, CONTINUES):
            (self.partial / "zarr.json").write_text(json.dumps(group, indent=1, ensure_ascii=False), encoding="utf-8")
            put_folder(self.partial, self.output)
            shutil.rmtree(self.output / _WORK)
        return CodeStore.open(self.output)


def stored_attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a Zarr 3 group.

    Raises:
        UserError: there is none.
    """
    try:
        return json.loads((folder / "zarr.json").read_text(encoding="utf-8")).get("attributes", {})
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a code store ({error})") from error
