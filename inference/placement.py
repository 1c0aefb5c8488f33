"""Where voxels lie: sizes and positions of input, encoded slices, codes and isotropic planes (DECISIONS §2), in µm (z, y, x)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from inference.run import Run
from inference.source import Slices
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from volumes.volume import Triple, Volume

log = logging.getLogger("isoscope")

VOXEL_TOLERANCE = 0.01  # relative difference of voxel sizes that counts as none
FACTOR_TOLERANCE = 0.05


def input_voxels(
    run: Run, volumes: Sequence[Volume], slices: Slices, given: Triple | None = None, *, trust: bool = False
) -> Triple | None:
    """Voxel size of the input in µm, None where nobody knows it.

    Args:
        run: the run, which may know the voxel size of its training data.
        volumes: the input, one per channel.
        slices: made from it.
        given: what the user says (``--voxel``).
        trust: go on although run and input differ.

    Raises:
        UserError: the files, ``--voxel`` and the run contradict each other.
    """
    stated = {v.path: v.voxel_um for v in volumes if v.voxel_um is not None}
    voxel = next(iter(stated.values()), given)
    for path, other in stated.items():
        for reference, whose in ((voxel, "the other channel"), (given, "--voxel")):
            if reference is not None and _differ(other, reference):
                raise UserError(f"{path} has voxels of {_um(other)} µm, {whose} says {_um(reference)}; correct one of them")
    trained = _trained_voxels(run)
    if voxel is not None and trained is not None and not trust:
        thinned = (trained[0] * run.settings["dsp"] / slices.dsp, *trained[1:])
        if _differ(voxel, thinned):
            raise UserError(
                f"the input has voxels of {_um(voxel)} µm (z, y, x), but {run.name} was trained on {_um(thinned)}; resample the "
                "input, use another run, or go on with --ignore-voxels if you know that it fits"
            )
    if voxel is not None:
        _say_anisotropy(run, voxel, slices)
    return voxel


def _say_anisotropy(run: Run, voxel: Triple, slices: Slices) -> None:
    spacing = voxel[0] * slices.dsp / float(slices.usp)
    ratio = spacing / voxel[1]
    if abs(ratio / run.geometry.factor - 1) > FACTOR_TOLERANCE:
        log.warning(
            "slices are %.4g times as far apart as pixels, but this run makes %d planes of each: output voxels are %.4g µm along "
            "z and %.4g in-plane, and are recorded so",
            ratio,
            run.geometry.factor,
            spacing / run.geometry.factor,
            voxel[1],
        )


def _trained_voxels(run: Run) -> Triple | None:
    """Voxel size of the training data, where all files that state one agree."""
    record = run.record or {}
    files = record.get("directions", {}).get(run.directions[0], {}).get("voxel_um", {})
    found = [tuple(size) for size in files.values() if size]
    if not found or any(_differ(size, found[0]) for size in found):
        return None
    z, y, x = found[0]
    return z, y, x


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    return any(abs(a - b) > VOXEL_TOLERANCE * max(a, b) for a, b in zip(one, other, strict=True))


def _um(voxel: Sequence[float]) -> str:
    return " x ".join(f"{size:.6g}" for size in voxel)


def slice_place(slices: Slices, voxel: Triple | None, translation: Triple | None) -> tuple[Triple | None, Triple | None]:
    """Voxel size and position of the encoded slices, for an input at ``translation`` (0 where the file says nothing)."""
    if voxel is None:
        return None, None
    z, y, x = translation or (0.0, 0.0, 0.0)
    size = (voxel[0] * slices.dsp / float(slices.usp), voxel[1], voxel[2])
    return size, (z + voxel[0] * slices.first_plane, y, x)


def isotropic_place(run: Run, voxel: Triple | None, translation: Triple | None) -> tuple[Triple | None, Triple | None]:
    """Voxel size and position of the isotropic planes, from those of the encoded slices (DECISIONS §2)."""
    if voxel is None or translation is None:
        return None, None
    size = voxel[0] / run.geometry.factor
    how = "mean" if run.restores else run.settings["l1how"]
    first = translation[0] - size * run.geometry.plane_of_slice(0, how)
    return (size, voxel[1], voxel[2]), (first, translation[1], translation[2])


def code_place(voxel_um: Any, translation_um: Any) -> tuple[Any, Any]:
    """Voxel size and position of codes, from those of the encoded slices: one per 8x8 pixels, centred on them."""
    if voxel_um is None:
        return None, None
    z, y, x = voxel_um
    centre = (LATENT_STRIDE - 1) / 2
    t = translation_um or (0.0, 0.0, 0.0)
    return (z, LATENT_STRIDE * y, LATENT_STRIDE * x), (t[0], t[1] + centre * y, t[2] + centre * x)
