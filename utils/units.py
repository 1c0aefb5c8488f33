"""Sizes and lengths in words."""


def as_size(count: float) -> str:
    """Bytes, as 1 to 999 of bytes, kB, MB, GB or TB."""
    power = sum(count >= 0.9995 * 1000**n for n in (1, 2, 3, 4))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def as_length(um: float) -> str:
    """Micrometres, from a thousand on as millimetres."""
    return f"{um:.3g} µm" if um < 999.5 else f"{um / 1000:.3g} mm"
