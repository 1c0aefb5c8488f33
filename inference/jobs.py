"""What a command is about to compute: the field or encoder, where its voxels lie, and what is recorded about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from inference.blended import RestoredField, SliceField
from inference.codes import CodeStore
from inference.decoding import Field, decoded_field, region_of
from inference.encoding import SliceEncoder, code_dtype
from inference.intensity import check_output_dtype, output_dtype
from inference.run import Run
from inference.source import Options, Source
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from volumes.intensity import Intensity
from volumes.volume import Box, Triple, corner, extent, triple

log = logging.getLogger("isoscope")

Place = tuple[Triple | None, Triple | None]  # voxel size and position of the first voxel in µm


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


def enhance_job(run: Run, source: Source, options: Options) -> Job:
    """Anisotropic volume → isotropic volume."""
    dtype = output_dtype(run, source.volumes, options.normalise, options.dtype)
    field, encoding = isotropic_field(run, source, options, dtype)
    record = {"input": _described(source), "normalisation": options.normalise}
    return _job(run, field, source.intensities, (source.voxel_um, source.translation_um), "isotropic", encoding, record, options)


def isotropic_field(
    run: Run, source: Source, options: Options, dtype: np.dtype, seed: int | None = None
) -> tuple[Field, dict[str, Any] | None]:
    """The field that :func:`enhance_job` computes, and the lattice of its encoding where it has one."""
    if run.restores:
        return RestoredField(run, source, dtype, options.batch), None
    encoder = SliceEncoder(run, source, batch=options.batch, skip_empty=options.skip_empty)
    how: dict[str, Any] = {"seed": seed, "recent": source.recent}
    return decoded_field(run, encoder, source.inner, source.intensities, dtype, options, **how), encoder.lattice()


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
    dtype, inner = check_output_dtype(options.dtype or about["output_dtype"]), about["inner"]
    if grid == "raw" and run.channels > 1:
        log.info("the raw grid of a two-channel run shows channel 0")
    field: Field = (
        SliceField(run, store, inner, maps, dtype, options.batch)
        if grid == "raw"
        else decoded_field(run, store, inner, maps, dtype, options)
    )
    place = tuple(values and triple(values) for values in (about["slice_voxel_um"], about["slice_translation_um"]))
    record = {"input": about["input"], "normalisation": about["normalisation"]}
    return _job(run, field, maps, place, grid, about["lattice"], record, options)  # type: ignore[arg-type]


def _job(
    run: Run,
    field: Field,
    maps: Sequence[Intensity],
    place: Place,
    grid: str,
    encoding: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    options: Options,
) -> Job:
    """A job from the place of the encoded slices: that of the isotropic planes follows (DECISIONS §2)."""
    region = region_of(options.region, field.shape)
    voxel, translation = place
    if grid != "raw" and voxel is not None and translation is not None:
        size = voxel[0] / run.geometry.factor
        voxel = (size, voxel[1], voxel[2])
        translation = (translation[0] - size * run.plane_of_slice(0), translation[1], translation[2])
    attributes = {
        **_about(run),
        "precision": run.engine.precision,
        "intensities": [m.as_json() for m in maps],
        "lattice": {"decoding": field.lattice(), **({} if encoding is None else {"encoding": encoding})},
        "grid": grid,
        **record,
    }
    if options.region is not None:
        attributes["region"] = [[part.start, part.stop] for part in region]
    if voxel is not None and translation is not None:
        translation = triple([t + v * part.start for t, v, part in zip(translation, voxel, region, strict=True)])
    names = run.directions if field.channels > 1 else None
    return Job(field, region, voxel, translation, attributes, names)


@dataclass(frozen=True)
class Encoding:
    """A code store to be computed.

    Attributes:
        encoder: computes any box of the codes.
        about: what the store records, and decoding needs.
        place: voxel size and position of the codes, one per slice and 8x8 pixels, centred on these.
        codebook: (levels, codes, dimensions), None for a Gaussian model.
    """

    encoder: SliceEncoder
    about: dict[str, Any]
    place: Place
    codebook: np.ndarray | None


def encode_job(run: Run, source: Source, options: Options) -> Encoding:
    """Volume → codes.

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
    encoder = SliceEncoder(run, source, batch=options.batch, skip_empty=options.skip_empty)
    book = codebook_of(run)
    kind: dict[str, Any] = {"kind": "gaussian", "levels": 1}
    if book is None:
        kind["dimensions"] = int(run.settings["autoencoder"]["ddconfig"]["z_channels"])
    else:
        kind = {"kind": "codebook", **dict(zip(("levels", "codes", "dimensions"), book.shape, strict=True))}
    about = {
        **_about(run),
        "shape": list(encoder.shape),
        "inner": list(source.inner),
        "dtype": code_dtype(run).name,
        "output_dtype": output_dtype(run, source.volumes, options.normalise, options.dtype).name,
        "slice_voxel_um": source.voxel_um,
        "slice_translation_um": source.translation_um,
        "intensities": [m.as_json() for m in source.intensities],
        "normalisation": options.normalise,
        "lattice": encoder.lattice(),
        "run_path": str(run.path.resolve()),
        "input": _described(source),
        **kind,
    }
    place: Place = (None, None)
    if source.voxel_um is not None and source.translation_um is not None:
        (z, y, x), t, centre = source.voxel_um, source.translation_um, (LATENT_STRIDE - 1) / 2
        place = (z, LATENT_STRIDE * y, LATENT_STRIDE * x), (t[0], t[1] + centre * y, t[2] + centre * x)
    return Encoding(encoder, about, place, book)


def codebook_of(run: Run) -> np.ndarray | None:
    """(levels, codes, dimensions) float32; None for a Gaussian model."""
    if "quantize" not in run.model.G:
        return None
    return np.stack([book.weight.detach().float().cpu().numpy() for book in run.model.G["quantize"].codebooks])


def _about(run: Run) -> dict[str, Any]:
    try:
        ours = version("isoscopexx")
    except PackageNotFoundError:
        ours = "unknown"
    return {
        "run": run.name,
        "epoch": run.epoch,
        "ema": run.ema,
        "weights": run.weight_hash,
        "model": run.settings["models"],
        "factor": run.geometry.factor,
        "l1how": run.settings["l1how"],
        "isoscope_version": ours,
    }


def _described(source: Source) -> dict[str, Any]:
    """What an interrupted command must find again to be continued."""
    first = source.volumes[0]
    files = {"files": [volume.path.name for volume in source.volumes], "shape": list(first.shape), "dtype": first.dtype.name}
    changed = [volume.path.stat().st_mtime for volume in source.volumes if volume.path.exists()]
    return {**files, "modified": changed} if changed else files
