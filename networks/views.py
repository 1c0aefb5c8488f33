"""Every change of layout between volumes, slices, projections and planes; utils/axes.py has those outside the networks.

A volume is (B, C, X, Y, Z) with Z, the coarse axis, last; images are (N, C, height, width). Everything holds for any batch size.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

PROJECTIONS = ("max", "min", "mean", "dsp")

X_AXIS, Y_AXIS, Z_AXIS = 2, 3, 4


class _Plane(NamedTuple):
    """A family of parallel planes: the axis they are stacked along, and how they become images."""

    stacked: int
    layout: str


SIX_PLANES = (
    _Plane(X_AXIS, "b c x y z -> (b x) c z y"),
    _Plane(X_AXIS, "b c x y z -> (b x) c y z"),
    _Plane(Y_AXIS, "b c x y z -> (b y) c z x"),
    _Plane(Y_AXIS, "b c x y z -> (b y) c x z"),
    _Plane(Z_AXIS, "b c x y z -> (b z) c x y"),
    _Plane(Z_AXIS, "b c x y z -> (b z) c y x"),
)


def to_slices(volume: Tensor) -> Tensor:
    """Slices across Z, (B, C, X, Y, Z) -> (B·Z, C, X, Y); the slices of one volume stay together."""
    return rearrange(volume, "b c x y z -> (b z) c x y")


def to_volume(slices: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`to_slices`, (batch·Z, C, X, Y) -> (batch, C, X, Y, Z)."""
    return rearrange(slices, "(b z) c x y -> b c x y z", b=batch)


def swap_in_plane(volume: Tensor) -> Tensor:
    """The in-plane transpose, (B, C, X, Y, Z) -> (B, C, Y, X, Z)."""
    return rearrange(volume, "b c x y z -> b c y x z")


def xz_planes(volume: Tensor) -> Tensor:
    """All planes across Y seen with Z upright, (B, C, X, Y, Z) -> (B·Y, C, Z, X)."""
    return rearrange(volume, SIX_PLANES[2].layout)


def yz_planes(volume: Tensor) -> Tensor:
    """All planes across X seen with Z upright, (B, C, X, Y, Z) -> (B·X, C, Z, Y)."""
    return rearrange(volume, SIX_PLANES[0].layout)


