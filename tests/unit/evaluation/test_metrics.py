"""Block sums, similarity, baselines and projections against hand-computed values and the libraries' own answers."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.ndimage import correlate1d
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from evaluation import metrics
from evaluation.metrics import DataRange, Moments
from evaluation.sections import HALO, Candidate, Degraded, Sections, interpolation_matrix
from evaluation.sweep import Consistency, blocks, projections
from taming.lpips import PerceptualLoss
from utils.errors import UserError


def volume(shape=(24, 20, 22), seed=0, scale=40.0):
    return (128 + scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def whole(array):
    return tuple(slice(0, size) for size in array.shape)


def swept(array, truth, voxels):
    moments = Moments()
    for core, longer in blocks(whole(array), voxels):
        size = tuple(part.stop - part.start for part in core)
        moments.add(array[longer], size, None if truth is None else truth[core])
    return moments


@pytest.mark.parametrize("voxels", [50, 700, 10**6])
def test_sums_over_any_blocks_equal_the_whole_volume(voxels):
    truth, other = volume(), volume(seed=1, scale=10)
    moments = swept(other, truth, voxels)
    fidelity = moments.fidelity(swept(truth, None, voxels), 255)
    assert moments.voxels == truth.size
    assert fidelity["psnr_db"] == pytest.approx(peak_signal_noise_ratio(truth, other, data_range=255), abs=1e-5)
    assert fidelity["rmse"] ** 2 == pytest.approx(mean_squared_error(truth, other), rel=1e-6)
    assert fidelity["nrmse"] == pytest.approx(fidelity["rmse"] / truth.std(dtype=np.float64), rel=1e-6)
    assert fidelity["pearson"] == pytest.approx(np.corrcoef(truth.ravel(), other.ravel())[0, 1], abs=1e-6)
    gradients = [np.mean(np.diff(other.astype(float), axis=axis) ** 2) for axis in range(3)]
    expected = np.sqrt(gradients[0] / np.mean(gradients[1:]))
    assert moments.gradient_ratio((1, 1, 1)) == pytest.approx(expected, rel=1e-6)
    assert (moments.low, moments.high) == (other.min(), other.max())


def test_blocks_stay_small_and_cover_every_voxel_once():
    seen = np.zeros((130, 33, 50), int)
    for core, longer in blocks(whole(seen), voxels=8000):
        seen[core] += 1
        assert seen[core].size <= 8000
        assert all(b.stop == min(a.stop + 1, size) for a, b, size in zip(core, longer, seen.shape, strict=True))
    assert (seen == 1).all()


def test_gradient_counts_length_not_planes():
    ramp = np.indices((6, 6, 6)).sum(0).astype(np.float32)
    moments = swept(ramp, ramp, 10**6)
    assert moments.gradient_ratio((1, 1, 1)) == pytest.approx(1)
    assert moments.gradient_ratio((4, 1, 1)) == pytest.approx(0.25)
    assert moments.fidelity(moments, 255)["psnr_db"] == np.inf


def test_ssim_is_scikit_images_over_all_planes_and_over_some():
    truth, other = volume(), volume(seed=1)
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    found = metrics.ssim(other, truth, 255)
    assert found["3d"] == pytest.approx(structural_similarity(truth, other, **options), abs=1e-6)
    for name, planes in {"xy": (truth, other), "xz": (truth.swapaxes(0, 1), other.swapaxes(0, 1))}.items():
        expected = np.mean([structural_similarity(a, b, **options) for a, b in zip(*planes, strict=True)])
        assert found[name] == pytest.approx(expected, abs=1e-5)
    some = np.mean([structural_similarity(truth[:, :, k], other[:, :, k], **options) for k in (4, 12, 20)])
    assert metrics.ssim(other, truth, 255, slice(4, None, 8))["yz"] == pytest.approx(some, abs=1e-5)


def test_ssim_says_none_where_its_window_does_not_fit():
    found = metrics.ssim(volume((8, 20, 20)), volume((8, 20, 20)), 255)
    assert found["3d"] is None and found["xz"] is None and found["yz"] is None
    assert found["xy"] == pytest.approx(1)


def test_ms_ssim_needs_161_pixels(monkeypatch):
    looked = []
    monkeypatch.setattr("utils.threads.Threads.fit", lambda threads: looked.append(threads))
    truth = volume((2, 161, 162))
    found = metrics.ms_ssim(truth + 5 * volume((2, 161, 162), 1, 1.0) - 640, truth, 255)
    assert 0.9 < found["xy"] < 1
    assert found["xz"] is None and found["yz"] is None
    assert len(looked) == 1, "it gives way to other programs, before each batch"
    assert metrics.ms_ssim(truth[:, 1:], truth[:, 1:], 255)["xy"] is None


def test_lpips_is_zero_for_itself_and_grows_with_the_difference():
    truth, other = volume((66, 64, 64)), volume((66, 64, 64), 1)
    truth, other = truth[::33], other[::33]  # two planes: the network is slow
    scope, network = DataRange(0, 255, "test"), PerceptualLoss(random_weights=True)
    assert metrics.lpips(truth, truth, scope, network) == {"xy": pytest.approx(0, abs=1e-7), "xz": None, "yz": None}
    assert metrics.lpips(other, truth, scope, network)["xy"] != 0


# Baselines -----------------------------------------------------------------------------------------------------------


def test_interpolation_by_hand():
    positions = np.array([4.0, 12.0, 20.0])
    targets = np.array([0.0, 4, 8, 10, 12, 16, 23])
    signal = np.array([10.0, 30.0, 20.0])
    linear = interpolation_matrix("linear", positions, targets) @ signal
    np.testing.assert_allclose(linear, [10, 10, 20, 25, 30, 25, 20])
    nearest = interpolation_matrix("nearest", positions, targets) @ signal
    np.testing.assert_allclose(nearest, [10, 10, 10, 30, 30, 20, 20])  # ties 8 and 16 go to the even sections 0 and 2
    cubic = interpolation_matrix("cubic", positions, targets) @ signal
    np.testing.assert_allclose(cubic, CubicSpline(positions, signal)(np.clip(targets, 4, 20)))


def test_cubic_reproduces_a_cubic_exactly():
    positions = np.arange(3.5, 60, 8)
    targets = np.arange(4.0, 59)
    polynomial = np.polynomial.Polynomial([3, -1, 0.2, 0.01])
    np.testing.assert_allclose(interpolation_matrix("cubic", positions, targets) @ polynomial(positions), polynomial(targets))


@pytest.mark.parametrize("first", [1.5, 2])  # positions of averaged and of thinned sections; with ties for nearest
@pytest.mark.parametrize("method", ["nearest", "linear", "cubic"])
def test_blocks_equal_interpolation_of_everything(method, first):
    sections = Sections(volume((90, 5, 6)), first, 4.0)
    candidate = Candidate(sections, method)
    matrix = interpolation_matrix(method, first + 4.0 * np.arange(90), np.arange(362.0))
    everything = np.tensordot(matrix, sections.source.astype(float), axes=1)
    for depth in (slice(0, 9), slice(100, 230), slice(104, 230), slice(350, 362)):
        block = candidate.block((depth, slice(1, 4), slice(2, 6)))
        np.testing.assert_allclose(block, everything[depth, 1:4, 2:6], atol=2e-4)
    assert 2 * HALO < 90  # else no block would leave a section out


def test_overshoot_is_clipped_to_the_range_of_the_grey_values():
    steps = np.zeros((6, 1, 1), np.float32)
    steps[3:] = 255
    box = (slice(0, 41), slice(0, 1), slice(0, 1))
    free = Candidate(Sections(steps, 0, 8.0), "cubic").block(box)
    assert free.min() < 0 and free.max() > 255
    clipped = Candidate(Sections(steps, 0, 8.0), "cubic", np.dtype(np.uint8)).block(box)
    assert clipped.min() == 0 and clipped.max() == 255


def test_candidate_reads_exact_planes_with_offsets():
    array = volume()
    candidate = Candidate(Sections(array, -2, 1, row=3, column=5), "nearest")
    np.testing.assert_array_equal(candidate.block((slice(0, 4), slice(3, 9), slice(6, 8))), array[2:6, 0:6, 1:3])
    between = Candidate(Sections(array, 0.5, 1), "linear")  # these planes do not lie on the grid
    np.testing.assert_allclose(between.block((slice(1, 2), slice(0, 9), slice(0, 9))), array[:2, :9, :9].mean(0)[None], rtol=1e-6)


@pytest.mark.parametrize(("factor", "begin"), [(8, 0), (4, 3), (5, 7)])
def test_degraded_sections_are_those_of_the_definition(factor, begin):
    array = volume((48, 5, 7))
    box = (slice(begin, 45), slice(1, 5), slice(2, 7))
    picked, averaged = (Degraded(Sections(array, 0, 1), box, factor, how) for how in ("pick", "average"))
    planes = [factor * k + factor // 2 for k in range(48)]
    planes = [plane for plane in planes if begin <= plane < 45]
    everything = slice(0, 10), slice(0, 4), slice(0, 5)
    full = (slice(0, picked.shape[0]), *everything[1:])
    np.testing.assert_array_equal(picked[full], array[planes, 1:5, 2:7])
    slabs = [k for k in range(48) if begin <= factor * k and factor * (k + 1) <= 45]
    expected = np.stack([array[factor * k : factor * (k + 1), 1:5, 2:7].mean(0) for k in slabs])
    full = (slice(0, averaged.shape[0]), *everything[1:])
    np.testing.assert_allclose(averaged[full], expected, rtol=1e-6)
    np.testing.assert_allclose(averaged[1:3, 1:3, 0:2], expected[1:3, 1:3, 0:2], rtol=1e-6)
    assert (picked.start, averaged.start) == ((planes[0] - factor // 2) // factor, slabs[0])


def test_too_few_sections_are_refused():
    with pytest.raises(UserError, match="--thin"):
        Degraded(Sections(volume((12, 4, 4)), 0, 1), (slice(0, 12), slice(0, 4), slice(0, 4)), 8, "pick")


# Projections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "step", "ways"),
    [(4, 8, ["pick"]), (3.5, 8, ["average"]), (2, 5, ["pick", "average"]), (4.2, 8, ["between"]), (0, 5.6, ["between"])],
)
def test_positions_tell_how_sections_can_have_been_made(first, step, ways):
    assert list(projections(Sections(volume(), first, step))) == ways


def consistency(array, sections, voxels, taps=(1.0,)):
    total = Consistency(sections, whole(array), taps)
    for core, longer in blocks(whole(array), voxels, behind=max(1, total.reach)):
        total.add(array[longer], core)
    return total.result(255)


@pytest.mark.parametrize("voxels", [2**23, 900, 100])  # one block; several bands; several blocks along z, across sections
@pytest.mark.parametrize(("how", "first"), [("pick", 4.0), ("average", 3.5)])
def test_truth_is_consistent_with_its_own_sections(how, first, voxels):
    array = volume((150, 9, 8))
    sections = Sections(Degraded(Sections(array, 0, 1), whole(array), 8, how), first, 8.0)
    exact = consistency(array, sections, voxels)
    assert exact[how]["sections"] == 18 + (how == "pick")
    assert exact[how]["rmse"] == pytest.approx(0, abs=1e-4)
    shifted = consistency(array + 3, sections, voxels)
    assert shifted[how]["rmse"] == pytest.approx(3, rel=1e-4)
    assert shifted[how]["psnr_db"] == pytest.approx(20 * np.log10(255 / 3), abs=1e-3)


@pytest.mark.parametrize("voxels", [2**23, 900, 100])
@pytest.mark.parametrize(("how", "first"), [("pick", 4.0), ("average", 3.5)])
def test_a_volume_is_blurred_by_the_profile_before_it_is_projected(how, first, voxels):
    array, taps = volume((150, 9, 8)), np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    seen = correlate1d(array.astype(np.float32), taps, axis=0)
    sections = Sections(Degraded(Sections(seen, 0, 1), whole(array), 8, how), first, 8.0)
    found = consistency(array, sections, voxels, taps)
    assert found[how]["sections"] == 17 + (how == "pick") and found[how]["profile_taps"] == 5
    assert found[how]["rmse"] == pytest.approx(0, abs=1e-4)
    assert consistency(array, sections, voxels)[how]["rmse"] > 1


@pytest.mark.parametrize("voxels", [2**23, 300])
def test_positions_between_planes_are_read_linearly(voxels):
    ramp = np.broadcast_to(np.arange(150, dtype=np.float32)[:, None, None], (150, 3, 3))
    sections = Sections(np.broadcast_to((1.25 + 5.6 * np.arange(26, dtype=np.float32))[:, None, None], (26, 3, 3)), 1.25, 5.6)
    found = consistency(ramp, sections, voxels)
    assert found["between"]["sections"] == 26
    assert found["between"]["rmse"] == pytest.approx(0, abs=1e-4)


def test_width_of_a_range():
    assert DataRange(-1, 3, "test").width == 4
