"""Several tiles per pass of a network: the volume of one by one, the same bits for any box, less at once where memory ends."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from infer_runs import grey, make_run, whole

from inference import Options, Run, enhance
from inference.decoding import IsotropicField, SliceField
from inference.encoding import SliceEncoder
from inference.restoring import RestoredField
from inference.source import Source
from inference.tiling import Axis
from utils.boxes import whole_box
from utils.errors import UserError

FLOAT = np.dtype(np.float32)
CORE = (2, 2, 1)  # of 15 tiles along x, numbers 4 to 10 see their whole halo and are alike


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(make_run(tmp_path_factory.mktemp("runs") / "D" / "P", pooled=(100.0, 900.0)))


@pytest.fixture
def patched_on(monkeypatch):
    """Calls of a method of a run's model: what ``limit`` says of their arguments; more than ``most`` is out of memory."""

    def patch(run, name, limit, most=None):
        network, calls = getattr(run.model, name), []

        def limited(*given):
            calls.append(limit(*given))
            if most is not None and calls[-1] > most:
                raise torch.OutOfMemoryError
            return network(*given)

        monkeypatch.setattr(run.model, name, limited)
        return calls

    return patch


@pytest.fixture
def patched(run, patched_on):
    """The same for the run of most tests."""
    return partial(patched_on, run)


def slices_of(run, values):
    return Source(run, values, Options(force_range=True))  # backgrounds darker than the training


def decoder(run, values=None, **options):
    slices = slices_of(run, grey((2, 16, 120)) if values is None else values)
    encoder = SliceEncoder(run, slices)
    return IsotropicField(run, encoder, FLOAT, **{"core": CORE, **options})


def rendered(field):
    return field.render(whole(field))


def latents(stack, margins):
    """Of the cores of a batch."""
    size = len(stack)
    for length, (before, after) in zip(stack.shape[2:], margins, strict=True):
        size *= length - before - after
    return size


def test_tiles_of_all_shapes_equal_those_computed_one_by_one(run, patched):
    expected = rendered(decoder(run))
    calls = patched("expand", lambda stack, margins: (len(stack), tuple(stack.shape[2:]), margins))
    field = decoder(run, batch=3)
    assert field.block == (1, 1, 3) and field.unit == (16, 16, 24) and field.lattice["decoding"]["block"] == [1, 1, 3]
    np.testing.assert_allclose(rendered(field), expected, atol=2e-3)
    assert Counter(count for count, *_ in calls) == {1: 8, 2: 2, 3: 1}  # 0, 1, 2; 3, 4+5; 6+7+8; 9+10, 11; 12, 13, 14
    assert len({(shape, margins) for _, shape, margins in calls}) == 9


def test_a_batch_extends_along_rows_and_planes_where_columns_do_not_suffice(run):
    volume = grey((3, 40, 20))
    field = decoder(run, volume, core=(1, 2, 2), batch=7)  # 3 x 3 x 2 tiles
    assert field.block == (1, 3, 2)
    field = decoder(run, volume, core=(1, 2, 2), batch=13)
    assert field.block == (2, 3, 2) and field.unit == (16, 48, 32)
    np.testing.assert_allclose(rendered(field), rendered(decoder(run, volume, core=(1, 2, 2))), atol=2e-3)


@pytest.mark.parametrize("seed", [None, 3])
def test_any_box_has_the_bits_of_the_whole_volume(run, seed):
    everything = rendered(decoder(run, batch=3, seed=seed))
    one_by_one = rendered(decoder(run, seed=seed))
    assert (np.abs(everything - one_by_one).max() > 1) == (seed is not None)  # dropout is drawn for a batch
    for box in ((slice(0, 16), slice(0, 16), slice(57, 63)), (slice(3, 11), slice(0, 9), slice(30, 90))):
        for region in (None, box):
            part = decoder(run, batch=3, seed=seed, region=region).render(box)
            np.testing.assert_array_equal(part, everything[(slice(None), *box)])
    pieces = [decoder(run, batch=3, seed=seed).render((slice(0, 16), slice(0, 16), slice(x, x + 24))) for x in range(0, 120, 24)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=3), everything)


def test_a_region_reads_only_the_codes_of_its_tiles(run, monkeypatch):
    box = (slice(0, 16), slice(0, 16), slice(57, 63))  # the second of three tiles of a batch
    field, spans = decoder(run, batch=3, region=box), []
    read = field.codes.read
    monkeypatch.setattr(field.codes, "read", lambda box: spans.append(box[2]) or read(box))
    field.prefetch(box)
    field.render(box)
    assert spans == [slice(3, 12)]


def test_commands_give_the_crop_of_the_whole_volume(run):
    volume = grey((2, 24, 140))
    options = {"tile": 8, "batch": 4}
    everything = enhance(run, volume, Options(**options))
    region = (slice(3, 14), slice(5, 24), slice(40, 101))
    np.testing.assert_array_equal(enhance(run, volume, Options(**options, region=region)), everything[region])
    with pytest.raises(UserError, match="--batch 0 must be at least 1"):
        Options(batch=0)


def test_background_changes_no_bit_of_its_neighbours(run):
    values = np.full((2, 16, 200), 40, np.uint16)
    values[..., :80] = grey((2, 16, 80), high=850)
    filled = decoder(run, values, batch=4)
    computed = decoder(run, values, batch=4, skip_empty=False)
    parts = [rendered(field)[..., :80] for field in (filled, computed)]
    np.testing.assert_array_equal(*parts)
    assert filled.skipped > 3 and computed.skipped == 0 and parts[0].std() > 1


