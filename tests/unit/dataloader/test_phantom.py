"""The phantom: a scene that depends on position alone, an isotropic truth, and a microscope that does what it says."""

import json
import math
import os
import tracemalloc

import numpy as np
import pytest

from dataloader.phantom.phantom import (
    CAMERA_OFFSET,
    FULL_SCALE,
    ForwardModel,
    PhantomScene,
    observe,
    to_uint16,
    write_phantom_dataset,
)
from dataloader.phantom.scene import rotations, uniform
from utils.errors import UserError
from volumes.open import open_volume

SILENT = {"photons": math.inf, "read_noise": 0.0}
SMALL = {
    "volumes": 2,
    "validation": 1,
    "shape": (16, 20, 24),
    "model": ForwardModel(4),
    "seed": 3,
    "channels": 2,
}


def gradient_energy(volume):
    return np.array([np.square(np.diff(volume, axis=axis)).mean() for axis in range(3)])


@pytest.fixture(scope="module")
def truth():
    """One specimen of 128³ voxels."""
    return drawn(PhantomScene(7, (128, 128, 128)), 0, 128)


class Ramp:
    """Stands for a scene: plane z has the intensity z / 64 everywhere, also beyond the volume."""

    seed, shape = 0, (64, 5, 6)

    def planes(self, z0, z1, *, channel, margin):
        for z in range(z0, z1):
            yield np.full((5 + 2 * margin, 6 + 2 * margin), z / 64)


def drawn(scene, z0, z1, **options):
    return np.stack(list(scene.planes(z0, z1, **options)))


def recorded(scene, model):
    return np.stack(list(observe(scene, model)))


@pytest.fixture
def planes_at_once(monkeypatch):
    return lambda number: monkeypatch.setattr("dataloader.phantom.phantom._SLABS", (number,))


# The scene


