"""A volume into one file, OME-TIFF or NIfTI, which appears when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import replaced
from volumes.output_files import output_kind
from volumes.volume import Volume


def write_single_file(
    output: Path,
    channels: Sequence[Volume],
    *,
    channel_names: Sequence[str] | None,
    attributes: Mapping[str, Any],
    compression: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Stream a volume, or several as channels, into a temporary file and rename it; an existing file is replaced.

    Args:
        output: a TIFF or NIfTI file.
        channels: volumes of one shape and dtype; voxel size and position are those of the first.
        channel_names: one for each; None for a volume without an axis of channels.
        attributes: plain JSON about the run.
        compression: of a TIFF.
        progress: called with (boxes written, boxes in all).
    """
    with replaced(output) as file:
        if output_kind(output) == "tiff":
            from volumes.ome_tiff_writer import write_ome_tiff

            write_ome_tiff(
                file, channels, channel_names=channel_names, attributes=attributes, compression=compression, progress=progress
            )
        else:
            from volumes.nifti_writer import write_nifti

            compressed = output.suffix.lower() == ".gz"
            write_nifti(file, channels[0], attributes=attributes, compressed=compressed, progress=progress)