def xz_volume(planes: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`xz_planes`, (batch·Y, C, Z, X) -> (batch, C, X, Y, Z)."""
    return rearrange(planes, "(b y) c z x -> b c x y z", b=batch)


def yz_volume(planes: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`yz_planes`, (batch·X, C, Z, Y) -> (batch, C, X, Y, Z)."""
    return rearrange(planes, "(b x) c z y -> b c x y z", b=batch)


def turned_volume(rows: Tensor, batch: int) -> Tensor:
    """Slices whose rows became sections, as a volume that is coarse along X: (batch·Z, C, n, Y) -> (batch, C, Z, Y, n)."""
    return rearrange(rows, "(b z) c n y -> b c z y n", b=batch)


def upright_volume(turned: Tensor) -> Tensor:
    """A volume that was turned so that X lay along Z, turned back: (B, C, Z, Y, X) -> (B, C, X, Y, Z)."""
    return rearrange(turned, "b c z y x -> b c x y z")


def fold_pixels(volume: Tensor, side: int) -> Tensor:
    """Squares of an XY plane as channels, (B, C, X·side, Y·side, Z) -> (B, C·side², X, Y, Z)."""
    return rearrange(volume, "b c (x p) (y q) z -> b (c p q) x y z", p=side, q=side)


def unfold_pixels(volume: Tensor, side: int) -> Tensor:
    """The inverse of :func:`fold_pixels`, (B, C·side², X, Y, Z) -> (B, C, X·side, Y·side, Z)."""
    return rearrange(volume, "b (c p q) x y z -> b c (x p) (y q) z", p=side, q=side)


def spread_pixels(features: Tensor, rows: int, columns: int) -> Tensor:
    """Sub-pixel channels side by side (Shi et al. 2016), (N, c·rows·columns, H, W) -> (N, c, H·rows, W·columns)."""
    made = rearrange(features, "n (c r q) h w -> n (h r) (w q) c", r=rows, q=columns)
    return made.movedim(-1, 1)  # channels last in memory, as the next convolution wants them


def six_views(volume: Tensor, planes: int = 0) -> list[Tensor]:
    """The planes of a volume along each axis, and the same with their in-plane axes exchanged (the papers' "flipped" views).

    Args:
        volume: (B, C, X, Y, Z).
        planes: how many planes of every volume each view keeps, drawn without repetition from torch's global generator,
            anew for each view; 0, or at least as many as there are, keeps all.

    Returns:
        Six batches of images: (B·X, C, Z, Y), (B·X, C, Y, Z), (B·Y, C, Z, X), (B·Y, C, X, Z), (B·Z, C, X, Y), (B·Z, C, Y, X).
    """
    return [_view(volume, plane, planes) for plane in SIX_PLANES]


def isoref_views(volume: Tensor, group: int, planes: int = 0) -> list[Tensor]:
    """One of IsoREF's three groups of views, to be weighted equally.

    Args:
        volume: (B, C, X, Y, Z).
        group: 0, the planes stacked along X in both layouts, each also mirrored along Z; 1, the same along Y; 2, the XY planes in
            both layouts (nothing is coarse in them, so nothing is mirrored).
        planes: as in :func:`six_views`.

    Returns:
        Four batches of images for groups 0 and 1, two for group 2.
    """
    z_first, z_last = (_view(volume, plane, planes) for plane in SIX_PLANES[2 * group : 2 * group + 2])
    if group == 2:
        return [z_first, z_last]
    return [z_first, z_first.flip(2), z_last, z_last.flip(3)]


def project(volume: Tensor, factor: int, skip: int, how: str) -> Tensor:
    """Slabs of ``factor * skip`` planes projected along Z, as a microscope of coarse axial resolution would see them.

    Args:
        volume: (B, C, X, Y, Z).
        factor: isotropic planes per encoded slice.
        skip: encoded slices per slab.
        how: ``max``, ``min`` or ``mean`` of the slab (an incomplete last slab is dropped); ``dsp`` picks the middle plane of
            the slab's first encoded slice, ``factor // 2``, and then every ``factor * skip``-th.

    Returns:
        (B, C, X, Y, slabs).

    Raises:
        ValueError: ``how`` is unknown, or the volume is thinner than one slab.
    """
    if how == "dsp":
        return volume[..., factor // 2 :: factor * skip]
    return _reduce_z(volume, factor * skip, how)


def project_slices(slices: Tensor, skip: int, how: str, slabtarget: str = "pooled") -> Tensor:
    """What the projection of the generated volume is compared with: the encoded slices, ``skip`` of them per slab.

    Args:
        slices: encoded slices as a volume (B, C, X, Y, n), n a multiple of ``skip``.
        skip: encoded slices per slab.
        how: as in :func:`project`.
        slabtarget: ``pooled`` projects the slices of a slab like the planes; ``slice`` takes the slab's first slice.

    Returns:
        (B, C, X, Y, n / skip).

    Raises:
        ValueError: an unknown ``how``, or ``skip`` does not divide n.
    """
    if slices.shape[-1] % skip:
        raise ValueError(f"skip={skip} must divide the {slices.shape[-1]} encoded slices")
    if slabtarget == "slice" or how == "dsp":
        return slices[..., ::skip]
    return _reduce_z(slices, skip, how)


def resample_z(volume: Tensor, depth: int) -> Tensor:
    """Interpolates a volume linearly along Z onto ``depth`` planes (corners not aligned), (B, C, X, Y, Z) -> (B, C, X, Y, depth).

    With X and Y unchanged this equals trilinear interpolation, at a quarter of its cost.
    """
    if volume.shape[-1] == depth:
        return volume
    resampled = functional.interpolate(volume.flatten(1, 3), size=depth, mode="linear", align_corners=False)
    return resampled.unflatten(1, volume.shape[1:4])


def between_slices(volume: Tensor, places: Tensor, first: int = 0) -> Tensor:
    """Planes at fractional slices, linearly between their neighbours.

    Args:
        volume: the slices ``first`` and on, (B, C, X, Y, n).
        places: (P,) float64, ascending, from ``first`` to ``first + n - 1``.
        first: number of the first slice, so that a part of a volume gives the bits that the whole gives.

    Returns:
        (B, C, X, Y, P).
    """
    low = places.floor()
    weight = (places - low).to(volume, non_blocking=True)
    low = (low.long() - first).to(volume.device, non_blocking=True)
    return torch.lerp(volume[..., low], volume[..., (low + 1).clamp(max=volume.shape[-1] - 1)], weight)


def pool_z(volume: Tensor, n: int) -> Tensor:
    """Maximum over every ``n`` successive planes, (B, C, X, Y, Z) -> (B, C, X, Y, Z // n); a remainder is dropped.

    Neighbouring slices often share a code, so ties are common; the first of equal planes receives the gradient.
    """
    return volume if n == 1 else _reduce_z(volume, n, "max")


def gather_voxels(volume: Tensor, ids: Tensor) -> Tensor:
    """Feature vectors at given positions.

    Args:
        volume: (B, C, X, Y, Z).
        ids: (P,) int64, positions as ``(x·Y + y)·Z + z``, the same ones for every volume of the batch.

    Returns:
        (B, P, C).
    """
    x, y, z = torch.unravel_index(ids, volume.shape[2:])
    return rearrange(volume[:, :, x, y, z], "b c p -> b p c")


def _view(volume: Tensor, plane: _Plane, planes: int) -> Tensor:
    count = volume.shape[plane.stacked]
    if 0 < planes < count:
        drawn = torch.randperm(count)[:planes]  # on the CPU: the same planes on every device
        volume = volume.index_select(plane.stacked, drawn.to(volume.device, non_blocking=True))
    return rearrange(volume, plane.layout)


def _reduce_z(volume: Tensor, depth: int, how: str) -> Tensor:
    blocks = volume.shape[-1] // depth
    if not blocks:
        raise ValueError(f"a slab of {depth} planes needs at least as many; the volume has {volume.shape[-1]}")
    slabs = volume[..., : blocks * depth].unflatten(-1, (blocks, depth))
    if how == "max":
        return slabs.max(-1).values
    if how == "min":
        return slabs.min(-1).values
    if how == "mean":
        return slabs.mean(-1)
    raise ValueError(f"how={how!r} must be one of {', '.join(PROJECTIONS)}")
