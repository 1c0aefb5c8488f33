"""What a command is about to compute: the field or encoder, where its voxels lie, and what is recorded about it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference.blended import RestoredField, SliceField
from inference.codes import CodeStore
from inference.decoding import Field, IsotropicField
from inference.encoding import Codes, SliceEncoder, code_dtype
from inference.intensity import check_output_dtype, intensities, output_dtype
from inference.placement import code_place, input_voxels, isotropic_place, slice_place
from inference.run import Engine, Run
from inference.source import Slices
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from volumes.intensity import Intensity
from volumes.volume import Box, Triple, Volume, corner, extent, whole_box

log = logging.getLogger("isoscope")

_BYTES_PER_VOXEL = 3  # values of the finest level that are in memory at once, per channel of its width
_CORES = (64, 32, 16)
# Of a tensor on a GPU. Beyond, convolutions may ask for many times their memory (PyTorch issue 95024), and some kernels have
# counted wrongly without an error (141831).
_MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class Options:
    """How a run is applied.

    Attributes:
        normalise: ``run``, ``volume`` or ``percentile``.
        prepared: the input went through prepare.py like the training data.
        dsp: in place of the run's; 1: the input is thinned already.
        dtype: of the output; None: the input's.
        voxel_um: of the input where the file has none.
        ignore_voxels: go on although voxel sizes of run and input differ.
        region: part of the output that is wanted, in its voxels.
        tile: side of a decoding tile's core in output voxels; None: as memory allows.
        skip_empty: fill tiles of pure background instead of computing them.
        approximate: tiles although the generator's norm sees the whole volume.
        batch: tiles per pass of the network, in encoding and in decoding; None: 1 on a CPU, more on a GPU.

    Raises:
        UserError: ``dsp`` or ``batch`` are no counts.
    """

    normalise: str = "run"
    prepared: bool = False
    dsp: int | None = None
    dtype: str | None = None
    voxel_um: Triple | None = None
    ignore_voxels: bool = False
    region: Box | None = None
    tile: int | None = None
    skip_empty: bool = True
    approximate: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, count in {"dsp": self.dsp, "batch": self.batch}.items():
            if count is not None and count < 1:
                raise UserError(f"--{name} {count} must be at least 1")


@dataclass(frozen=True)
class Job:
    """An output volume to be computed.

    Attributes:
        field: computes any box of the whole volume.
        region: the part wanted, whole where nothing else was asked for.
        voxel_um, translation_um: of the region's first voxel, or None.
        attributes: what is recorded in the output.
        channel_names: with an axis of channels, their names.
    """

    field: Field
    region: Box
    voxel_um: Triple | None
    translation_um: Triple | None
    attributes: Mapping[str, Any]
    channel_names: list[str] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of the region."""
        return extent(self.region)

    @property
    def origin(self) -> tuple[int, int, int]:
        """First voxel of the region in the whole volume."""
        return corner(self.region)

    def of(self, field: Field, what: str) -> Job:
        """The same place for another field, such as an uncertainty."""
        return replace(self, field=field, attributes={**self.attributes, "shows": what})


def slices_of(run: Run, volumes: Sequence[Volume], options: Options) -> Slices:
    """The slices of an input.

    Raises:
        UserError: the number of channels or the shapes do not fit.
    """
    if len(volumes) != run.channels:
        raise UserError(
            f"{run.name} reads {run.channels} channel(s), the input has {len(volumes)}; "
            + ("give a two-channel file or two files" if run.channels == 2 else "choose one with --channel")
        )
    for volume in volumes[1:]:
        if volume.shape != volumes[0].shape:
            raise UserError(
                f"{volumes[0].path} is {volumes[0].shape} (Z, Y, X) but {volume.path} is {volume.shape}; channels share one grid"
            )
    maps = intensities(
        run.record,
        run.directions,
        volumes,
        options.normalise,
        translates=run.translates,
        prepared=options.prepared,
        where=run.name,
    )
    s = run.settings
    if s.get("resize"):
        log.info("the training resized its planes to %d pixels; the input is taken to be sampled like them", s["resize"])
    return Slices(volumes, maps, dsp=options.dsp or s["dsp"], dsp_how=s["dsp_how"], usp=s["usp"])