def test_same_seed_same_scene_other_seed_other_scene():
    first, again, other = (drawn(PhantomScene(seed, (16, 40, 40)), 0, 16) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 0.02


def test_values_do_not_depend_on_slabs_or_on_the_size_of_the_volume(planes_at_once):
    scene = PhantomScene(5, (45, 62, 50))
    whole = drawn(scene, 0, 45)
    for slab in (1, 7, 20):
        planes_at_once(slab)
        assert np.array_equal(drawn(scene, 0, 45), whole)
    assert np.array_equal(drawn(scene, 13, 22), whole[13:22])
    larger = drawn(PhantomScene(5, (60, 75, 83)), 0, 60)
    assert np.array_equal(larger[:45, :62, :50], whole)


def test_truth_has_the_promised_type_and_range(truth):
    assert truth.dtype == np.float32
    assert truth.shape == (128, 128, 128)
    assert truth.min() >= 0
    assert 0.8 < truth.max() <= 1
    assert 0.08 < truth.mean() < 0.3, "mostly dark, as a fluorescence image is"
    assert (truth == 1).mean() < 1e-3, "almost nothing is saturated"


def test_truth_has_no_preferred_axis(truth):
    energy = gradient_energy(truth) + gradient_energy(drawn(PhantomScene(8, (128, 128, 128)), 0, 128))
    np.testing.assert_allclose(energy / energy.mean(), 1, atol=0.1)


def test_channels_show_different_structures_of_one_scene(truth):
    scene = PhantomScene(7, (24, 128, 128))
    nuclei, network = (drawn(scene, 0, 24, channel=channel) for channel in range(2))
    assert np.corrcoef(nuclei.ravel(), network.ravel())[0, 1] < 0.1
    both = truth[:24]
    assert (np.maximum(nuclei, network) <= both + 1e-6).all()
    bright = both > 0.3
    assert (np.maximum(nuclei, network)[bright] > 0.6 * both[bright]).all(), "what is bright is bright in one of the channels"


def test_hash_is_uniform_and_a_function_of_the_cell():
    cells = np.stack(np.meshgrid(*[np.arange(-8, 8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    draws = uniform(1, 1, cells, 3)
    assert np.array_equal(draws[[17, 4000]], uniform(1, 1, cells[[17, 4000]], 3))
    counts = np.histogram(draws, bins=16, range=(0, 1))[0]
    assert np.abs(counts - draws.size / 16).max() < 5 * np.sqrt(draws.size / 16)
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 5 / np.sqrt(len(cells))
    assert np.abs(draws - uniform(1, 2, cells, 3)).mean() > 0.3, "streams differ"


def test_rotations_are_rotations_without_preferred_direction():
    turns = rotations(np.random.default_rng(0).random((4000, 3)))
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    np.testing.assert_allclose(np.square(turns).mean(0), 1 / 3, atol=0.02)


# The microscope


def test_averaging_is_centred_between_planes_and_picking_on_one():
    average = recorded(Ramp(), ForwardModel(8, "average", (0, 0, 0), **SILENT))
    pick = recorded(Ramp(), ForwardModel(8, "pick", (0, 0, 0), **SILENT))
    slices = np.arange(8)
    assert average.shape == pick.shape == (8, 5, 6)
    np.testing.assert_array_equal(average[:, 2, 3], np.rint(500 + 40000 * (8 * slices + 3.5) / 64))
    np.testing.assert_array_equal(pick[:, 2, 3], np.rint(500 + 40000 * (8 * slices + 4) / 64))


@pytest.mark.parametrize("factor", [1, 3, 8])
@pytest.mark.parametrize("sampling", ["average", "pick"])
def test_blur_keeps_the_centre_of_the_slices(factor, sampling):
    first, weights = ForwardModel(factor, sampling, (2.5, 0, 0)).axial_weights()
    planes = first + np.arange(len(weights))
    assert weights.sum() == pytest.approx(1)
    assert (weights * planes).sum() == pytest.approx(factor // 2 if sampling == "pick" else (factor - 1) / 2)
    variance = (weights * np.square(planes - (weights * planes).sum())).sum()
    assert variance == pytest.approx(2.5**2 + (factor**2 - 1) / 12 * (sampling == "average"), rel=0.01)


def test_slices_are_the_blurred_truth(truth):
    """Against the textbook order: blur the whole volume, then average."""
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(truth.astype(np.float64), (1.5, 0.7, 0.9), truncate=5)
    expected = to_uint16(blurred.reshape(16, 8, 128, 128).mean(1)).astype(int)
    got = recorded(PhantomScene(7, (128, 128, 128)), ForwardModel(8, psf_sigma=(1.5, 0.7, 0.9), **SILENT)).astype(int)
    inside = np.s_[2:-2, 6:-6, 6:-6]  # the textbook does not know what is beyond the volume
    assert np.abs(got - expected)[inside].max() <= 12  # of 40000: kernels end at 4 and 5 standard deviations
    energy = gradient_energy(got) / np.square([8, 1, 1])  # per voxel of the truth
    assert energy[0] < 0.3 * energy[1:].min(), "slices are blurred along z"


def test_slices_do_not_depend_on_slabs(planes_at_once):
    scene, model = PhantomScene(2, (24, 30, 30)), ForwardModel(8)
    planes_at_once(5)
    first = recorded(scene, model)
    assert first.dtype == np.uint16
    planes_at_once(24)
    assert np.array_equal(first, recorded(scene, model))
    other = recorded(scene, ForwardModel(8, noise_seed=1))
    assert 0.5 < (first != other).mean()


def test_noise_has_the_variance_of_counted_photons():
    model, rng = ForwardModel(photons=100, read_noise=3), np.random.default_rng(0)
    for light in (0.1, 0.5, 0.9):
        electrons = (model.record(np.full((400, 400), light), rng) - float(CAMERA_OFFSET)) / FULL_SCALE * 100
        assert electrons.mean() == pytest.approx(100 * light, abs=0.1)
        assert electrons.var() == pytest.approx(100 * light + 9, rel=0.03)


def test_grey_values_by_hand():
    assert to_uint16(np.array([-1, 0, 0.5, 1, 1.7])).tolist() == [0, 500, 20500, 40500, 65535]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhantomScene(0, (8, 0, 8)), "shape"),
        (lambda: write_phantom_dataset("never", voxel_um=0), "voxel_um=0"),
        (lambda: ForwardModel(0), "factor=0"),
        (lambda: write_phantom_dataset("never", shape=(20, 8, 8)), "20 planes .* try 16"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_memory_does_not_grow_with_the_volume(planes_at_once):
    planes_at_once(20)

    def peak(depth):
        tracemalloc.start()
        for _ in observe(PhantomScene(1, (depth, 40, 40)), ForwardModel(8)):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(8)  # what is allocated once
    assert peak(160) < 1.1 * peak(40)


# The data set


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantom"
    written = write_phantom_dataset(root, **SMALL)
    return root, written


def test_files_and_contents_of_the_data_set(dataset):
    root, written = dataset
    expected = {f"truth/x3d{c}/phantom_00{n}.tif" for c in range(2) for n in range(3)}
    expected |= {f"{'train' if n < 2 else 'val'}/x3d{c}/phantom_00{n}.tif" for c in range(2) for n in range(3)}
    assert {path.relative_to(root).as_posix() for path in written} == expected
    assert {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} == expected | {"phantom.json"}
    settings = json.loads((root / "phantom.json").read_text())
    assert (settings["seed"], settings["model"]["factor"]) == (3, 4)
    slices, whole = (open_volume(root / split / "x3d1/phantom_001.tif") for split in ("train", "truth"))
    assert (slices.shape, whole.shape) == ((4, 20, 24), (16, 20, 24))
    assert slices.dtype == whole.dtype == np.uint16
    assert slices.voxel_um == pytest.approx((1.0, 0.25, 0.25))
    assert whole.voxel_um == pytest.approx((0.25, 0.25, 0.25))
    pixels = whole[:, :, :].astype(float)
    assert (pixels.min(), pixels.max()) >= (CAMERA_OFFSET, 10_000)
    averaged = pixels.reshape(4, 4, 20, 24).mean(1)
    assert np.corrcoef(averaged.ravel(), slices[:, :, :].ravel())[0, 1] > 0.7, "slices belong to the truth of the same name"
    others = [open_volume(root / "truth/x3d1" / f"phantom_00{n}.tif")[:, :, :] for n in (0, 2)]
    assert all(np.abs(pixels - other).mean() > 500 for other in others), "every volume is another specimen"


def test_a_second_call_does_nothing_and_a_missing_file_is_made_again(dataset):
    root, written = dataset
    assert write_phantom_dataset(root, **SMALL) == []
    lost = root / "val/x3d0/phantom_002.tif"
    before = lost.read_bytes()
    os.remove(lost)
    assert write_phantom_dataset(root, **SMALL) == [lost]
    assert open_volume(lost)[:, :, :].tobytes() in before
    with pytest.raises(UserError, match="other settings"):
        write_phantom_dataset(root, **SMALL | {"seed": 4})
    assert len(written) == 12


def test_interrupted_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def fails(self, plane):
        raise KeyboardInterrupt

    options = {"volumes": 1, "validation": 0, "shape": (8, 8, 8)}
    with monkeypatch.context() as patch:
        patch.setattr(ForwardModel, "blur_in_plane", fails)
        with pytest.raises(KeyboardInterrupt):
            write_phantom_dataset(tmp_path, **options)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["phantom.json"]
    assert len(write_phantom_dataset(tmp_path, **options)) == 2


def test_other_data_are_not_mixed_with_phantoms(tmp_path):
    (tmp_path / "train/x3d0").mkdir(parents=True)
    (tmp_path / "train/x3d0/mine.tif").touch()
    with pytest.raises(UserError, match="no phantoms"):
        write_phantom_dataset(tmp_path)


@pytest.mark.parametrize("wrong", [{"volumes": 0, "validation": 0}, {"shape": (20, 8, 8)}, {"seed": -1}])
def test_nothing_is_written_for_wrong_settings(tmp_path, wrong):
    with pytest.raises(UserError):
        write_phantom_dataset(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
