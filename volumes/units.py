"""Units of length as the metadata of image files name them."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIXES = "exa peta tera giga mega kilo hecto deca deci centi milli micro nano pico femto atto zepto yocto".split()
_POWERS = (18, 15, 12, 9, 6, 3, 2, 1, -1, -2, -3, -6, -9, -12, -15, -18, -21, -24)  # of ten, in metres
MICROMETRES: Mapping[str, float] = {
    **{f"{prefix}meter": float(f"1e{power + 6}") for prefix, power in zip(["", *_PREFIXES], (0, *_POWERS), strict=True)},
    **{"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "pm": 1e-6},
    **{"angstrom": 1e-4, "Å": 1e-4, "in": 25.4e3, "inch": 25.4e3, "foot": 304.8e3, "yard": 914.4e3},
}
