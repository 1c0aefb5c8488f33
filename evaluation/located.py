"""A volume file that knows where it is in space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.volumes.volume_io import open_volume

Triple = tuple[float, float, float]


class LocatedVolume:
    """A volume file with its voxel size and the position of its first voxel, both in µm and (z, y, x), None where unknown.

    Args:
        path: a file that utils.volumes.volume_io reads.
        channel: which channel of several.
        voxel_um: voxel size where the file states none.

    Raises:
        UserError: the file cannot be read as one (Z, Y, X) volume.
    """

    def __init__(self, path: Path, channel: int | None = None, voxel_um: Triple | None = None) -> None:
        if path.is_dir() and not any(path.iterdir()):
            raise UserError(f"{path} is an empty folder; name a volume, stored as (Z, Y, X)")
        self._volume = open_volume(path, channel=channel)
        self.path, self.shape, self.dtype = path, self._volume.shape, np.dtype(self._volume.dtype)
        self.voxel_um = self._volume.voxel_um or voxel_um
        self.translation_um = self._volume.translation_um

    def __getitem__(self, box: tuple[slice, slice, slice]) -> Any:
        return self._volume[box]

    def facts(self) -> dict[str, Any]:
        """What the report says of the file."""
        return {
            "path": str(self.path), "shape": list(self.shape), "dtype": str(self.dtype), "voxel_um": self.voxel_um,
            "translation_um": self.translation_um,
        }  # fmt: skip
