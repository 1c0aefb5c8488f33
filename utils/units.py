"""Sizes, lengths and durations in words; which lengths an image can have."""

from collections.abc import Sequence

SMALLEST_UM, LARGEST_UM = 1e-15, 1e15  # beyond is no image; within, 32-bit mm (NIfTI) and all squares hold
SLIMMEST = 1e4  # longest over shortest side of a voxel; sections a millimetre apart at 0.25 µm have 4000
SIZES = f"between {SMALLEST_UM:g} and {LARGEST_UM:g} µm, none more than {SLIMMEST:g} times another"


def are_sizes(um: Sequence[float]) -> bool:
    """Whether some numbers can be the sides of a voxel, in µm: such as ``SIZES`` says."""
    return all(SMALLEST_UM <= size <= LARGEST_UM for size in um) and (not um or max(um) <= SLIMMEST * min(um))


def as_size(count: float) -> str:
    """Bytes, as 1 to 999 of bytes, kB, MB, GB or TB."""
    power = sum(count >= 0.9995 * 1000**n for n in (1, 2, 3, 4))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def as_length(um: float) -> str:
    """Micrometres, from a thousand on as millimetres."""
    return f"{um:.3g} µm" if um < 999.5 else f"{um / 1000:.3g} mm"


def as_time(duration: float) -> str:
    """Seconds, as 0.12 s, 3 min or 5.2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if duration >= 2 * size:
            return f"{duration / size:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{duration:.2g} s" if duration < 10 else f"{duration:.0f} s"
