"""What is said of an output of ours: where its planes lie, and how far tiles can be seen in it (torch-free)."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from utils.boxes import middle
from utils.geometry import LATENT_STRIDE
from volumes.volume import Volume

_PLANES, _WINDOW = 8, 2048  # planes in which seams are measured, and voxels along each side of them


def seam(volume: Volume, attributes: Mapping[str, Any]) -> dict[str, float]:
    """How much stronger grey values change across tile borders than elsewhere in-plane, in the middle of an output.

    Args:
        volume: the output, finished or not.
        attributes: what is recorded about it: the lattice, and the region where it is a part.

    Returns:
        For ``encoding`` and ``decoding`` tiles the mean absolute difference of neighbouring rows (and columns) across borders,
        over that across the other rows (columns) at multiples of 8, where the grid of the codes may show as well; 1 is seamless.
        Nothing for tiles that have no border here.
    """
    origin = [start for start, _ in attributes.get("region", [[0, 0]] * 3)][1:]
    windows = [middle(size, _WINDOW) for size in volume.shape[1:]]
    changes: list[Any] = [0.0, 0.0]
    for z in np.unique(np.linspace(0, volume.shape[0] - 1, _PLANES).astype(int)):
        plane = volume[int(z) : int(z) + 1, slice(*windows[0]), slice(*windows[1])][0].astype(np.float32)
        for axis in (0, 1):
            changes[axis] = changes[axis] + np.abs(np.diff(plane, axis=axis)).mean(axis=1 - axis)
    lattice = attributes.get("lattice", {})
    encoding, decoding = lattice.get("encoding"), lattice.get("decoding", {})
    sides = {}
    if encoding is not None:  # older ones have one number for rows and columns
        sides["encoding"] = encoding.get("stride", LATENT_STRIDE) * np.broadcast_to(encoding["core"], 2)
    if "core" in decoding:
        sides["decoding"] = (LATENT_STRIDE if "halo" in decoding else 1) * np.array(decoding["core"][1:])
    places = [np.arange(len(c)) + start + w[0] + 1 for c, start, w in zip(changes, origin, windows, strict=True)]
    change, place = np.concatenate(changes), np.concatenate(places)
    on_grid, found = place % LATENT_STRIDE == 0, {}
    for name, side in sides.items():
        at_border = np.concatenate([along % core == 0 for along, core in zip(places, side, strict=True)])
        border, other = change[on_grid & at_border], change[on_grid & ~at_border]
        if border.size and other.size and other.mean() > 0:
            found[name] = float(border.mean() / other.mean())
    return found


def said_of_seams(seams: Mapping[str, float]) -> Iterator[str]:
    """One line for each kind of tiles."""
    for name, value in seams.items():
        yield f"seams of {name} tiles: grey values change {value:.3g} times as much across their borders as elsewhere"


def said_of_place(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Where the planes of an output lie among those of its input; nothing for outputs of versions that did not record it."""
    if "place" in attributes:
        (z, y, x), (step, *_) = attributes["place"]["origin"], attributes["place"]["step"]
        yield f"plane k lies at plane {z:g} + k·{step:g} of the input, row and column 0 at {y:g}, {x:g}"
