"""Pieces of an output volume: whatever the box, the same bits; and what the networks make of the whole volume at once."""

import numpy as np
import pytest
import torch
from infer_runs import grey, make_run, whole

from inference.decoding import IsotropicField, SliceField
from inference.encoding import SliceEncoder
from inference.options import Options
from inference.passes import to_tensor
from inference.restoring import RestoredField
from inference.run import Run
from inference.source import Source
from utils.boxes import whole_box
from volumes.volume import ArrayVolume

FLOAT = np.dtype(np.float32)


def opened(tmp_path, shape=(5, 37, 44), **options):
    run = Run.load(make_run(tmp_path / "D" / "P", **options))
    source = Source(run, [ArrayVolume(grey(shape, seed)) for seed in range(run.channels)], Options())
    return run, source, source.intensities


def isotropic(run, slices, maps, core=(2, 2, 3), **options):
    encoder = SliceEncoder(run, slices)
    return IsotropicField(run, encoder, FLOAT, core=core, **options)


def untiled(run, field):
    """The decoder on the whole stack of codes at once."""
    n = field.codes.shape[0]
    with torch.inference_mode():
        latent = run.model.unpack(to_tensor(field.codes.read(whole_box(field.codes.shape)).codes, torch.device("cpu")))
        short = -n % run.geometry.downbranch
        latent = torch.cat([latent, latent[-1:].expand(short, -1, -1, -1)])
        volume = run.model.expand(run.model.restack(latent))[0]
        z, y, x = field.shape
        return field.to_grey(volume.movedim(-1, 1)).numpy()[:, :z, :y, :x]


CASES = {
    "plain": {},
    "factor 4": {"downbranch": 2, "cropz": 8},
    "factor 16": {"resizebranch": 2, "cropz": 2},
    "no normalisation": {"norm": "none"},
    "KL from the posterior": {"model": "ae0iso0tccut", "hbranch": "z"},
    "KL from the encoder": {"model": "ae0iso0tccut", "hbranch": "mid"},
    "two levels of codes": {"codebook": {"levels": 2}},
    "finite scalars": {"ldmyaml": "vqfsq"},
    "KL from the encoder, factor 4": {"model": "ae0iso0tccut", "hbranch": "mid", "downbranch": 2, "cropz": 8},
    "KL from the encoder, factor 16": {"model": "ae0iso0tccut", "hbranch": "mid", "resizebranch": 2, "cropz": 2},
    "two channels": {"tc": True, "input_nc": 2, "output_nc": 2, "direction": "a_b"},
}


@pytest.mark.parametrize("case", CASES)
def test_tiles_equal_the_network_on_the_whole_volume(tmp_path, case):
    run, slices, maps = opened(tmp_path, **CASES[case])
    field = isotropic(run, slices, maps)
    tiled = field.render(whole(field))
    expected = untiled(run, field)
    assert tiled.shape == (run.settings["output_nc"], 5 * run.geometry.factor, 37, 44)
    assert expected.std() > 5
    np.testing.assert_allclose(tiled, expected, atol=2e-3)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_any_depth(tmp_path, depth):
    run, slices, maps = opened(tmp_path, shape=(depth, 9, 17), downbranch=2, cropz=8)
    field = isotropic(run, slices, maps, core=(1, 1, 1))
    assert field.shape == (4 * depth, 9, 17)
    np.testing.assert_allclose(field.render(whole(field)), untiled(run, field), atol=2e-3)


@pytest.mark.parametrize("box", [(slice(3, 21), slice(11, 30), slice(0, 44)), (slice(39, 40), slice(36, 37), slice(43, 44))])
def test_a_region_is_the_crop_of_the_whole_bit_for_bit(tmp_path, box):
    run, slices, maps = opened(tmp_path)
    everything = isotropic(run, slices, maps).render(whole(isotropic(run, slices, maps)))
    part = isotropic(run, slices, maps).render(box)
    np.testing.assert_array_equal(part, everything[(slice(None), *box)])


