"""What a command is about to compute: the field or encoder, where its voxels lie, and what is recorded about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.blended import LateralField, RestoredField, SliceField
from inference.codes import CodeStore
from inference.decoding import Field, decoded_field
from inference.encoding import SliceEncoder
from inference.run import Run
from inference.source import Options, Source, checked_dtype
from utils.errors import UserError
from volumes.volume import Box, Triple, region_within, triple

log = logging.getLogger("isoscope")


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


def enhance_job(run: Run, source: Source, options: Options) -> Job:
    """Anisotropic volume → isotropic volume."""
    field = isotropic_field(run, source, options, source.dtype)
    record = {"input": source.record(), "normalisation": options.normalise, "grid": "isotropic"}
    return _job(run, field, source.voxel_um, source.translation_um, record, options)


def isotropic_field(run: Run, source: Source, options: Options, dtype: np.dtype) -> Field:
    """The field that :func:`enhance_job` computes."""
    if run.settings["models"] == "lateral":
        return LateralField(run, source, dtype, options)
    if run.restores:
        return RestoredField(run, source, dtype, options.batch)
    encoder = SliceEncoder(run, source, batch=options.batch, skip_empty=options.skip_empty)
    return decoded_field(run, encoder, dtype, options)


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
    dtype = checked_dtype(options.dtype or about["output_dtype"])
    if grid == "raw" and run.channels > 1:
        log.info("the raw grid of a two-channel run shows channel 0")
    raw = grid == "raw"
    field: Field = SliceField(run, store, dtype, options.batch) if raw else decoded_field(run, store, dtype, options)
    voxel, translation = (v and triple(v) for v in (about["slice_voxel_um"], about["slice_translation_um"]))
    record = {"input": about["input"], "normalisation": about["normalisation"], "grid": grid}
    return _job(run, field, voxel, translation, record, options)


def _job(
    run: Run, field: Field, voxel: Triple | None, translation: Triple | None, record: Mapping[str, Any], options: Options
) -> Job:
    """A job from the place of the encoded slices: that of the isotropic planes follows (DECISIONS §2)."""
    region = region_within(options.region, [(0, size) for size in field.shape], "the output has voxels")
    attributes = {
        **run.record_of_outputs(),
        "precision": run.engine.precision,
        "intensities": [intensity.as_json() for intensity in field.intensities],
        "lattice": field.lattice(),
        **record,
    }
    if options.region is not None:
        attributes["region"] = [[part.start, part.stop] for part in region]
    if voxel is not None and translation is not None:
        if record["grid"] != "raw":
            voxel = (voxel[0] / run.geometry.factor, voxel[1], voxel[2])
            translation = (translation[0] - voxel[0] * run.plane_of_slice(0), translation[1], translation[2])
        translation = triple([t + v * part.start for t, v, part in zip(translation, voxel, region, strict=True)])
    return Job(field, region, voxel, translation, attributes, run.directions if field.channels > 1 else None)


def encode_job(run: Run, source: Source, options: Options) -> tuple[SliceEncoder, dict[str, Any]]:
    """Volume → codes: the encoder, and what their store records.

    Raises:
        UserError: the run makes no codes.
    """
    if run.restores:
        raise UserError(f"{run.name} is of {run.settings['models']}, which makes no codes; use enhance")
    if run.model.from_encoder:
        raise UserError(
            f"{run.name} decodes from the encoder's features (hbranch mid), which are larger than the volume; encode needs a run "
            "with hbranch z. enhance works"
        )
    encoder, book = SliceEncoder(run, source, batch=options.batch, skip_empty=options.skip_empty), run.codebook()
    kind: dict[str, Any] = {"kind": "codebook"}
    if book is None:
        kind = {"kind": "gaussian", "levels": 1, "dimensions": int(run.settings["autoencoder"]["ddconfig"]["z_channels"])}
    else:
        kind |= dict(zip(("levels", "codes", "dimensions"), book.shape, strict=True))
    return encoder, {
        **run.record_of_outputs(),
        **kind,
        "shape": list(encoder.shape),
        "inner": list(source.inner),
        "dtype": encoder.dtype.name,
        "output_dtype": source.dtype.name,
        "slice_voxel_um": source.voxel_um,
        "slice_translation_um": source.translation_um,
        "intensities": [intensity.as_json() for intensity in source.intensities],
        "normalisation": options.normalise,
        "lattice": encoder.lattice(),
        "run_path": str(run.path.resolve()),
        "input": source.record(),
    }
