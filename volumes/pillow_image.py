"""Greyscale images that only Pillow reads: PNG slices, and stacks of frames that are no TIFF."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from volumes.volume import PlaneVolume, check_dtype

# Planes of 10⁸ pixels are everyday microscopy; Pillow takes them for an attack.
Image.MAX_IMAGE_PIXELS = None
_DTYPES = {"1": "bool", "L": "uint8", "I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16", "F": "float32"}


class PillowVolume(PlaneVolume):
    """A greyscale file of one frame or more; every frame is one plane, and is decoded as a whole.

    Args:
        path: the file.
        flat: whether an image of one frame is taken as a volume of one plane.
        reason: why it is no TIFF, for messages.

    Raises:
        UserError: it cannot be read, is truncated, a colour image or, where not ``flat``, a 2-D image.
    """

    def __init__(self, path: Path, flat: bool = False, reason: Exception | None = None):
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Pillow only warns about truncated directories
                with Image.open(path) as image:
                    frames = getattr(image, "n_frames", 1)
                    self._mode, self.shape = image.mode, (frames, image.height, image.width)
                    kind = image.format
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, TypeError, UserWarning) as error:
            raise UserError(f"{path}: not a readable image ({reason or error}); truncated or damaged, copy it again") from error
        if self._mode not in _DTYPES:
            raise UserError(f"{path}: a {kind} of mode {self._mode}; save greyscale images of 8 or 16 bits, a stack as TIFF")
        if frames < 2 and not flat:
            raise UserError(f"{path}: a 2-D image; a volume is a stack of planes (Z, Y, X) in one file")
        self.dtype = check_dtype(path, np.dtype(_DTYPES[self._mode]))
        self.block_rows = self.shape[1]
        if not flat:
            self[frames - 1 :]  # the last frame is where a truncated file fails

    def _planes(self, planes: range, rows: slice, columns: slice) -> Iterator[np.ndarray]:
        with Image.open(self.path) as image:
            for z in planes:
                try:
                    image.seek(z)
                    frame = np.asarray(image)
                except (OSError, EOFError, SyntaxError) as error:
                    raise UserError(f"{self.path}: frame {z} cannot be read ({error}); damaged, copy it again") from error
                if image.mode != self._mode or frame.shape != self.shape[1:]:
                    raise UserError(f"{self.path}: frame {z} ({image.mode}, {frame.shape}) is unlike the first; save it as TIFF")
                yield frame[rows, columns]
