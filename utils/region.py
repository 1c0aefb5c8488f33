"""Parts and sizes as a user writes them: ``a:b`` along one axis, ``z0:z1,y0:y1,x0:x1`` for a box, ``z,y,x`` in µm for a voxel."""

from __future__ import annotations

from utils.errors import UserError


def parse_slice(text: str, option: str) -> slice:
    """``a:b`` or ``a:b:s`` of non-negative whole numbers, each of which may be left out.

    Args:
        text: what the user wrote.
        option: where, for the message.

    Raises:
        UserError: it is not written so, or selects nothing.
    """
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(part.strip() == "" or part.strip().isdecimal() for part in parts):
        raise UserError(f"{option} {text!r} must look like start:stop or start:stop:step, for example 0:248")
    numbers = [int(part) if part.strip() else None for part in parts]
    if len(numbers) == 3 and numbers[2] == 0:
        raise UserError(f"{option} {text!r}: the step must be at least 1")
    start, stop = numbers[0] or 0, numbers[1]
    if stop is not None and stop <= start:
        raise UserError(f"{option} {text!r} is empty: it must stop after it starts")
    return slice(*numbers)


def parse_region(text: str | None) -> tuple[slice, slice, slice] | None:
    """The value of ``--region``: ``z0:z1,y0:y1,x0:x1`` in voxels; a number that is left out means the volume's border.

    Raises:
        UserError: it is not written so, or is empty.
    """
    if text is None:
        return None
    spans = text.split(",")
    if len(spans) != 3 or any(span.count(":") != 1 for span in spans):
        raise UserError(f"--region {text!r} must look like z0:z1,y0:y1,x0:x1, for example 0:128,0:512,0:512")
    z, y, x = (parse_slice(span, "--region") for span in spans)
    return z, y, x


def voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """The value of ``--voxel``: ``z,y,x`` in µm.

    Raises:
        UserError: it is not written so.
    """
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--voxel {text!r} must be three sizes in µm, z,y,x, for example 2,0.25,0.25") from None
    if not 0 < min(z, y, x) <= max(z, y, x) < float("inf"):
        raise UserError(f"--voxel {text!r}: sizes must be positive")
    return z, y, x
