"""Sizes, lengths and durations in words."""


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
