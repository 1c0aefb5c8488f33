"""Codes by a model of their neighbours: what is written is what is read, smaller, for ever, and damage is named."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from codes import context_model
from codes.context_codec import decoded, encoded
from codes.context_fit import fitted_model
from codes.context_model import NEIGHBOURS, TOTAL, ContextModel, contexts
from codes.store import CodeStore, CodeTarget, Packed
from utils.errors import UserError

GOLDEN = (
    Path(__file__).parents[2] / "data" / "codes_version_2.codes.zarr"
)  # of FIB-25 (CC BY): 8x8 blocks, 12 components, 256 means; of versions 5 and 6 these by four
ALL = (slice(0, 20), slice(0, 31), slice(0, 31))


def smooth(shape, vectors, seed=0):
    """Codes of a random walk: neighbours are alike."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((*shape, vectors.shape[1]))
    for axis in range(3):
        field = (field + np.roll(field, 1, axis) + np.roll(field, 2, axis)) / 2
    return np.square(field[..., None, :] - vectors).sum(-1).argmin(-1)


def about(codes, number, **changes):
    place = {
        "slice_voxel_um": None,
        "slice_translation_um": None,
        "intensities": [],
        "output_dtype": "uint8",
        "factor": 8,
        "lattice": {},
    }
    sides = {
        "shape": list(codes.shape[:3]),
        "inner": [8 * side for side in codes.shape[1:3]],
        "input": {"shape": [1, 1, 1], "dtype": "uint8"},
    }
    kind = {"kind": "codebook", "levels": 1, "codes": number, "dimensions": 4, "dtype": "uint8" if number <= 256 else "uint16"}
    return {**place, **sides, **kind, **changes}


def stored(path, codes, vectors, empty=(), **changes):
    target = CodeTarget(path, about(codes, vectors.shape[1], **changes), vectors)
    background = np.zeros(codes.shape[:3], bool)
    background[empty] = empty != ()
    for box in target.units:
        target.write(box, Packed(codes[box].astype(target.about["dtype"]), background[box]))
    return target.finish()


def alone(codes, vectors):
    """A model of vectors that say nothing."""
    return fitted_model([codes], np.random.default_rng(8).permutation(vectors), 10**4)


model_of = {"context": lambda codes, vectors: fitted_model([codes], vectors, 10**7), "alone": alone}


@pytest.mark.parametrize("kind", model_of)
@pytest.mark.parametrize(
    ("number", "shape"), [(256, (5, 33, 40)), (2, (3, 9, 9)), (40, (1, 1, 1)), (1000, (2, 40, 31)), (16, (7, 3, 64))]
)
def test_a_block_comes_back(number, shape, kind):
    vectors = np.random.default_rng(1).standard_normal((number, 4))
    codes = smooth(shape, vectors)
    model = ContextModel.from_json(model_of[kind](codes, vectors).as_json())
    data = encoded([codes], model)[0]
    np.testing.assert_array_equal(decoded([data], shape, model)[0], codes)
    larger = tuple(side + 3 for side in shape)
    np.testing.assert_array_equal(decoded([data], larger, model)[0], np.pad(codes, [(0, 3)] * 3))
    noise = np.random.default_rng(2).integers(0, number, shape)  # the opposite of what the model expects
    np.testing.assert_array_equal(decoded(encoded([noise], model), shape, model)[0], noise)
    nothing = np.zeros(shape, int)
    np.testing.assert_array_equal(decoded(encoded([nothing], model), shape, model)[0], nothing)


