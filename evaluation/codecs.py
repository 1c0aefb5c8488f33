"""Standard image codecs at a chosen rate: JPEG2000, JPEG-XL, AVIF, and zstd on coarser grey values (all from imagecodecs).

Sections are coded one stream each, or stacked on top of each other in one image. The latter spends a single header, and its bits
where they are needed, so it is what a code store has to be compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.sections import HALO, Sections, scratch_array
from utils.boxes import Box, boxes, extent
from utils.errors import UserError
from volumes.volume import ArrayVolume, Volume

Pixels = NDArray[Any]  # uint8 or uint16
LARGEST = 2**24  # pixels of one image; JPEG-XL was seen to need 40 bytes for each, 0.7 GB
TOLERANCE = 0.002  # a stream may stay below its limit by this share
HALVINGS = 20


@dataclass(frozen=True)
class Codec:
    """A codec whose stream grows with one setting.

    Attributes:
        name: key in the results.
        setting: from 0 (coarsest) … 1 (finest) and the number of grey values to the codec's own setting.
        encode: pixels and setting to a stream.
        decode: stream and setting to an array like the pixels (second argument).
        lossless: pixels to a stream that holds them exactly; None where it has none.
        side: rows or columns of the largest image.
    """

    name: str
    setting: Callable[[float, int], float]
    encode: Callable[[Pixels, float], bytes]
    decode: Callable[[bytes, Pixels, float], Pixels]
    lossless: Callable[[Pixels], bytes] | None
    side: int = 2**31


def _stretch(pixels: Pixels) -> tuple[float, float]:
    """Offset and slope that let 16-bit pixels fill their range: JPEG-XL takes small values for shadows and drops them."""
    if pixels.dtype == np.uint8:
        return 0.0, 1.0
    low, high = int(pixels.min()), int(pixels.max())
    return float(low), 65535 / max(high - low, 1)


def _jpegxl(pixels: Pixels, distance: float) -> bytes:
    low, slope = _stretch(pixels)
    full = pixels if slope == 1 else np.rint((pixels.astype(np.float64) - low) * slope).astype(pixels.dtype)
    return bytes(imagecodecs.jpegxl_encode(full, distance=distance, lossless=False))


def _from_jpegxl(stream: bytes, like: Pixels, distance: float) -> Pixels:
    low, slope = _stretch(like)  # two numbers, 4 bytes, that a file would have to hold
    values = imagecodecs.jpegxl_decode(stream)
    return values if slope == 1 else np.rint(values / slope + low).astype(like.dtype)


def _avif(pixels: Pixels, level: float) -> bytes:
    """As colour with halved chroma, which costs nothing: a grey image is coded without loss whatever the level. 16 bits as 12."""
    grey = pixels
    if pixels.dtype == np.uint16:
        low, slope = _stretch(pixels)
        grey = np.rint((pixels.astype(np.float64) - low) * slope / 16).clip(0, 4095).astype(np.uint16)
    colour = np.repeat(grey[..., None], 3, axis=2)
    how: dict[str, Any] = {
        "bitspersample": None if pixels.dtype == np.uint8 else 12,
        "pixelformat": imagecodecs.AVIF.PIXEL_FORMAT.YUV420,
    }
    return bytes(imagecodecs.avif_encode(colour, level=int(level), speed=6, **how))


def _from_avif(stream: bytes, like: Pixels, level: float) -> Pixels:
    values = imagecodecs.avif_decode(stream).mean(axis=2)
    if like.dtype == np.uint16:
        low, slope = _stretch(like)
        values = values * 16 / slope + low
    return np.rint(values).clip(0, np.iinfo(like.dtype).max).astype(like.dtype)


def _from_zstd(stream: bytes, like: Pixels, step: float) -> Pixels:
    values = np.frombuffer(imagecodecs.zstd_decode(stream), like.dtype).reshape(like.shape).astype(np.int64)
    top = int(np.iinfo(like.dtype).max)
    return np.minimum(values * int(step) + int(step) // 2, top).astype(like.dtype)


JPEG2000 = Codec(
    "jpeg2000",
    lambda t, _: 1 + 99 * t,  # the PSNR that the encoder aims at, dB
    lambda pixels, level: bytes(imagecodecs.jpeg2k_encode(pixels, level=level)),  # type: ignore[arg-type]  # the stub says int
    lambda stream, like, _: imagecodecs.jpeg2k_decode(stream),
    lambda pixels: bytes(imagecodecs.jpeg2k_encode(pixels)),
)
JPEGXL = Codec(
    "jpegxl",
    lambda t, _: 25 * (0.05 / 25) ** t,  # distance; 1 is visually lossless
    _jpegxl,
    _from_jpegxl,
    lambda pixels: bytes(imagecodecs.jpegxl_encode(pixels, lossless=True)),
)
AVIF = Codec("avif", lambda t, _: float(round(99 * t)), _avif, _from_avif, None, side=32768)
ZSTD = Codec(
    "zstd",
    lambda t, values: float(round((values / 2) ** (1 - t))),  # grey values that become one
    lambda pixels, step: bytes(imagecodecs.zstd_encode((pixels // int(step)).tobytes(), level=9)),
    _from_zstd,
    lambda pixels: bytes(imagecodecs.zstd_encode(pixels.tobytes(), level=9)),
)
CODECS = {codec.name: codec for codec in (JPEG2000, JPEGXL, AVIF, ZSTD)}


@dataclass(frozen=True)
class Coded:
    """Sections that went through a codec: the array (sections, rows, columns), and what they took."""

    decoded: Any
    bytes: int

    @property
    def bits_per_pixel(self) -> float:
        """Of the coded pixels."""
        return 8 * self.bytes / float(np.prod(self.decoded.shape, dtype=np.float64))


def check_codable(dtype: np.dtype[Any]) -> None:
    """Refuses dtypes that the codecs do not know."""
    if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(f"codecs need volumes of 8 or 16 bit unsigned integers, not {dtype}; convert the files")


def finest_within(codec: Codec, pixels: Pixels, limit: float) -> tuple[bytes, float] | None:
    """The largest stream of pixels (rows, columns) in at most ``limit`` bytes, found by bisecting the setting, and that setting.

    None where not even the coarsest setting fits.
    """
    values = int(np.iinfo(pixels.dtype).max) + 1
    low, high, best = 0.0, 1.0, None
    streams: dict[float, bytes] = {}  # settings of zstd and AVIF are whole numbers and come again
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        setting = codec.setting(middle, values)
        if setting not in streams:
            streams[setting] = codec.encode(pixels, setting)
        stream = streams[setting]
        if len(stream) > limit:
            high = middle
            continue
        low, best = middle, (stream, setting)
        if len(stream) >= (1 - TOLERANCE) * limit:
            break
    return best


def code(planes: Volume, codec: Codec, stream: str, bits_per_pixel: float | None, scratch: Path) -> Coded | None:
    """All sections (planes, rows, columns) of 8 or 16 bit through a codec.

    None where it cannot go down to that rate, has no lossless mode, or takes no sections of that size.

    Args:
        stream: ``slice``: every section is a stream of its own, with its own share of the bytes; ``all``: one stream for all
            (for every LARGEST pixels of a volume larger than that, so that memory does not depend on its size, and for every
            image as high as the codec allows).
        bits_per_pixel: at most; None: lossless, and nothing is decoded.
        scratch: file for the decoded sections, which are read from there.
    """
    _, height, width = planes.shape
    if max(height, width) > codec.side or (bits_per_pixel is None and codec.lossless is None):
        return None
    check_codable(planes.dtype)
    decoded: Any = np.broadcast_to(np.zeros((), planes.dtype), planes.shape)
    if bits_per_pixel is not None:
        decoded = scratch_array(scratch, planes.dtype, planes.shape)
    size = 0
    together = 1 if stream == "slice" else max(1, min(LARGEST // (height * width), codec.side // height))
    groups = boxes(planes.shape, (together, height, width))
    for box in tqdm(groups, desc=f"{codec.name}, {stream}", leave=False):
        pixels = np.ascontiguousarray(planes[box].reshape(-1, width))
        if bits_per_pixel is None:
            assert codec.lossless is not None  # refused above
            size += len(codec.lossless(pixels))
            continue
        found = finest_within(codec, pixels, int(bits_per_pixel * pixels.size / 8))
        if found is None:
            return None
        size += len(found[0])
        decoded[box] = codec.decode(found[0], pixels, found[1]).reshape(extent(box))
    return Coded(decoded, size)


def coded_sections(
    sections: Sections, region: Box, dtype: np.dtype[Any], bits_per_pixel: float, folder: Path
) -> tuple[Sections, Sections, float]:
    """The sections of a region, and those just outside that interpolation reads, sent through JPEG2000 one by one.

    Each is rounded to dtype (uint8 or uint16), as an instrument would store it, and may take so many bits at most. The source is
    read once; what is needed of it and of the decoded sections is kept in the folder.

    Returns:
        The sections themselves, from the folder; the decoded ones; and the bits per pixel really used.

    Raises:
        UserError: not even the lowest quality fits (sections so small that headers fill them).
    """
    check_codable(dtype)
    depth, rows, columns = region
    _, height, width = extent(region)
    begin, end = sections.span(depth.start, depth.stop - 1, HALO)
    begin -= begin % 2  # nearest's ties go by even and odd
    own = sections.copied(begin, end, rows, columns, folder / "sections.raw")
    first, last = (number - begin for number in sections.span(depth.start, depth.stop - 1, 1))
    rounded = scratch_array(folder / "rounded.raw", dtype, (last - first, height, width))
    for k in range(first, last):
        rounded[k - first] = np.clip(np.rint(own.source[k : k + 1][0]), 0, np.iinfo(dtype).max)
    coded = code(ArrayVolume(rounded), JPEG2000, "slice", bits_per_pixel, folder / "coded.raw")
    if coded is None:
        raise UserError(f"a plane of {(height, width)} does not fit into {bits_per_pixel} bit/pixel; raise --bpp")
    decoded = replace(own, source=ArrayVolume(coded.decoded), first=own.position(first))
    return own, decoded, coded.bits_per_pixel