# Enhance, decode -----------------------------------------------------------------------------------------------------


def core_of(run: Run, options: Options) -> tuple[int, int, int]:
    """Latents of a decoding tile's core.

    Raises:
        UserError: ``--tile`` is no multiple of 8.
    """
    if options.tile is not None:
        if options.tile < LATENT_STRIDE or options.tile % LATENT_STRIDE:
            raise UserError(f"--tile {options.tile} must be a multiple of {LATENT_STRIDE}, such as 128")
        side = options.tile // LATENT_STRIDE
        return side, side, side
    side = _CORES[-1]
    if run.engine.device.type == "cuda":
        fitting = [c for c in _CORES if (LATENT_STRIDE * c + 4) ** 3 < _room(run)]
        side = fitting[0] if fitting else side
    return side, side, side


def decoding_batch(run: Run, options: Options, core: Sequence[int], codes: Sequence[int]) -> int:
    """Decoding tiles per pass: 1 on a CPU, 8 on a GPU, or as many as asked for; on a GPU no more than there is room for.

    Args:
        core: latents (z, y, x) of a tile's core.
        codes: slices, latents along rows and columns.

    Raises:
        UserError: a single tile is too large for a GPU.
    """
    wanted = options.batch or run.engine.batch
    if run.engine.device.type != "cuda":
        return wanted
    whole = (codes[0] * run.geometry.factor, LATENT_STRIDE * codes[1], LATENT_STRIDE * codes[2])
    voxels = math.prod(min(LATENT_STRIDE * c, size) + 4 for c, size in zip(core, whole, strict=True))
    width = run.settings["ngf"]
    if width * voxels >= _MOST_ELEMENTS:
        side = int((_MOST_ELEMENTS / width) ** (1 / 3) - 4) // LATENT_STRIDE * LATENT_STRIDE
        raise UserError(
            f"a tile of {LATENT_STRIDE * core[0]} voxels needs tensors of {width * voxels:.3g} elements, which not every GPU "
            f"kernel can count; --tile {side} is the largest cube for ngf {width}"
        )
    return max(1, min(wanted, int(_room(run) / voxels)))


def _room(run: Run) -> float:
    """Voxels that can be decoded at once: half of the GPU's memory suffices, and its kernels can count the elements."""
    memory = torch.cuda.get_device_properties(run.engine.device).total_memory
    width = run.settings["ngf"] * (2 if run.engine.precision == "bf16" else 4) * _BYTES_PER_VOXEL
    return min(0.5 * memory / width, _MOST_ELEMENTS / run.settings["ngf"])


def enhance_job(run: Run, volumes: Sequence[Volume], options: Options) -> Job:
    """Anisotropic volume → isotropic volume."""
    slices = slices_of(run, volumes, options)
    voxel = input_voxels(run, volumes, slices, options.voxel_um, trust=options.ignore_voxels)
    dtype = _dtype(run, volumes, options)
    field = isotropic_field(run, slices, options, dtype)
    where = slice_place(slices, voxel, volumes[0].translation_um)
    attributes = _attributes(run, slices.intensities, options, field)
    attributes["input"] = _described(volumes)
    attributes["grid"] = "isotropic"
    if isinstance(field, IsotropicField) and isinstance(field.codes, SliceEncoder):
        attributes["lattice"]["encoding"] = field.codes.lattice.as_json()
    return _job(run, field, where, "isotropic", attributes, options)


def isotropic_field(run: Run, slices: Slices, options: Options, dtype: np.dtype, seed: int | None = None) -> Field:
    """The field that :func:`enhance_job` computes."""
    if run.restores:
        return RestoredField(run, slices, slices.intensities, dtype, options.batch)
    encoder = SliceEncoder(run, slices, batch=options.batch, skip_empty=options.skip_empty)
    return decoded_field(run, encoder, slices.inner, slices.intensities, options, dtype, seed)