def test_blocks_that_are_coded_together_are_coded_as_alone():
    vectors = np.random.default_rng(1).standard_normal((64, 4))
    codes = smooth((16, 48, 40), vectors)
    blocks = [codes[:, y : y + 16, x : x + 16] for y in (0, 16, 32) for x in (0, 16, 24)] + [np.zeros((16, 16, 16), int)]
    blocks += [block * (np.arange(16) < 9) for block in blocks[:2]]  # filled less
    for make in model_of.values():
        model = make(codes, vectors)
        streams = encoded(blocks, model)
        assert streams == [encoded([block], model)[0] for block in blocks]
        for block, found in zip(blocks, decoded(streams, (16, 16, 17), model), strict=True):
            np.testing.assert_array_equal(found, np.pad(block, [(0, 0), (0, 0), (0, 1)]))
        for harm in (streams[1][:-2], streams[1] + b"xx", streams[1][:-2] + b"xx", streams[1][:20]):
            with pytest.raises(ValueError, match=r"cut short|damaged"):
                decoded([streams[0], harm, *streams[2:]], (16, 16, 16), model)


def test_without_context_codes_take_their_entropy():
    rng = np.random.default_rng(2)
    codes = np.minimum(rng.geometric(0.02, (16, 40, 40)) - 1, 999)
    model = alone(codes, rng.standard_normal((1000, 4)))
    assert model.vectors.shape[1] == 0 and len(model.as_json()["numbers"]) < 500
    share = np.bincount(codes.ravel()) / codes.size
    entropy = -(share * np.log2(np.maximum(share, 1e-9))).sum() * codes.size / 8
    assert entropy < len(encoded([codes], model)[0]) < 1.01 * entropy + 100


@pytest.mark.parametrize("rounded", [0, 9])
def test_intervals_are_those_of_integer_arithmetic(rounded):
    """No processor's rounding has a say: Python's integers give the same."""
    vectors = np.random.default_rng(3).standard_normal((30, 4))
    codes = smooth((4, 20, 20), vectors)
    model = replace(fitted_model([codes], vectors, 10**6), rounded=rounded)
    context = contexts(codes, 30)[::37]
    both = [model.intervals(np.full(len(context), code), lambda: context) for code in range(30)]
    frequency, begin = (np.stack(each, axis=1) for each in zip(*both, strict=True))
    assert (frequency.sum(1) == TOTAL).all() and frequency.min() >= 1
    np.testing.assert_array_equal(begin, frequency.cumsum(1) - frequency)
    whole = [[int(v) for v in row] for row in model.vectors] + [[0] * model.vectors.shape[1]]
    for row, places in zip(frequency, context, strict=True):
        predicted = [0] * model.vectors.shape[1]
        for matrix, place in zip(model.matrices.tolist(), places, strict=True):
            predicted = [p + sum(v * m[j] for v, m in zip(whole[place], matrix, strict=True)) for j, p in enumerate(predicted)]
        predicted = [(p + (1 << rounded >> 1) >> rounded) << rounded for p in predicted]
        products = [sum(p * v for p, v in zip(predicted, code, strict=True)) for code in whole[:-1]]
        scores = [(product >> 12) - 8 * int(rarity) for product, rarity in zip(products, model.rarity, strict=True)]
        assert scores[row.argmax()] == max(scores)
        ratio = 2.0 ** ((np.array(scores) - max(scores)) / 32)
        np.testing.assert_allclose(row, ratio / ratio.sum() * (TOTAL - 30) + 1, rtol=1e-6, atol=31)


@pytest.mark.parametrize("most", [1 << 18, 2100])  # once there is no room for more they are made anew
def test_tables_that_are_kept_change_nothing(most, monkeypatch):
    vectors = np.random.default_rng(5).standard_normal((64, 3))
    codes = smooth((16, 20, 20), vectors)
    blocks = [codes, codes[:, ::-1]]
    model = fitted_model([codes], vectors, 10**7)
    plain = replace(model)
    vars(plain)["_radix"] = None  # keeps none
    assert model.rounded and model._radix is not None
    monkeypatch.setattr(context_model, "_KEPT", 2 * 64 * most)
    streams = encoded(blocks, plain)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: decoded(encoded(blocks, model), codes.shape, model), range(8)):
            np.testing.assert_array_equal(found, blocks)
    assert encoded(blocks, model) == streams
    np.testing.assert_array_equal(decoded(streams, codes.shape, plain), blocks)


def test_neighbours_come_before():
    assert all((z, y, x) < (0, 0, 0) and z + 2 * y + x <= -1 for z, y, x in NEIGHBOURS)


