"""Random numbers that depend on a position and not on the order in which they are drawn.

Positions are (z, y, x); nothing here prefers an axis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]  # float32 in memory; numpy does not type mixed arithmetic that narrowly
Double = NDArray[np.float64]
Integers = NDArray[np.int64]
Axes = tuple[Double, Double, Double]  # coordinates along z, y and x


class Waves:
    """A smooth random field of mean 0 and variance 1: plane waves in random directions.

    Every direction comes with its two cyclic permutations of the axes, so that the field's power is the same along z, y and x.
    """

    def __init__(self, rng: np.random.Generator, shortest: float, longest: float, *, directions: int) -> None:
        direction = rng.normal(size=(directions, 3))
        direction /= np.sqrt(np.square(direction).sum(1, keepdims=True))
        wavelength = shortest * (longest / shortest) ** rng.random((directions, 1))
        vectors = 2 * np.pi * direction / wavelength
        self._vectors = np.concatenate([np.roll(vectors, shift, axis=1) for shift in range(3)])
        self._phases = 2 * np.pi * rng.random(len(self._vectors))
        self._amplitude = float(np.sqrt(2 / len(self._vectors)))

    def __call__(self, axes: Axes) -> Float:
        """Values on the grid of the coordinates, (len(z), len(y), len(x)) float32."""
        z, y, x = axes
        kz, ky, kx = (component[:, None] for component in self._vectors.T)
        in_plane = ((ky * y)[:, :, None] + (kx * x + self._phases[:, None])[:, None, :]).reshape(len(kz), 1, -1)
        cosines, sines = np.cos(in_plane).astype(np.float32), np.sin(in_plane).astype(np.float32)
        along_cos = (self._amplitude * np.cos(kz * z)).astype(np.float32)[:, :, None]
        along_sin = (self._amplitude * np.sin(kz * z)).astype(np.float32)[:, :, None]
        out = np.zeros((len(z), len(y) * len(x)), np.float32)
        for wave in range(len(kz)):  # cos(a + b) = cos a cos b - sin a sin b
            out += along_cos[wave] * cosines[wave]
            out -= along_sin[wave] * sines[wave]
        return out.reshape(len(z), len(y), len(x))


def rotations(draws: Double) -> Double:
    """Uniformly distributed rotations (N, 3, 3) from three uniform numbers each (Shoemake 1992: unit quaternions)."""
    u, a, b = draws[:, 0], 2 * np.pi * draws[:, 1], 2 * np.pi * draws[:, 2]
    s, c = np.sqrt(1 - u), np.sqrt(u)
    x, y, z, w = s * np.sin(a), s * np.cos(a), c * np.sin(b), c * np.cos(b)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def uniform(seed: int, stream: int, lattice: Integers, count: int) -> Double:
    """Numbers in [0, 1) that are a function of (seed, stream, lattice cell): (N, 3) cells -> (N, count).

    The 64-bit finaliser of SplitMix (Steele, Lea, Flood 2014) as hash: a Generator per cell would take most of the time.
    """
    state = np.full(len(lattice), seed % 2**64, np.uint64)
    for value in (np.full(len(lattice), stream), *lattice.T):
        state = _mix(state + np.uint64(0x9E3779B97F4A7C15) ^ value.astype(np.uint64))
    counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(state[:, None] + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
