"""A procedural fluorescence volume whose isotropic truth is known, and the microscope that records it.

    scene = PhantomScene(seed=1, shape=(128, 256, 256))
    truth = np.stack(list(scene.planes(0, 128)))         # (128, 256, 256) float32 in [0, 1]
    slices = list(observe(scene, ForwardModel(factor=8)))  # 16 slices, uint16

Cells with textured nuclei lie between thin membranes, branching tubules of varying calibre run through them, and a smooth
background stands for defocused light. Volumes are made slab by slab, so they can be larger than memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from dataloader.phantom.scene import Scene
from utils.errors import UserError
from utils.files import write_text
from utils.units import SIZES, are_sizes
from writing.write import write_tiff

CAMERA_OFFSET = 500  # grey value of no light
FULL_SCALE = 40_000  # grey values between intensity 0 and 1; what is above is headroom for noise
_SLAB_VOXELS = 48_000_000  # of a slab that is drawn at once, at most 192 MB
_SLABS = (60, 40, 20, 10, 5, 4, 2, 1)  # planes that go well with the blocks of the scene
_VERSION = 1  # of the scene and the forward model; raise it when the same settings give other voxels

Slices = Iterator[NDArray[np.uint16]]


@dataclass(frozen=True)
class PhantomScene:
    """An isotropic scene.

    Attributes:
        seed: a non-negative integer; every seed is another specimen.
        shape: voxels (Z, Y, X). A larger shape of the same seed shows the same scene and more of it.
    """

    seed: int
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UserError(f"shape={self.shape} must be three positive numbers (Z, Y, X)")

    @cached_property
    def _scene(self) -> Scene:
        return Scene(self.seed)

    def planes(self, z0: int, z1: int, *, channel: int | None = None, margin: int = 0) -> Iterator[NDArray[np.float32]]:
        """Planes z0 … z1 - 1 of the truth one by one, drawn in slabs of about 200 MB that have no influence on the values.

        The scene goes on beyond the volume: planes may be negative, and ``margin`` more voxels are drawn at the four sides.

        Args:
            channel: None for everything in one channel, 0 for nuclei and cytoplasm, 1 for tubules and membranes.

        Yields:
            (Y + 2 margin, X + 2 margin) float32 in [0, 1].
        """
        _, height, width = self.shape
        area = (height + 2 * margin) * (width + 2 * margin)
        slab = next((planes for planes in _SLABS if planes * area <= _SLAB_VOXELS), 1)
        while z0 < z1:
            stop = min(z1, (z0 // slab + 1) * slab)
            yield from self._scene.draw((z0, -margin, -margin), (stop, height + margin, width + margin), channel)
            z0 = stop


@dataclass(frozen=True)
class ForwardModel:
    """How the microscope turns the truth into slices.

    Blur with a Gaussian point-spread function, one slice per `factor` planes, Poisson and Gaussian noise, 16 bits.

    Attributes:
        factor: planes of the truth per slice.
        sampling: "average" sees the mean of its planes (centre factor*k + (factor - 1)/2), "pick" plane factor*k + factor//2.
        psf_sigma: standard deviation of the point-spread function along (z, y, x), in voxels of the truth.
        photons: photo-electrons at full scale, sets the Poisson noise; inf for none.
        read_noise: standard deviation of the camera's Gaussian noise in electrons.
        noise_seed: another one gives another exposure of the same specimen.
    """

    factor: int = 8
    sampling: str = "average"
    psf_sigma: tuple[float, float, float] = (2.5, 0.7, 0.7)
    photons: float = 400.0
    read_noise: float = 2.0
    noise_seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"factor={self.factor} must be at least 1")

    def axial_weights(self) -> tuple[int, NDArray[np.float64]]:
        """``first`` and weights: slice k sees plane ``factor*k + first + j`` with weight j; the weights add up to 1.

        They are the sampling convolved with the axial point-spread function.
        """
        reach = math.ceil(4 * self.psf_sigma[0])
        first, seen = (self.factor // 2, 1) if self.sampling == "pick" else (0, self.factor)
        return first - reach, gaussian_filter(np.pad(np.full(seen, 1 / seen), reach), self.psf_sigma[0], mode="constant")

    @property
    def margin(self) -> int:
        """Voxels that are needed at the four sides of a plane to blur it."""
        return math.ceil(4 * max(self.psf_sigma[1:]))

    def blur_in_plane(self, plane: NDArray) -> NDArray[np.float64]:
        """Convolve with the lateral point-spread function and cut the margin: (Y + 2 margin, X + 2 margin) -> (Y, X)."""
        blurred = gaussian_filter(plane, self.psf_sigma[1:], output=np.float64)
        return blurred[self.margin : plane.shape[0] - self.margin, self.margin : plane.shape[1] - self.margin]

    def record(self, light: NDArray, rng: np.random.Generator) -> NDArray[np.uint16]:
        """What the camera makes of an image with intensities in [0, 1]: noisy grey values, uint16."""
        light = np.asarray(light, np.float64)
        if math.isfinite(self.photons):
            electrons = rng.poisson(light * self.photons) + rng.normal(0, self.read_noise, light.shape)
            light = electrons / self.photons
        return to_uint16(light)


def to_uint16(light: NDArray) -> NDArray[np.uint16]:
    """Grey values of intensities, the same for truth and slices: ``CAMERA_OFFSET + FULL_SCALE * light``, rounded and clipped."""
    return np.clip(np.rint(CAMERA_OFFSET + FULL_SCALE * np.asarray(light, np.float64)), 0, 65535).astype(np.uint16)


def observe(scene: PhantomScene, model: ForwardModel, channel: int | None = None) -> Slices:
    """Record the slices (Y, X) uint16 of a scene, whose number of planes is a multiple of the factor, in order.

    The scene continues beyond the volume, so the first and the last slice are blurred like all others. Memory holds one slab
    and the few slices that its planes contribute to. ``channel`` is that of `PhantomScene.planes`.
    """
    factor, count = model.factor, scene.shape[0] // model.factor
    first, weights = model.axial_weights()
    exposed: dict[int, NDArray[np.float64]] = {}  # slices that are not complete yet
    last = (count - 1) * factor + first + len(weights)
    for z, plane in enumerate(scene.planes(first, last, channel=channel, margin=model.margin), first):
        blurred = model.blur_in_plane(plane)
        earliest = max(0, -((first + len(weights) - 1 - z) // factor))
        for k in range(earliest, min((z - first) // factor + 1, count)):
            j = z - k * factor - first
            exposed[k] = exposed.get(k, 0) + weights[j] * blurred
            if j == len(weights) - 1:
                rng = np.random.default_rng([scene.seed, model.noise_seed, 0 if channel is None else channel + 1, k])
                yield model.record(exposed.pop(k), rng)


def write_phantom_dataset(
    root: Path | str,
    *,
    volumes: int = 4,
    validation: int = 1,
    shape: tuple[int, int, int] = (128, 128, 128),
    seed: int = 0,
    channels: int = 1,
    voxel_um: float = 0.25,
    model: ForwardModel = ForwardModel(),
) -> list[Path]:
    """Write phantoms as a data set: what was recorded for training, the truth for evaluation.

    ``{root}/train/x3d0/phantom_000.tif`` …, ``{root}/val/x3d0/…`` hold the slices, ``{root}/truth/x3d0/…`` the isotropic truth
    of each under the same name; the second channel is in ``x3d1``. All are uint16 with voxel sizes and share one scale of grey
    values. ``{root}/phantom.json`` holds the settings. Files that are there already are kept, so that a second call does nothing
    and an interrupted one is continued.

    Args:
        root: folder of the data set.
        volumes, validation: how many there are for training and for validation.
        shape: of the truth, (Z, Y, X); Z is a multiple of the microscope's factor.
        seed: a non-negative integer.
        channels: 1, or 2 for nuclei (x3d0) and tubules with membranes (x3d1) of the same scenes.
        voxel_um: side of the truth's voxels in µm.
        model: the microscope.

    Returns:
        The files written now.

    Raises:
        UserError: settings that make no volume; a folder that holds other data.
    """
    root, factor = Path(root), model.factor
    if volumes < 0 or validation < 0 or volumes + validation < 1:
        raise UserError(f"volumes={volumes} and validation={validation} must make at least one")
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative")
    if not are_sizes([voxel_um]):
        raise UserError(f"voxel_um={voxel_um} must be {SIZES}")
    if shape[0] % factor:
        raise UserError(f"{shape[0]} planes are no multiple of factor={factor}; try {max(1, round(shape[0] / factor)) * factor}")
    jobs: list[tuple[Path, Slices, int]] = []  # file, its planes (drawn when they are asked for) and their number
    for number in range(volumes + validation):
        own_seed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0]  # neighbouring data sets share none
        scene = PhantomScene(int(own_seed), shape)
        split, name = "train" if number < volumes else "val", f"phantom_{number:03d}.tif"
        for k in range(channels):
            channel = k if channels > 1 else None
            jobs.append((root / split / f"x3d{k}" / name, observe(scene, model, channel), shape[0] // factor))
            truth = map(to_uint16, scene.planes(0, shape[0], channel=channel))
            jobs.append((root / "truth" / f"x3d{k}" / name, truth, shape[0]))
    settings = {"version": _VERSION, "volumes": volumes, "validation": validation, "shape": shape, "seed": seed}
    text = json.dumps({**settings, "channels": channels, "voxel_um": voxel_um, "model": asdict(model)}, indent=2)
    note = root / "phantom.json"
    if not note.exists():
        if any(root.glob("*/*/*")):
            raise UserError(f"{root}: holds data that are no phantoms; write to another folder")
        root.mkdir(parents=True, exist_ok=True)
        write_text(note, text)
    elif json.loads(note.read_text()) != json.loads(text):
        raise UserError(f"{note}: this folder holds phantoms of other settings; remove the folder or write to another one")
    missing = [job for job in jobs if not job[0].exists()]
    with tqdm(total=sum(depth for *_, depth in missing), unit="plane", desc="phantom", disable=not missing) as bar:

        def counted(planes: Slices) -> Slices:
            for plane in planes:
                yield plane
                bar.update()

        for path, planes, depth in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            voxel = voxel_um * (shape[0] // depth), voxel_um, voxel_um
            write_tiff(path, counted(planes), shape=(depth, *shape[1:]), dtype=np.uint16, voxel_um=voxel)
    return [job[0] for job in missing]