def test_codes_do_not_depend_on_the_order_they_are_asked_for(tmp_path):
    run, slices, _ = opened(tmp_path, shape=(20, 61, 70))
    encoder = SliceEncoder(run, slices)
    everything = encoder.read(whole_box(encoder.shape)).codes
    assert len(np.unique(everything)) > 15
    other = SliceEncoder(run, slices)
    box = slice(17, 19), slice(3, 6), slice(1, 8)
    other.prefetch(box)
    np.testing.assert_array_equal(other.read(box).codes, everything[box])


def test_a_core_holds_the_codes_of_its_own_training_crop(tmp_path):
    run, slices, _ = opened(tmp_path, shape=(4, 64, 64))
    encoder = SliceEncoder(run, slices)
    crop = torch.from_numpy(slices.read((slice(0, 4), slice(24, 56), slice(0, 32))))
    with torch.inference_mode():
        codes = run.model.pack(crop).numpy()
    _, rows, columns = encoder.axes
    assert rows[1].window == (3, 7) and columns[0].window == (0, 4)
    first, last = rows[1].core
    read = encoder.read((slice(0, 4), slice(first, last), slice(0, 3))).codes
    np.testing.assert_array_equal(read, codes[:, first - 3 : last - 3, :3])


def test_empty_background_is_filled_and_counted(tmp_path):
    run = Run.load(make_run(tmp_path / "D" / "P", pooled=(100.0, 900.0)))
    values = np.full((2, 40, 120), 40, np.uint16)
    values[:, :, :24] = grey((2, 40, 24))
    slices = Source(run, values, Options(force_range=True))
    maps = slices.intensities
    field = isotropic(run, slices, maps, core=(2, 5, 2))
    out = field.render(whole(field))
    assert field.skipped == 4 and field.codes.skipped > 0  # tiles that see nothing but background
    assert (out[0, :, :, 88:] == 100).all() and out[0, :, :, :24].std() > 1
    kept = isotropic(run, slices, maps, core=(2, 5, 2), skip_empty=False)
    np.testing.assert_array_equal(kept.render(whole(kept))[0, :, :, :48], out[0, :, :, :48])


def test_restoration_blends_cubes_without_a_seam_in_weights(tmp_path):
    run, slices, maps = opened(tmp_path, shape=(6, 40, 56), model="IsoREF", cropz=4, l1how="mean", nocyc=True)
    field = RestoredField(run, slices, FLOAT)
    everything = field.render(whole(field))
    assert everything.shape == (1, 48, 40, 56)
    box = (slice(5, 33), slice(7, 29), slice(31, 50))
    part = RestoredField(run, slices, FLOAT).render(box)
    np.testing.assert_array_equal(part, everything[(slice(None), *box)])
    first = field.tiles(whole(field))[0]
    with torch.inference_mode():
        (corner,) = field.compute([first], [field.see(first, field.given(first))])
    expected = maps[0].to_grey(torch.from_numpy(corner)).numpy()[:, :16, :8, :20]
    np.testing.assert_allclose(everything[:, :16, :8, :20], expected, atol=1e-2)


def test_restoration_of_one_plane(tmp_path):
    run, slices, _ = opened(tmp_path, shape=(1, 20, 30), model="IsoREF", cropz=4, nocyc=True)
    field = RestoredField(run, slices, FLOAT)
    assert field.render(whole(field)).shape == (1, 8, 20, 30)


def test_blended_slices_of_the_default_autoencoder(tmp_path):
    run, slices, _ = opened(tmp_path, shape=(3, 60, 40))
    field = SliceField(run, SliceEncoder(run, slices), FLOAT)
    everything = field.render(whole(field))
    box = (slice(1, 3), slice(20, 41), slice(3, 40))
    part = SliceField(run, SliceEncoder(run, slices), FLOAT).render(box)
    np.testing.assert_array_equal(part, everything[(slice(None), *box)])
