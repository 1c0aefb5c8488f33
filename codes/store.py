"""The code store: an OME-Zarr group that holds a volume's codes and all that decoding needs but the weights.

::

    X.codes.zarr/            attributes: ome (the codes as an image, one voxel per code), isoscope_codes (below)
        codes                (n, h, w) uint8 or uint16, one code per slice and 8x8 pixels; of a residual codebook the first level
        codes_1, ...         the further levels
        empty                (n, h, w) uint8: 1 where the pixels were background; not there where none were
    or, of a Gaussian model: codes (d, n, h, w) float16, the posterior's mean.

While they are made, codes are stored as zstd makes them. At the end each level gets a model of its codes by those beside them
(codes.context_model), and is coded with it in small chunks, each with a checksum; where that does not pay (few codes, or more
than 1024 different ones), zstd's remain. Stores of version 1 have zstd's alone, and a copy of the codebook.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from codes.context_fit import fitted_model
from codes.context_model import MOST_CODES, ContextModel
from codes.record import KEY, VERSION, brief, check_inside, record_in, stored_attributes
from experiment.runs import CODES
from intensity.transform import Intensity
from utils.axes import levels_first, levels_last
from utils.boxes import Box, assembled, boxes, parts, relative
from utils.checksums import unsealed
from utils.errors import UserError, printable
from utils.files import CONTINUES, PARTIAL, writing
from utils.geometry import LATENT_STRIDE
from utils.recent import Recent
from volumes.block_array import BlockArray, plain_zstd
from volumes.ome_zarr import image_metadata
from writing.target import Target
from writing.target_plan import WORK

CHUNK = (16, 64, 64)  # of codes at work
CODED = (16, 16, 16)  # at most; what codes are read in: a region of 64³ reads 1.9 times as many (2.7 with 32², 1 % smaller)
FEW = 2**15  # codes; so few are read at once
UNIT = (16, 512, 512)  # codes that are written at once
_LARGEST_CHUNK = 2**27  # values; those of any program that writes stores are far smaller
_TOGETHER = 1024  # chunks that zarr codes at once
_SAMPLES = 8  # chunks of codes to which their model is fitted
SUFFIX = ".codes.zarr"

Place = tuple[int, ...]  # of a chunk among those of its array


class _Chunks(Recent):
    """Chunks that were read lately."""

    limit = 2**26


class Packed(NamedTuple):
    """What the volume is decoded from, for a box of latents.

    Attributes:
        codes: (n, h, w) or (n, h, w, d): codes of one level, of several, or features.
        empty: (n, h, w) bool: positions whose pixels are background.
    """

    codes: NDArray[Any]
    empty: NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.codes.nbytes + self.empty.nbytes


@dataclass(frozen=True)
class CodeStore:
    """Codes on disc, to be decoded as those of an encoder at work.

    Attributes:
        path: the group.
        about: what was recorded (attribute ``isoscope_codes``).
        shape: slices, latents along rows and columns.
        recent: tiles that networks made of it lately.
    """

    path: Path
    about: Mapping[str, Any]
    shape: tuple[int, int, int]
    recent: Recent = field(default_factory=Recent, compare=False)
    _chunks: Recent = field(default_factory=lambda: _Chunks(), compare=False)
    _open: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def inner(self) -> tuple[int, int]:
        """Rows and columns of pixels, without padding."""
        return tuple(self.about["inner"])

    @property
    def intensities(self) -> list[Intensity]:
        """Of the channels."""
        return [Intensity.from_json(entry, str(self.path)) for entry in self.about["intensities"]]

    @classmethod
    def open(cls, path: Path | str, *, damaged: bool = False) -> CodeStore:
        """A finished store, also one in an exported folder.

        Args:
            damaged: open it although its metadata are other than they were written.

        Raises:
            UserError: there is none, it is unfinished or damaged, or of a newer version.
        """
        folder = inside if (inside := Path(path, CODES)).is_dir() else Path(path)
        if folder.name.endswith(PARTIAL):
            raise UserError(f"{folder} is not finished; run the encode command again, it continues")
        attributes = stored_attributes(folder)
        if (changed := unsealed(folder, attributes)) and not damaged:
            raise UserError(f"{changed[0]} is damaged: it is other than it was written; copy or encode it again")
        about = record_in(folder, attributes)
        n, h, w = about["shape"]
        return cls(folder, about, (n, h, w))

    @property
    def lattice(self) -> dict[str, Any]:
        """The tiles of the encoding."""
        return self.about["lattice"]

    def prefetch(self, box: Box) -> None:
        """Nothing: codes are few."""

    def read(self, box: Box) -> Packed:
        """The codes of a box; only the chunks under it are read.

        Raises:
            UserError: a chunk is damaged.
        """
        if self.about.get("background", True):
            empty = self._array("empty", box).astype(bool)
        else:
            empty = np.zeros([len(range(*side.indices(size))) for side, size in zip(box, self.shape, strict=True)], bool)
        if self.about["kind"] == "gaussian":
            return Packed(levels_last(self._array("codes", (slice(0, self.about["dimensions"]), *box))), empty)
        levels = [self._array(name, box) for name in level_names(self.about["levels"])]
        residual = self.about.get("of_levels", self.about["levels"]) > 1
        return Packed(np.stack(levels, axis=-1) if residual else levels[0], empty)

    def first_levels(self, count: int) -> CodeStore:
        """The store of a residual codebook as if it ended after some of its levels.

        Raises:
            UserError: it does not have so many.
        """
        there = self.about.get("levels", 1)
        if not 1 <= count <= there:
            raise UserError(f"{self.path} has {there} level(s) of codes; --levels {count} must lie between 1 and {there}")
        return replace(self, about={**self.about, "levels": count, "of_levels": self.about["levels"]}, recent=Recent())

    def bytes_of(self, name: str = "") -> int:
        """Bytes on disc of an array, or of the whole store with all that describes it."""
        return sum(file.stat().st_size for file in (self.path / name).rglob("*") if file.is_file())

    def sizes(self) -> list[str]:
        """Lines on bytes on disc, bits per raw voxel and ratios."""
        about = self.about
        size = self.bytes_of()
        channels = len(about["intensities"])
        voxels = channels * math.prod(about["input"]["shape"])
        raw = voxels * np.dtype(about["input"]["dtype"]).itemsize
        planes = channels * about["shape"][0] * about["factor"]
        isotropic = planes * math.prod(about["inner"]) * np.dtype(about["output_dtype"]).itemsize
        return [
            f"{self.path}: {size} bytes on disc, {8 * size / voxels:.4g} bits per raw voxel" + " and channel" * (channels > 1),
            f"{raw / size:.4g} times smaller than the raw input, {isotropic / size:.4g} times smaller than the isotropic volume",
        ]

    def _array(self, name: str, part: tuple[slice, ...]) -> NDArray[Any]:
        """A box of an array, from chunks that are kept for a while: neighbouring tiles and slices share them."""
        try:
            array = self._opened(name)
            part = tuple(slice(*p.indices(size)) for p, size in zip(part, array.shape, strict=True))
            touched = [range(p.start // side, math.ceil(p.stop / side)) for p, side in zip(part, array.chunks, strict=True)]
            places = list(product(*touched))
            found = {place: self._chunks.latest((name, place)) for place in places if (name, place) in self._chunks}
            missing = [place for place in places if place not in found]
            for group in [missing] if missing and _is_box(missing) else [[place] for place in missing]:
                found |= self._read_chunks(name, array, group)
            for place in missing:
                self._chunks.put((name, place), found[place])
            return assembled(part, [(_chunk_box(array, place, place), found[place]) for place in places])
        except (UserError, MemoryError):
            raise
        except Exception as error:  # every codec fails in its own way
            raise UserError(f"{self.path / name} cannot be read ({error}); it is damaged, copy or encode it again") from error

    def _opened(self, name: str) -> Any:
        import zarr
        from zarr.errors import UnknownCodecError

        from codes import context_codec  # noqa: F401  registers itself

        if name not in self._open:
            check_inside(self.path, self.path / name / "zarr.json")
            try:
                array: Any = zarr.open_array(str(self.path / name), mode="r")
            except UnknownCodecError as error:
                raise UserError(f"{self.path / name}: {error}, which this program does not have; update or install it") from error
            lead = (self.about["dimensions"],) if self.about["kind"] == "gaussian" and name != "empty" else ()
            shape, dtype = (*lead, *self.shape), "uint8" if name == "empty" else self.about["dtype"]
            if array.shape != shape or array.dtype != dtype or math.prod(array.chunks) > _LARGEST_CHUNK:
                raise ValueError(f"it has {array.shape} {array.dtype} in chunks of {array.chunks}, where {shape} {dtype} belong")
            self._open[name] = array
        return self._open[name]

    def _read_chunks(self, name: str, array: Any, places: list[Place]) -> dict[Place, NDArray[Any]]:
        """Chunks that make a box, decoded together.

        Zarr takes a missing file for zeros, which are codes; arrays without shards, of older versions, may lack some.
        """
        import zarr

        box, sides = _chunk_box(array, places[0], places[-1]), array.shards or array.chunks
        for place in product(*(range(p.start // side, math.ceil(p.stop / side)) for p, side in zip(box, sides, strict=True))):
            file = self.path / name / array.metadata.encode_chunk_key(place)
            if (array.shards or self.about["version"] > 5) and not (file.is_file() and file.stat().st_size):
                raise FileNotFoundError(f"{file} is missing or empty")
            check_inside(self.path, file)
        with zarr.config.set({"codec_pipeline.batch_size": _TOGETHER}):
            values = np.asarray(array[box])
        codes = self.about["codes"] if self.about["kind"] == "codebook" and name != "empty" else None
        if codes and values.max() >= codes:
            raise ValueError(f"it has the code {values.max()}, and there are {codes} from 0 on")
        return {place: values[relative(_chunk_box(array, place, place), box)].copy() for place in places}


def _is_box(places: list[Place]) -> bool:
    """Whether chunks are all of those between the first and the last."""
    return set(product(*map(range, places[0], (n + 1 for n in places[-1])))) == set(places)


def _chunk_box(array: Any, first: Place, last: Place) -> Box:
    """From a chunk to another one."""
    sides = zip(first, last, array.chunks, array.shape, strict=True)
    return tuple(slice(low * side, min((high + 1) * side, size)) for low, high, side, size in sides)  # type: ignore[return-value]


def level_names(levels: int) -> list[str]:
    """Names of the arrays of a residual codebook's levels."""
    return ["codes", *(f"codes_{level}" for level in range(1, levels))]


