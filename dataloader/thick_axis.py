"""Which axis of a data set is the thick one: by voxel sizes, where files state them, else by the spectra along its three axes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dataloader.axial_profile import UNLIKE, SideSpectra, estimated_profile, side_spectra
from utils.axes import SEEN_ALONG, as_planes
from volumes.volume import Triple

COARSE = 1.5  # ratio of voxel sizes from which they say by themselves which axis is coarse
BLURRED = 0.5  # transfer of the blurred axis beside the two others
SHARP = 2.0  # times that must the transfers of these be
SIMILAR = 0.5  # and their relative difference below this
APART = 1.0  # relative difference of the transfers along two axes of which one is sampled more coarsely

Spectra = Mapping[str, SideSpectra]


def spectra_along(box: NDArray[np.generic], voxel_um: Triple | None) -> Spectra:
    """Of the three axes of a box (Z, Y, X); empty where voxel sizes (z, y, x) tell, or where it is too small."""
    if voxel_um is not None and max(voxel_um) >= COARSE * min(voxel_um):
        return {}
    found = {axis: side_spectra(as_planes(box, order), 1) for axis, order in SEEN_ALONG.items()}
    return {axis: one for axis, one in found.items() if one is not None}


def thick_axis(voxels_um: Sequence[Triple | None], spectra: Sequence[Spectra]) -> tuple[str, str] | None:
    """The axis along which most files are coarse, where that is not z, and the reason; None: it is z, or nothing says so.

    Args:
        voxels_um: voxel size (z, y, x) of every file that states it.
        spectra: of every file.
    """
    stated = [size for size in voxels_um if size is not None]
    if stated:
        sizes = dict(zip("zyx", np.median(stated, axis=0).tolist(), strict=True))
        *_, middle, coarsest = sorted(sizes, key=lambda axis: sizes[axis])
        if sizes[coarsest] >= COARSE * sizes[middle]:
            lengths = " × ".join(f"{size:.4g}" for size in sizes.values())
            return None if coarsest == "z" else (coarsest, f"voxels are {lengths} µm (z, y, x)")
    profiles = {axis: estimated_profile([one[axis] for one in spectra if axis in one], "pick") for axis in SEEN_ALONG}
    known = {axis: found for axis, found in profiles.items() if found is not None}
    if len(known) < len(profiles):
        return None
    transfer = {axis: float((found.weight * found.transfer).sum()) for axis, found in known.items()}
    unlike = {axis: float((found.weight * found.unlike).sum()) for axis, found in known.items()}  # of the two others
    blurred, second, _ = sorted(transfer, key=lambda axis: transfer[axis])
    if transfer[blurred] < min(BLURRED, transfer[second] / SHARP) and unlike[blurred] < SIMILAR:
        reason = f"it shows {transfer[blurred]:.0%} of the contrast that the other two show"
        return None if blurred == "z" else (blurred, reason)
    alike, *others = sorted(unlike, key=lambda axis: unlike[axis])
    if unlike[alike] < UNLIKE and min(unlike[axis] for axis in others) > APART and not stated:
        reason = "the files state no voxel size, and the two other axes look alike while this one is sampled more coarsely"
        return None if alike == "z" else (alike, reason)
    return None
