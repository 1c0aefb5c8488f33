"""Settings of the lateral model for a data set, of what ``prepare.py check`` has found in it (``--write NAME``)."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from utils.errors import UserError

STEPS = 500  # of an epoch: with 10 epochs the 5000 steps that docs/measurements.md has measured
CPU = {"ngf": 32, "fine_width": 8}  # at equal minutes as good as the default or better, and enhances twice as fast
GPU = {"batch_size": 16, "workers": 4}  # four times as many crops as that saw; not measured
_SIDE = 128  # of a crop at most; 96 suffices for sections so close, and a step costs the same there
_NEAR, _NEAR_SIDE = 4, 96


def template(found: Mapping[str, Any], settings: Mapping[str, Any], typed: Mapping[str, Any], gpu: bool) -> dict[str, Any]:
    """What an experiment of the lateral model needs beyond ``settings``.

    Args:
        found: check.json.
        settings: of an experiment of the lateral model, complete.
        typed: of them those of the command line, which win.
        gpu: for a training on a GPU rather than on a laptop.

    Raises:
        UserError: it is another model, z is not the thick axis, or the distance of the sections is neither stated nor given, or
            there is nothing to restore.
    """
    if settings["models"] != "lateral":
        raise UserError(f"--write makes settings of the lateral model, not of {settings['models']}; start from --jsn lateral")
    if found["thick_axis"] != "z":
        raise UserError(f"--write: the thick axis is {found['thick_axis']}, not z; see the line above that begins with !")
    voxels = [file["voxel_um"] for file in found["files"] if file["voxel_um"]]
    if not voxels and settings["uprate"] is None:
        raise UserError(
            "--write: the files state no voxel size, so the distance of two sections is not known; give --uprate (vz / vxy), "
            "such as --uprate 8, or --uprate 1 where planes lie as close as pixels and are only blurred"
        )
    uprate = settings["uprate"] or round(median(2 * z / (y + x) for z, y, x in voxels), 3)
    profile = found["axial_profile"] or {"no_blur": True}
    blurred = not profile["no_blur"] and not profile["doubts"]
    taps = {"axial_taps": [round(tap, 4) for tap in profile["axial_taps"]]} if blurred else {}
    if abs(uprate - 1) < 0.01 and not (taps or settings["axial_taps"] or settings["axial_sigma"]):
        raise UserError(
            "--write: voxels are as long along z as across and no blur along z was found that can be trusted, so there is "
            "nothing to restore; --dsp 8 --cropz 16 --uprate 8 thins the volume, to try it where the truth is known"
        )
    side = _NEAR_SIDE if uprate <= _NEAR and not taps else _SIDE
    inside = all(-1 <= file["low"] and file["high"] <= 1 for file in found["files"])
    device = GPU if gpu else CPU
    crops = STEPS * {**settings, **device, **typed}["batch_size"]
    chosen = {
        **device,
        "nm": "00" if inside else "11",
        "cropsize": min(side, min(size for file in found["files"] for size in file["shape"][1:]) // 8 * 8),
        "uprate": uprate,
        **taps,
        "crops_per_volume": math.ceil(crops / sum(file["name"].startswith("train/") for file in found["files"])),
    }
    blur = {"axial_sigma", "axial_taps"}
    return {name: value for name, value in chosen.items() if name not in typed and not (name in blur and blur & set(typed))}