class CodeTarget(Target):
    """A store that is being written by one or several processes; restartable, see writing.target.

    Args:
        output: the store, ``….zarr``.
        about: what decoding needs, plain JSON with ``shape``, ``kind``, ``levels``, ``dtype``, ``dimensions``.
        codebook: (levels, codes, dimensions) or None; what its codes stand for helps to predict them.
        overwrite: replace an existing store, and an unfinished one of other settings.

    Attributes:
        units: boxes of codes that are written at once.
    """

    def __init__(
        self,
        output: Path,
        about: Mapping[str, Any],
        codebook: NDArray[np.float32] | None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.about = json.loads(json.dumps({"version": VERSION, **about}))

        def create(folder: Path) -> None:
            for array in self._arrays(folder).values():
                array.create(plain_zstd(3), "zyx" if len(array.shape) == 3 else "czyx")

        self._codebook = codebook if codebook is not None and codebook.shape[1] <= MOST_CODES else None
        super().__init__(output, self.about, create, overwrite=overwrite)
        n, h, w = self.about["shape"]
        self.units = boxes((n, h, w), UNIT)
        self._open = self._arrays(self.partial)

    def _arrays(self, folder: Path) -> dict[str, BlockArray]:
        """The arrays that are filled unit by unit, by name."""
        shape, dtype, work = tuple(self.about["shape"]), np.dtype(self.about["dtype"]), folder / WORK
        arrays = {"empty": BlockArray(work / "empty", shape, np.dtype(np.uint8), CHUNK)}
        if self.about["kind"] == "gaussian":
            d = self.about["dimensions"]
            return {**arrays, "codes": BlockArray(work / "codes", (d, *shape), dtype, (d, *CHUNK))}
        return arrays | {name: BlockArray(work / name, shape, dtype, CHUNK) for name in level_names(self.about["levels"])}

    def blocks(self, number: int, level: int = 0) -> list[tuple[BlockArray, tuple[slice, ...]]]:
        """A unit is a piece."""
        whole = slice(0, self.about["dimensions"])
        box = self.units[number]
        return [(array, box if len(array.shape) == 3 else (whole, *box)) for array in self._open.values()]

    def pending(self, numbers: Container[int]) -> list[Box]:
        """Those of the units of these numbers that no process has finished, or that are damaged."""
        own = [number for number in range(len(self.units)) if number in numbers]
        self.drop_damaged(own)
        return [self.units[number] for number in self.missing(len(self.units)) if number in numbers]

    def write(self, box: Box, packed: Packed) -> None:
        """Writes one of ``units`` and notes it."""
        with self.growing():
            self._open["empty"].write(box, packed.empty.astype(np.uint8))
            if self.about["kind"] == "gaussian":
                codes = levels_first(packed.codes)
                self._open["codes"].write((slice(0, len(codes)), *box), codes)
            else:
                levels = levels_first(packed.codes) if packed.codes.ndim == 4 else packed.codes[None]
                for name, level in zip(level_names(self.about["levels"]), levels, strict=True):
                    self._open[name].write(box, level)
        self.note([self.units.index(box)])

    def finish(self) -> CodeStore:
        """Gives the store its metadata and name; called by one process when all are done."""
        self.require_whole(len(self.units))
        books = dict(zip(level_names(self.about["levels"]), () if self._codebook is None else self._codebook, strict=False))
        background = any(self._open["empty"].read(box).any() for box in self.units)
        for name, array in self._open.items():
            if name != "empty" or background:
                _code(array, books.get(name), self.partial / name)
        channels = [f"mean {d}" for d in range(self.about["dimensions"])] if self.about["kind"] == "gaussian" else None
        # one voxel per slice and block of pixels, centred on these
        voxel, first = self.about["slice_voxel_um"], self.about["slice_translation_um"]
        side = self.about["lattice"].get("stride", LATENT_STRIDE)
        centre = (side - 1) / 2
        ome = image_metadata(
            self.output.name.removesuffix(".zarr"),
            [("codes", (1, 1, 1))],
            voxel_um=voxel and (voxel[0], side * voxel[1], side * voxel[2]),
            translation_um=voxel and (first[0], first[1] + centre * voxel[1], first[2] + centre * voxel[2]),
            channel_names=channels,
            dtype=self.about["dtype"],
        )
        self.put_in_place({"ome": ome, KEY: brief({**self.about, "background": background})}, indent=None)
        return CodeStore.open(self.output)


def most_of_a_chunk(count: int) -> tuple[int, int, int]:
    """Codes (slices, rows, columns) at most that a chunk of a store of so many has."""
    return UNIT if count <= FEW else CODED


def _code(codes: BlockArray, vectors: NDArray[np.float32] | None, folder: Path) -> None:
    """Writes an array anew, every chunk with a checksum: codes by the model that fits them, where one pays, else by zstd."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    from codes.context_codec import ContextCodec

    model = None if vectors is None else _fitted(codes, vectors)
    lead = codes.shape[:-3]  # channels, of a posterior's mean
    most = most_of_a_chunk(math.prod(codes.shape))
    chunk = [math.ceil(size / math.ceil(size / side)) for size, side in zip(codes.shape, (*lead, *most), strict=True)]
    shard = [
        side * min(math.ceil(size / side), most // side)
        for side, size, most in zip(chunk, codes.shape, (*lead, *UNIT), strict=True)
    ]
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    with writing(folder, CONTINUES):
        coded = zarr.create_array(
            str(folder),
            shape=codes.shape,
            dtype=codes.dtype,
            chunks=tuple(chunk),
            shards=tuple(shard) if shard != chunk else None,  # of one chunk they say nothing
            serializer=ContextCodec(model) if model else "auto",
            compressors=[Crc32cCodec()] if model else [ZstdCodec(level=3), Crc32cCodec()],
            fill_value=0,
            dimension_names=list("czyx"[-len(chunk) :]),
            config={"write_empty_chunks": True},
        )
        metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        metadata = {key: value for key, value in metadata.items() if key not in ("attributes", "storage_transformers") or value}
        metadata["chunk_key_encoding"] = {"name": "default"}  # whose separator is / by default
        (folder / "zarr.json").write_text(json.dumps(metadata, separators=(",", ":")), encoding="utf-8")
        pieces = parts(tuple(slice(0, size) for size in codes.shape), shard)
        with zarr.config.set({"codec_pipeline.batch_size": _TOGETHER}):
            title = printable(f"{folder.parent.name.removesuffix(PARTIAL)}: {folder.name}")
            for box in tqdm(pieces, desc=title, unit="shard", leave=False, delay=1):
                coded[box] = codes.read(box)


def _fitted(codes: BlockArray, vectors: NDArray[np.float32]) -> ContextModel | None:
    """The model of an array's codes, from some blocks all over it."""
    blocks = boxes(codes.shape, CHUNK)
    some = [blocks[n] for n in np.unique(np.linspace(0, len(blocks) - 1, _SAMPLES).astype(int))]
    return fitted_model([codes.read(box) for box in some], vectors, math.prod(codes.shape))
