"""An endless analytic scene of cells and tubules, drawn one region at a time.

Everything that is in the scene hangs on lattices of cubic cells and is a function of (seed, lattice cell) alone. So a voxel's
value depends on its position and on nothing else: not on the region that is asked for, its neighbours or the order of requests.
For the same reason only element-wise arithmetic is used (a matrix product may round differently for other sizes), and nothing
prefers an axis: lattices are cubic, waves come in threes with their components permuted.

Positions and lengths are in voxels, arrays are (Z, Y, X).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Float = NDArray[np.floating]  # float32 in memory; numpy does not type mixed arithmetic that narrowly
Double = NDArray[np.float64]
Integers = NDArray[np.int64]
Axes = tuple[Double, Double, Double]  # coordinates along z, y and x
Triple = tuple[int, int, int]

CELL_PITCH = 40  # one biological cell per lattice cell
BLOCK = CELL_PITCH // 2  # side of the blocks that a region is drawn in
BAND = 3 * BLOCK  # rows that are drawn at once
WARP = 5.0  # largest displacement that bends the cell borders
TUBULE_PITCH = 36  # one node of the tubule network per lattice cell
TUBULE_REACH = 3.0  # tubules act on this distance outside their wall
SEGMENTS = 8  # straight pieces per tubule
_FORWARD = np.array([offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)])
_NEIGHBOURS = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)))


class Scene:
    """The scene of one seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self._warp = [Waves(rng, 70, 160, directions=2) for _ in range(3)]
        self._chromatin = Waves(rng, 5, 11, directions=5)
        self._patches = Waves(rng, 12, 40, directions=3)
        self._haze = Waves(rng, 90, 300, directions=2)

    def draw(self, low: Triple, high: Triple, channel: int | None = None) -> Float:
        """Draw the voxels low <= (z, y, x) < high; positions may be negative.

        Args:
            channel: None for everything, 0 for nuclei and cytoplasm, 1 for tubules and membranes.

        Returns:
            Intensities in [0, 1], float32 of shape high - low. Working memory grows with the planes and columns of the region,
            not with its rows.
        """
        light = np.empty([h - a for a, h in zip(low, high, strict=True)], np.float32)
        for top in range(low[1] // BAND * BAND, high[1], BAND):
            first, last = (low[0], max(top, low[1]), low[2]), (high[0], min(top + BAND, high[1]), high[2])
            band = light[:, first[1] - low[1] : last[1] - low[1]]
            distance = self._tubule_distance(first, last)
            touched = (range(a // BLOCK, (h - 1) // BLOCK + 1) for a, h in zip(first, last, strict=True))
            for block in map(np.array, itertools.product(*touched)):  # of a fixed lattice
                axes = _axes(np.maximum(block * BLOCK, first), np.minimum((block + 1) * BLOCK, last))
                region = tuple(slice(int(a[0]) - start, int(a[-1]) + 1 - start) for a, start in zip(axes, first, strict=True))
                band[region] = np.clip(self._draw_block(distance[region], block, axes, channel), 0, 1)
        return light

    def _draw_block(self, distance: Float, block: Integers, axes: Axes, channel: int | None) -> Float:
        light = 0.055 + 0.022 * np.clip(self._haze(axes), -2, 2)
        patches = np.clip(self._patches(axes), -2, 2)
        beside = 1 - _step((2 - distance) / 2)  # what lies beside a tubule gives way to it
        cells = self._cells_near(block)
        bent = [c + WARP / 2 * np.clip(w(axes), -2, 2) for c, w in zip(_grid(axes, block * BLOCK), self._warp, strict=True)]
        border, owner = _borders(bent, cells.centres)
        if channel != 0:
            wall = _bump((distance + 1.1) / 2.2)  # a thin tubule is all wall, a wide one has a lumen
            light += _step(0.5 - distance / 1.6) * (0.2 + 0.55 * wall) * (1 + 0.08 * patches)
            light += _bump(border / 3.2) * (0.36 + 0.13 * patches) * beside
        if channel != 1:
            light += self._nuclei(bent, cells, axes) * _step((border - 3) / 3) * beside
            light += cells.cytoplasm[owner] * (1 + 0.25 * patches) * _step((border - 1) / 3) * beside
        return light

    # Cells

    def _cells_near(self, block: Integers) -> _Cells:
        """The cells that can own a voxel of the block or be its neighbour, positions relative to the block's first voxel."""
        lattice = block * BLOCK // CELL_PITCH + _NEIGHBOURS
        draws = uniform(self.seed, 1, lattice, 20)
        centres = (lattice + 0.5 + 0.84 * (draws[:, :3] - 0.5)) * CELL_PITCH - block * BLOCK
        side = BLOCK - 1
        nearest = np.square(np.maximum(np.maximum(-WARP - centres, centres - side - WARP), 0)).sum(1)
        farthest = np.square(np.maximum(np.abs(centres + WARP), np.abs(centres - side - WARP))).sum(1)
        keep = nearest <= np.partition(farthest, 1)[1]  # two cells are certainly nearer than the others
        draws, centres = draws[keep], centres[keep]
        return _Cells(
            centres.astype(np.float32),
            semi_axes=8.5 + 5.0 * draws[:, 3:6],
            turns=rotations(draws[:, 6:9]),
            brightness=0.3 + 0.28 * draws[:, 9],
            cytoplasm=(0.015 + 0.06 * draws[:, 10] ** 2).astype(np.float32),
            nucleoli=0.9 * draws[:, 11:20].reshape(-1, 3, 3) - 0.45,
        )

    def _nuclei(self, bent: list[Float], cells: _Cells, axes: Axes) -> Float:
        out = np.zeros_like(bent[0])
        gap = np.maximum(np.maximum(-WARP - cells.centres, cells.centres - (BLOCK - 1) - WARP), 0)
        near = np.flatnonzero(np.square(gap).sum(1) <= (cells.semi_axes.max(1) + 2) ** 2)
        chromatin = np.clip(self._chromatin(axes), -2, 2) if near.size else out
        for i in near:
            np.maximum(out, _nucleus(bent, cells, i, chromatin), out=out)
        return out

    # Tubules

    def _tubule_distance(self, low: Triple, high: Triple) -> Float:
        """Signed distance to the nearest tubule's wall (negative inside), clipped to TUBULE_REACH."""
        distance = np.full([h - a for a, h in zip(low, high, strict=True)], TUBULE_REACH, np.float32)
        start, end, radius_start, radius_end = self._segments(np.array(low), np.array(high))
        reach = np.maximum(radius_start, radius_end) + TUBULE_REACH
        first = np.maximum(np.ceil(np.minimum(start, end) - reach[:, None]).astype(int), low)
        last = np.minimum(np.floor(np.maximum(start, end) + reach[:, None]).astype(int) + 1, high)
        for i in np.flatnonzero((first < last).all(1)):
            region = tuple(slice(a - o, b - o) for a, b, o in zip(first[i], last[i], low, strict=True))
            axes = _axes(first[i], last[i])
            view = distance[region]
            np.minimum(view, _cone_distance(axes, start[i], end[i], radius_start[i], radius_end[i]), out=view)
        return distance

    def _segments(self, low: Integers, high: Integers) -> tuple[Double, Double, Double, Double]:
        """Straight pieces of all tubules that can reach the region: ends (N, 3) and radii (N,), in a fixed order."""
        margin = 2 * TUBULE_PITCH
        first, last = (low - margin) // TUBULE_PITCH, (high + margin) // TUBULE_PITCH + 1
        cells = np.stack(np.meshgrid(*map(np.arange, first, last), indexing="ij"), -1).reshape(-1, 3)
        starts = np.repeat(cells, len(_FORWARD), axis=0)
        ends = starts + np.tile(_FORWARD, (len(cells), 1))
        (p, rp), (q, rq) = self._nodes(starts), self._nodes(ends)
        draws = uniform(self.seed, 3, cells, 4 * len(_FORWARD)).reshape(-1, 4)
        length = np.sqrt(np.square(q - p).sum(1))
        keep = (length < 1.3 * TUBULE_PITCH) & (draws[:, 0] < 0.34)
        p, q, rp, rq, bend = p[keep], q[keep], rp[keep], rq[keep], (draws[keep, 1:] - 0.5) * 0.9 * TUBULE_PITCH
        t = np.linspace(0, 1, SEGMENTS + 1)[None, :, None]
        middle = (0.5 * (p + q) + bend)[:, None]
        curve = (1 - t) ** 2 * p[:, None] + 2 * t * (1 - t) * middle + t**2 * q[:, None]
        radius = rp[:, None] + (rq - rp)[:, None] * t[..., 0]
        ends_of = curve[:, :-1].reshape(-1, 3), curve[:, 1:].reshape(-1, 3)
        return *ends_of, radius[:, :-1].ravel(), radius[:, 1:].ravel()

    def _nodes(self, lattice: Integers) -> tuple[Double, Double]:
        draws = uniform(self.seed, 2, lattice, 4)
        return (lattice + draws[:, :3]) * TUBULE_PITCH, 1.3 * (5.2 / 1.3) ** draws[:, 3]


class _Cells(NamedTuple):
    centres: Float  # (N, 3)
    semi_axes: Double  # (N, 3) of the nucleus
    turns: Double  # (N, 3, 3) its orientation
    brightness: Double  # (N,)
    cytoplasm: Float  # (N,)
    nucleoli: Double  # (N, 3, 3) three positions in units of the semi-axes


def _axes(first: Integers, last: Integers) -> Axes:
    z, y, x = (np.arange(a, b, dtype=np.float64) for a, b in zip(first, last, strict=True))
    return z, y, x


def _grid(axes: Axes, origin: Integers | Double) -> tuple[Float, Float, Float]:
    """Coordinates relative to an origin (small numbers, so float32 is exact), shaped for broadcasting."""
    z, y, x = ((c - o).astype(np.float32) for c, o in zip(axes, origin, strict=True))
    return z[:, None, None], y[:, None], x


def _borders(position: list[Float], centres: Float) -> tuple[Float, NDArray[np.intp]]:
    """Voronoi cells: distance to the second-nearest centre minus that to the nearest (0 on a border), and the nearest's index."""
    squared = sum(np.square(p - c[:, None, None, None]) for p, c in zip(position, centres.T, strict=True))
    first, second = np.sqrt(np.partition(squared, 1, axis=0)[:2])
    return second - first, squared.argmin(0)


def _nucleus(position: list[Float], cells: _Cells, i: np.intp, chromatin: Float) -> Float:
    """A textured ellipsoid with a denser rim and dark nucleoli."""
    offset = [p - c for p, c in zip(position, cells.centres[i], strict=True)]
    frame = (cells.turns[i] / cells.semi_axes[i][:, None]).astype(np.float32)
    u, v, w = (row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in frame)
    radius = np.sqrt(u * u + v * v + w * w)
    depth = (1 - radius) * np.float32(cells.semi_axes[i].min())  # distance below the surface
    body = 0.74 + 0.26 * chromatin + 0.22 * _bump((depth - 1.2) / 2.2)
    for a, b, c in cells.nucleoli[i].astype(np.float32):
        body *= 1 - 0.75 * _bump(np.sqrt(np.square(u - a) + np.square(v - b) + np.square(w - c)) / 0.42)
    return np.float32(cells.brightness[i]) * _step(depth / 1.6 + 0.5) * np.maximum(body, 0.05)


def _cone_distance(axes: Axes, start: Double, end: Double, radius_start: float, radius_end: float) -> Float:
    """Signed distance to a straight piece whose radius grows linearly, rounded at the ends."""
    z, y, x = _grid(axes, start)
    along = (end - start).astype(np.float32)
    squared_length = np.float32(max(float(np.square(along).sum()), 1e-6))
    dot = z * along[0] + y * along[1] + x * along[2]
    t = np.clip(dot / squared_length, 0, 1)
    squared = z * z + y * y + x * x + t * (t * squared_length - 2 * dot)
    return np.sqrt(np.maximum(squared, 0)) - (np.float32(radius_start) + t * np.float32(radius_end - radius_start))


def _step(t: Float) -> Float:
    """Smooth step from 0 (t <= 0) to 1 (t >= 1)."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _bump(t: Float) -> Float:
    """Smooth bump: 1 at t = 0, 0 for abs(t) >= 1."""
    return np.square(np.maximum(1 - t * t, 0))


# Random numbers that depend on a position and not on the order in which they are drawn ---------------------------------


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
    return Rotation.from_quat(np.stack([s * np.sin(a), s * np.cos(a), c * np.sin(b), c * np.cos(b)], axis=-1)).as_matrix()


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