# Codes -------------------------------------------------------------------------------------------------------------------


def test_features_do_not_depend_on_what_else_is_in_a_pass(tmp_path):
    run = Run.load(make_run(tmp_path / "D" / "P", "ae0iso0tccut", hbranch="mid"))
    slices = slices_of(run, grey((3, 61, 40)))  # 3 x 2 tiles
    n, h, w = SliceEncoder(run, slices).shape
    everything = SliceEncoder(run, slices, batch=4).read(whole_box((n, h, w))).codes
    assert everything.dtype == np.float32 and everything.std() > 0.01
    other = SliceEncoder(run, slices, batch=4)
    for x in range(w - 1, -1, -1):
        np.testing.assert_array_equal(
            other.read((slice(0, n), slice(1, 7), slice(x, x + 1))).codes, everything[:, 1:7, x : x + 1]
        )


# Blended tiles -----------------------------------------------------------------------------------------------------------

RAW = {"training crops": {}, "local": {"ldmyaml": "vqlocal"}}


@pytest.fixture(params=RAW)
def raw(request, tmp_path, monkeypatch):
    """The raw grid of an autoencoder: 3 slices, several tiles in-plane."""
    run = Run.load(make_run(tmp_path / "D" / "P", **RAW[request.param]))
    monkeypatch.setattr("inference.decoding.local_axis", lambda size, *halo: Axis(size, 2, *halo))
    slices = slices_of(run, grey((3, 61, 40)))
    return run, lambda batch: SliceField(run, SliceEncoder(run, slices), FLOAT, batch)


@pytest.fixture
def restored(tmp_path):
    """IsoREF's output: several cubes along every axis."""
    run = Run.load(make_run(tmp_path / "R" / "P", "IsoREF", cropz=4, nocyc=True))
    slices = slices_of(run, grey((6, 40, 56)))
    return run, lambda batch: RestoredField(run, slices, FLOAT, batch)


def same_whatever_the_box(make):
    everything = rendered(make(5))
    np.testing.assert_allclose(everything, rendered(make(1)), atol=2e-2)  # of 800 grey values
    box = tuple(slice(size // 3, size // 3 + max(1, size // 2)) for size in everything.shape[1:])
    np.testing.assert_array_equal(make(5).render(box), everything[(slice(None), *box)])


def test_slices_in_batches(raw, monkeypatch):
    run, make = raw
    same_whatever_the_box(make)
    counts, network = [], run.model.reconstruct
    monkeypatch.setattr(run.model, "reconstruct", lambda latent: counts.append(len(latent)) or network(latent))
    field = make(5)
    rendered(field)
    assert set(counts) == {5 * field.axes[0].core}


def test_cubes_in_batches(restored):
    same_whatever_the_box(restored[1])


def test_out_of_memory_in_slices(raw, patched_on):
    run, make = raw
    expected = rendered(make(1))
    patched_on(run, "reconstruct", len, most=1)
    np.testing.assert_allclose(rendered(make(4)), expected, atol=2e-2)
    patched_on(run, "reconstruct", len, most=0)
    with pytest.raises(UserError, match="not even one slice of a tile"):
        rendered(make(4))


def test_out_of_memory_in_cubes(restored, patched_on):
    run, make = restored
    calls = patched_on(run, "restore", lambda slices, batch: batch, most=0)
    with pytest.raises(UserError, match="not even one cube"):
        rendered(make(2))
    assert calls == [2, 1]


# Out of memory -----------------------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_then_the_tile(run, patched):
    box = (slice(0, 16), slice(0, 16), slice(32, 64))  # tiles 4 to 7
    expected = decoder(run).render(box)
    calls = patched("expand", latents, most=1)
    field = decoder(run, batch=4)
    np.testing.assert_allclose(field.render(box), expected, atol=2e-3)
    assert calls == [16, 8, 4, *[1] * 16] and field.batch == 1
    patched("expand", latents, most=0)
    with pytest.raises(UserError, match="not even a tile of one latent"):
        decoder(run, batch=4).render(box)


def test_of_a_tile_in_halves_only_those_under_the_region_are_computed(run, patched):
    box = (slice(0, 16), slice(12, 16), slice(57, 63))  # in the lower half of a tile of 2 x 2 x 1 latents
    expected = decoder(run).render(box)
    calls = patched("expand", latents, most=2)
    np.testing.assert_allclose(decoder(run, region=box).render(box), expected, atol=2e-3)
    assert calls == [4, 1, 1]


def test_out_of_memory_halves_the_batch_of_slices_and_then_the_tile(run, patched):
    slices = slices_of(run, grey((3, 61, 40)))
    box = whole_box(SliceEncoder(run, slices).shape)
    expected = SliceEncoder(run, slices).read(box).codes
    calls = patched("pack", len, most=6)
    encoder = SliceEncoder(run, slices, batch=4)
    np.testing.assert_array_equal(encoder.read(box).codes, expected)
    assert calls == [12, 6, 6, 6] and encoder.batch == 2
    calls = patched("pack", len, most=1)
    np.testing.assert_array_equal(
        SliceEncoder(run, slices, batch=2).read((box[0], slice(0, 2), slice(0, 2))).codes, expected[:, :2, :2]
    )
    assert calls == [6, 3, 2, 1, 1, 1]
    patched("pack", len, most=0)
    with pytest.raises(UserError, match="not even one slice"):
        SliceEncoder(run, slices, batch=2).read(box)