def decoded_field(
    run: Run, codes: Codes, inner: Sequence[int], maps: Sequence[Intensity], options: Options, dtype: np.dtype, seed: int | None
) -> IsotropicField:
    """The volume decoder's field of some codes.

    Raises:
        UserError: the generator's norm sees the whole volume, which does not fit into one tile.
    """
    core = core_of(run, options)
    whole = (codes.shape[0] * run.geometry.factor, inner[0], inner[1])
    field = IsotropicField(
        run,
        codes,
        inner,
        maps,
        dtype,
        core=core,
        batch=decoding_batch(run, options, core, codes.shape),
        region=region_of(options.region, whole),
        skip_empty=options.skip_empty,
        seed=seed,
    )
    if not run.local and not options.approximate and max(map(len, field.axes)) > 1:
        raise UserError(
            f"{run.name} uses norm {run.settings['norm']}, whose statistics are of the whole volume: tiles of it would differ. "
            "A volume of one tile is exact (--tile N, as memory allows); --approximate computes tiles all the same"
        )
    return field


def decode_job(run: Run, store: CodeStore, grid: str, options: Options) -> Job:
    """Codes → isotropic volume, or the slices as the 2-D decoder gives them back.

    Raises:
        UserError: the run's weights are not those of the codes.
    """
    about = store.about
    if about["weights"] != run.weight_hash:
        raise UserError(
            f"{store.path} was encoded with other weights ({about['run']}, {about['weights'][:12]}…) than {run.name} "
            f"({run.weight_hash[:12]}…); name the right run and epoch with --run and --epoch"
        )
    maps = [Intensity.from_json(entry, str(store.path)) for entry in about["intensities"]]
    dtype = check_output_dtype(options.dtype or about["output_dtype"])
    inner = about["inner"]
    field: Field
    if grid == "raw":
        if run.channels > 1:
            log.info("the raw grid of a two-channel run shows channel 0")
        field = SliceField(run, store, inner, maps, dtype, options.batch)
    else:
        field = decoded_field(run, store, inner, maps, options, dtype, None)
    attributes = {
        **_attributes(run, maps, options, field),
        "input": about["input"],
        "normalisation": about["normalisation"],
        "grid": grid,
    }
    attributes["lattice"]["encoding"] = about["lattice"]
    where = (_triple(about["slice_voxel_um"]), _triple(about["slice_translation_um"]))
    return _job(run, field, where, grid, attributes, options)


def _job(
    run: Run, field: Field, where: tuple[Triple | None, Triple | None], grid: str, attributes: dict[str, Any], options: Options
) -> Job:
    voxel, translation = where if grid == "raw" else isotropic_place(run, *where)
    region = region_of(options.region, field.shape)
    if options.region is not None:
        attributes["region"] = [[part.start, part.stop] for part in region]
    if voxel is not None and translation is not None:
        z, y, x = (t + v * part.start for t, v, part in zip(translation, voxel, region, strict=True))
        translation = (z, y, x)
    names = run.directions if field.channels > 1 else None
    return Job(field, region, voxel, translation, attributes, names)


def region_of(region: Box | None, shape: Sequence[int]) -> Box:
    """The region asked for, or everything.

    Raises:
        UserError: it is empty or reaches beyond the volume.
    """
    if region is None:
        return whole_box(shape)
    whole = []
    for part, size, axis in zip(region, shape, "zyx", strict=True):
        start, stop = part.start or 0, size if part.stop is None else part.stop
        if not 0 <= start < stop <= size:
            raise UserError(f"--region: {axis} {start}:{stop} is not within 0:{size}; the output is {tuple(shape)} (z, y, x)")
        whole.append(slice(start, stop))
    return whole[0], whole[1], whole[2]


# Encode --------------------------------------------------------------------------------------------------------------