def test_real_codes_are_a_fifth_smaller_than_without_context_and_the_same_for_ever():
    codes = CodeStore.open(GOLDEN).read(ALL).codes
    assert hashlib.sha256(codes.tobytes()).hexdigest() == "199568a5874325bbf29f576d491ba00ba7602d107648db0ce3c9ad7235814ef5"
    counts = np.bincount(codes.ravel())
    entropy = -(counts * np.log2(np.maximum(counts, 1) / codes.size)).sum() / 8
    assert sum(file.stat().st_size for file in GOLDEN.joinpath("codes", "c").rglob("*") if file.is_file()) < 0.8 * entropy


@pytest.mark.parametrize("version", [3, 4])
def test_stores_of_two_levels_with_background_are_read_for_ever(version):
    store = CodeStore.open(GOLDEN.with_name(f"codes_version_{version}.codes.zarr"))
    packed = store.read((slice(0, 5), slice(0, 33), slice(0, 40)))
    assert store.about["version"] == version and packed.empty.sum() == 512 == packed.empty[:2, :16, :16].sum()
    digest = "040cb83f1e65364433bdb6fc649004da1c8e5c935f577836e11035bd759abd8e"
    assert hashlib.sha256(packed.codes.tobytes()).hexdigest() == digest


@pytest.mark.parametrize(("version", "model_shape"), [(5, (64, 0)), (6, (64, 1)), (7, (256, 5))])
def test_codes_of_one_chunk_are_the_same_for_ever(version, model_shape):
    store = CodeStore.open(GOLDEN.with_name(f"codes_version_{version}.codes.zarr"))
    codes = store.read((slice(0, 8), slice(0, 31), slice(0, 31))).codes
    array = zarr.open_array(store.path / "codes")
    codec = array.metadata.codecs[0].codecs[0] if version == 5 else array.metadata.codecs[0]
    assert codec.model.vectors.shape == model_shape and (array.shards is None) == (version > 5)
    assert (codec.model.rounded > 0) == (version == 7)  # as of a store of many codes
    np.testing.assert_array_equal(codes, CodeStore.open(GOLDEN).read(ALL).codes[:8] // (1 if version == 7 else 4))


def test_levels_regions_and_wide_codebooks(tmp_path):
    vectors = np.random.default_rng(4).standard_normal((2, 300, 4)).astype(np.float32)
    levels = np.stack([smooth((20, 70, 50), book, n) for n, book in enumerate(vectors)], axis=-1)
    store = stored(tmp_path / "a.codes.zarr", levels, vectors, levels=2)
    box = (slice(3, 18), slice(30, 69), slice(11, 50))
    np.testing.assert_array_equal(store.read(box).codes, levels[box])
    assert zarr.open_array(store.path / "codes_1").metadata.codecs[0].codecs[0].model.codes == 300
    assert store.bytes_of("codes") < 0.8 * levels[..., 0].size * np.log2(300) / 8
    many = np.random.default_rng(5).standard_normal((1, 2000, 4)).astype(np.float32)
    codes = np.random.default_rng(6).integers(0, 2000, (2, 40, 40))
    np.testing.assert_array_equal(
        stored(tmp_path / "b.codes.zarr", codes, many).read((slice(0, 2), slice(0, 40), slice(0, 40))).codes, codes
    )


def test_background_is_kept_where_there_is_any(tmp_path):
    vectors = np.random.default_rng(7).standard_normal((1, 64, 4)).astype(np.float32)
    codes = smooth((4, 40, 40), vectors[0])
    box = (slice(1, 3), slice(30, None), slice(0, 7))
    without = stored(tmp_path / "a.codes.zarr", codes, vectors)
    assert not (without.path / "empty").exists()
    assert without.read(box).empty.shape == (2, 10, 7) and not without.read(box).empty.any()
    np.testing.assert_array_equal(without.read(box).codes, codes[box])
    some = stored(tmp_path / "b.codes.zarr", codes, vectors, empty=(2, 33, 5))
    assert np.argwhere(some.read(box).empty).tolist() == [[1, 3, 5]]


def test_a_store_that_was_killed_while_it_was_finished_is_finished_again(tmp_path, monkeypatch):
    vectors = np.random.default_rng(7).standard_normal((1, 64, 4)).astype(np.float32)
    codes = smooth((4, 40, 40), vectors[0])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CodeTarget, "put_in_place", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        stored(tmp_path / "a.codes.zarr", codes, vectors)
    target = CodeTarget(tmp_path / "a.codes.zarr", about(codes, 64), vectors)
    assert target.pending(range(len(target.units))) == []
    np.testing.assert_array_equal(target.finish().read((slice(0, 4), slice(0, 40), slice(0, 40))).codes, codes)
    assert not (tmp_path / "a.codes.zarr" / ".work").exists()


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damage_is_named_and_the_rest_is_read(tmp_path, harm):
    store = shutil.copytree(GOLDEN, tmp_path / "x.codes.zarr")
    shard = store / "codes" / "c" / "1" / "0" / "0"
    data = bytearray(shard.read_bytes())
    if harm == "gone":
        shard.unlink()
    else:
        data[500] ^= 4
        shard.write_bytes(data if harm == "flip" else data[:3000])
    opened = CodeStore.open(store)
    with pytest.raises(UserError, match=r"codes cannot be read .*damaged"):
        opened.read(ALL)
    first = (slice(0, 10), *ALL[1:])
    np.testing.assert_array_equal(opened.read(first).codes, CodeStore.open(GOLDEN).read(first).codes)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone"])
def test_damage_of_an_array_of_one_chunk_is_named(tmp_path, harm):
    vectors = np.random.default_rng(7).standard_normal((1, 64, 4)).astype(np.float32)
    store = stored(tmp_path / "a.codes.zarr", smooth((4, 40, 40), vectors[0]), vectors)
    assert zarr.open_array(store.path / "codes").shards is None
    chunk = store.path / "codes" / "c" / "0" / "0" / "0"
    data = chunk.read_bytes()
    if harm == "gone":
        chunk.unlink()
    else:
        chunk.write_bytes({"flip": bytes([data[0] ^ 4]) + data[1:], "cut": data[:-9], "empty": b""}[harm])
    with pytest.raises(UserError, match=r"codes cannot be read .*damaged"):
        CodeStore.open(store.path).read((slice(0, 4), slice(0, 40), slice(0, 40)))


def test_a_record_is_written_without_what_most_of_them_say(tmp_path):
    vectors = np.random.default_rng(7).standard_normal((1, 64, 4)).astype(np.float32)
    codes = smooth((4, 40, 40), vectors[0])
    usual = {"first": 0.0, "spacing": 1.0, "thinned": 1, "how": "pick", "first_kept": 0.0}
    for name, slices in (("usual", usual), ("thinned", {**usual, "thinned": 2})):
        store = stored(tmp_path / f"{name}.codes.zarr", codes, vectors, slices=slices, axial_taps=[1.0])
        written = store_record(store.path)
        assert store.about["slices"] == slices and store.about["axial_taps"] == [1.0] and store.about["background"] is False
        assert store.about["slice_voxel_um"] is None and ("slices" in written) == (name == "thinned")
        assert not {"axial_taps", "background", "slice_voxel_um", "slice_translation_um"} & written.keys()


def store_record(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["isoscope_codes"]


def test_a_changed_stream_is_never_read_as_other_codes():
    """Even without the checksum around it: the states end where the encoder began."""
    vectors = np.random.default_rng(8).standard_normal((64, 4))
    codes = smooth((4, 16, 16), vectors)
    model = fitted_model([codes], vectors, 10**6)
    data = encoded([codes], model)[0]
    for place in range(6, len(data), 17):
        harmed = bytearray(data)
        harmed[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"damaged|cut short"):
            decoded([bytes(harmed)], codes.shape, model)
    with pytest.raises(ValueError, match="codes from 0 to 64"):
        encoded([np.arange(65).reshape(1, 1, 65)], model)