def encoder_of(run: Run, volumes: Sequence[Volume], options: Options) -> tuple[SliceEncoder, dict[str, Any], tuple[Any, Any]]:
    """The encoder of a volume, what its code store records, and where the codes lie.

    Raises:
        UserError: the run makes no codes.
    """
    if run.restores:
        raise UserError(f"{run.name} is of IsoREF, which makes no codes; use enhance")
    if run.model.from_encoder:
        raise UserError(
            f"{run.name} decodes from the encoder's features (hbranch mid), which are larger than the volume; encode needs a run "
            "with hbranch z. enhance works"
        )
    slices = slices_of(run, volumes, options)
    voxel, translation = slice_place(
        slices, input_voxels(run, volumes, slices, options.voxel_um, trust=options.ignore_voxels), volumes[0].translation_um
    )
    encoder = SliceEncoder(run, slices, batch=options.batch, skip_empty=options.skip_empty)
    about = {
        **_source(run),
        "shape": list(encoder.shape),
        "inner": list(slices.inner),
        "dtype": code_dtype(run).name,
        "output_dtype": _dtype(run, volumes, options).name,
        "slice_voxel_um": voxel,
        "slice_translation_um": translation,
        "intensities": [m.as_json() for m in slices.intensities],
        "normalisation": options.normalise,
        "lattice": encoder.lattice.as_json(),
        "run_path": str(run.path.resolve()),
        "input": _described(volumes),
        **_kind(run),
    }
    return encoder, about, code_place(voxel, translation)


def _kind(run: Run) -> dict[str, Any]:
    book = codebook_of(run)
    if book is None:
        return {"kind": "gaussian", "levels": 1, "dimensions": int(run.settings["autoencoder"]["ddconfig"]["z_channels"])}
    return {"kind": "codebook", "levels": book.shape[0], "codes": book.shape[1], "dimensions": book.shape[2]}


def codebook_of(run: Run) -> np.ndarray | None:
    """(levels, codes, dimensions) float32; None for a Gaussian model."""
    if "quantize" not in run.model.G:
        return None
    return np.stack([book.weight.detach().float().cpu().numpy() for book in run.model.G["quantize"].codebooks])


# Records -------------------------------------------------------------------------------------------------------------


def _source(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "epoch": run.epoch,
        "ema": run.ema,
        "weights": run.weight_hash,
        "model": run.settings["models"],
        "factor": run.geometry.factor,
        "l1how": run.settings["l1how"],
        "isoscope_version": _version(),
    }


def _attributes(run: Run, maps: Sequence[Intensity], options: Options, field: Field) -> dict[str, Any]:
    return {
        **_source(run),
        "precision": run.engine.precision,
        "normalisation": options.normalise,
        "intensities": [m.as_json() for m in maps],
        "lattice": {"decoding": field.lattice()},
    }


def _described(volumes: Sequence[Volume]) -> dict[str, Any]:
    """What an interrupted command must find again to be continued."""
    first = volumes[0]
    files = {"files": [volume.path.name for volume in volumes], "shape": list(first.shape), "dtype": first.dtype.name}
    changed = [volume.path.stat().st_mtime for volume in volumes if volume.path.exists()]
    return {**files, "modified": changed} if changed else files


def _dtype(run: Run, volumes: Sequence[Volume], options: Options) -> np.dtype:
    foreign = run.translates and options.normalise == "run"
    found = output_dtype(run.record, run.directions, volumes, foreign=foreign)
    return check_output_dtype(options.dtype or found.name)


def _version() -> str:
    try:
        return version("isoscopexx")
    except PackageNotFoundError:
        return "unknown"


def _triple(values: Sequence[float] | None) -> Triple | None:
    return None if values is None else (values[0], values[1], values[2])


def loaded(run: Run | Path | str, epoch: int | None, engine: Engine | None) -> Run:
    """A run that is open already, or the run of a folder."""
    return run if isinstance(run, Run) else Run.load(run, epoch, engine)
