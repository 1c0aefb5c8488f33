"""Paired folders to batches: pairing, determinism, records, refusals."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from dataloader.data_multi import DataModule, PairedImageDataset, check_unit_range
from experiment.reading import default_settings
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from writing.write import write_tiff

SHAPES = ((9, 30, 41), (12, 33, 28), (8, 24, 24))
OPTIONS = {"cropsize": 16, "cropz": 6, "nm": "11"}


def value(k, shape):
    return np.random.default_rng(k).integers(100, 4000, shape).astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two paired directions; b = 2·a, so that equal geometry shows."""
    root = tmp_path_factory.mktemp("X1")
    for part, shapes in (("train", SHAPES), ("val", SHAPES[:2])):
        for k, shape in enumerate(shapes):
            for direction, factor in (("a", 1), ("b", 2)):
                (root / part / direction).mkdir(parents=True, exist_ok=True)
                write_tiff(root / part / direction / f"v{k}.tif", value(k, shape) * np.uint16(factor), voxel_um=(4, 0.5, 0.25))
    return root


def make(folder, directions=("a", "b"), **options):
    return PairedImageDataset(folder / "train", directions, **OPTIONS | options)


def images(sample):
    return [image.numpy() for image in sample["img"]]


def test_a_sample_is_what_the_models_expect(folder):
    sample = make(folder)[4, 1]
    assert [tuple(image.shape) for image in sample["img"]] == [(1, 16, 16, 6)] * 2
    assert all(image.dtype == torch.float32 for image in sample["img"])
    assert (sample["labels"], sample["filenames"]) == (1, "v1.tif")
    assert min(image.min() for image in images(sample)) >= -1 and max(image.max() for image in images(sample)) <= 1


def test_crops_are_drawn_where_there_is_something(tmp_path):
    """Of a volume that is background to 95 %, content fills most crops; the draw is that of seed, epoch and index alone."""
    rng = np.random.default_rng(0)
    values = rng.normal(100, 3, (12, 160, 160))
    values[:, 60:96, 100:136] += rng.normal(0, 400, (12, 36, 36)) + 500
    (tmp_path / "train" / "a").mkdir(parents=True)
    write_tiff(tmp_path / "train" / "a" / "v.tif", values.clip(0).astype(np.uint16))
    shares = {}
    for draw in ("uniform", "content"):
        made = make(tmp_path, ("a",), draw=draw, crops_per_volume=200, rotate=False)
        bright = [float((images(made[3, k])[0] > -0.6).mean()) > 0.05 for k in range(200)]
        shares[draw] = np.mean(bright)
        assert all(
            torch.equal(
                made[3, k]["img"][0], make(tmp_path, ("a",), draw=draw, rotate=False, crops_per_volume=200)[3, k]["img"][0]
            )
            for k in (0, 7)
        )
    assert shares["uniform"] < 0.2 and shares["content"] > 0.6


def test_a_pair_shares_position_and_angle(folder):
    for index in range(3):
        a, b = images(make(folder, usp=1.5, dsp=2, resize=25)[7, index])
        np.testing.assert_allclose(a, b, atol=1e-5)  # b = 2·a, each by its own range


def test_the_fixture_through_a_file(golden, tmp_path):
    data = golden("data")
    (tmp_path / "val" / "a").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "val" / "a" / "v.tif", data["tif"])
    dataset = PairedImageDataset(tmp_path / "val", ["a"], cropsize=16, cropz=9, nm="11", train=False)
    expected = np.moveaxis(data["norm_11"], 0, -1)[2:18, 4:20]
    np.testing.assert_allclose(images(dataset[0])[0][0], expected, atol=1e-6)


def test_draws_depend_on_seed_epoch_and_index_alone(folder):
    first, again, other_seed = make(folder), pickle.loads(pickle.dumps(make(folder))), make(folder, seed=124)
    np.random.seed(1)
    torch.manual_seed(1)
    for key in ((0, 0), (0, 2), (3, 1)):
        for one, two in zip(images(first[key]), images(again[key]), strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.array_equal(images(first[key])[0], images(other_seed[key])[0])
        assert not np.array_equal(images(first[key])[0], images(first[key[0] + 1, key[1]])[0])


def batches(folder, workers, epoch=0, **options):
    some = {"crops_per_volume": 3, "neighbours": 2, "batch_size": 2}
    module = DataModule(folder, ["a", "b"], workers=workers, **OPTIONS | some | options)
    module.check()
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_any_number_of_workers_gives_the_same_batches(folder):
    alone, helped, next_epoch = batches(folder, 0), batches(folder, 2), batches(folder, 0, epoch=1)
    assert len(alone) == len(helped) == 4
    for one, two in zip(alone, helped, strict=True):
        assert [tuple(image.shape) for image in one["img"]] == [(2, 1, 16, 16, 6)] * 2
        assert all(torch.equal(x, y) for x, y in zip(one["img"], two["img"], strict=True))
        assert torch.equal(one["labels"], two["labels"]) and one["labels"].dtype == torch.int64
        assert one["filenames"] == two["filenames"] == [f"v{label}.tif" for label in one["labels"].tolist()]
    assert not any(torch.equal(one["img"][0], two["img"][0]) for one, two in zip(alone, next_epoch, strict=True))


def test_two_processes_together_see_the_batches_of_one(folder):
    alone = batches(folder, 0, batch_size=4)
    sampled = [torch.cat([x, y]) for x, y in zip(*(share(folder, rank) for rank in (0, 1)), strict=True)]
    assert len(alone) == len(sampled) == 2
    for whole, parts in zip(alone, sampled, strict=True):
        order = [0, 2, 1, 3]  # rank 0 has places 0 and 2 of the batch
        assert torch.equal(whole["img"][0][order], parts)


def share(folder, rank):
    module = DataModule(folder, ["a", "b"], batch_size=2, crops_per_volume=3, neighbours=2, **OPTIONS)
    module._place = lambda: (rank, 2)
    return [batch["img"][0] for batch in module.train_dataloader()]


def test_crops_per_volume_repeats_files_with_other_crops(folder):
    dataset = make(folder, crops_per_volume=4)
    assert len(dataset) == 12
    assert [dataset[k]["labels"] for k in range(12)] == [0, 1, 2] * 4
    assert len({dataset[k]["img"][0].numpy().tobytes() for k in range(0, 12, 3)}) == 4
    with pytest.raises(IndexError):
        dataset[12]


def test_validation_is_the_centre_once_per_file(folder):
    module = DataModule(folder, ["a", "b"], crops_per_volume=5, **OPTIONS)
    first, again = list(module.val_dataloader()), list(module.val_dataloader())
    assert [batch["filenames"] for batch in first] == [["v0.tif"], ["v1.tif"]]
    for k, batch in enumerate(first):
        depth, height, width = SHAPES[k]
        z, y, x = (depth - 6) // 2, (height - 16) // 2, (width - 16) // 2
        values = value(k, SHAPES[k]).astype(np.float32)
        low, high = values.min(), values.max()
        expected = np.moveaxis(values[z : z + 6, y : y + 16, x : x + 16], 0, -1)
        np.testing.assert_allclose(batch["img"][0][0, 0], (expected - low) / (high - low) * 2 - 1, atol=1e-6)
        assert torch.equal(batch["img"][1], again[k]["img"][1])


def test_the_settings_of_an_experiment_make_the_module(folder):
    settings = default_settings(
        MODEL_OPTIONS, "ae0iso0tccutvqq", dataset=folder.name, direction="a_b", workers=0, seed=5, **OPTIONS
    )
    module = DataModule.from_settings(settings, folder.parent)
    assert (module.train_set.directions, module.train_set.seed, module.val_set.root) == (("a", "b"), 5, folder / "val")
    again = DataModule(folder, ["a", "b"], seed=5, **OPTIONS)
    assert torch.equal(module.train_set[3, 1]["img"][1], again.train_set[3, 1]["img"][1])


def test_the_sample_for_pictures_stays_the_same(folder, tmp_path):
    with_validation = DataModule(folder, ["a"], **OPTIONS)
    assert torch.equal(with_validation.sample()["img"][0], with_validation.val_set[0]["img"][0])
    (tmp_path / "train").symlink_to(folder / "train")
    without = DataModule(tmp_path, ["a"], **OPTIONS)
    assert torch.equal(without.sample()["img"][0], with_validation.sample()["img"][0])  # v0.tif is in both


def test_the_sample_for_pictures_is_as_deep_as_asked_and_the_file_allows(folder):
    module = DataModule(folder, ["a"], **OPTIONS)
    (flat,) = module.sample()["img"]
    depth = module.val_set._volume("a", module.val_set.names[0]).shape[0]
    for slices in (flat.shape[-1] + 1, 10**6):
        (deep,) = module.sample(slices)["img"]
        assert deep.shape[:-1] == flat.shape[:-1] and deep.shape[-1] == min(slices, depth) > flat.shape[-1]
    assert module.val_set[0]["img"][0].shape == flat.shape  # what is validated stays


def test_without_a_validation_folder_there_is_no_validation(folder, tmp_path):
    (tmp_path / "train").symlink_to(folder / "train")
    (tmp_path / "val").mkdir()
    module = DataModule(tmp_path, ["a"], **OPTIONS)
    assert module.val_set is None and module.val_dataloader() == []
    (tmp_path / "val" / "a").symlink_to(folder / "val" / "a")
    with pytest.raises(UserError, match=r"val/b is not a folder \(folders there: a\)"):
        DataModule(tmp_path, ["a", "b"], **OPTIONS)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_preloading_changes_nothing_but_the_reading(folder, neighbours):
    lazy, loaded = (make(folder, crops_per_volume=neighbours, neighbours=neighbours, preload=load) for load in (False, True))
    loaded.check()
    assert all(type(volume).__name__ == "ArrayVolume" for volume in loaded._volumes.values())
    for index in range(3 * neighbours):
        for one, two in zip(images(lazy[2, index]), images(loaded[2, index]), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("draw", ["uniform", "content"])
def test_neighbours_are_read_together(folder, draw, monkeypatch):
    monkeypatch.setattr("dataloader.data_multi._TRIED", 1)
    options = {"crops_per_volume": 40, "neighbours": 8, "batch_size": 3, "draw": draw, "rotate": False}
    near, far = (DataModule(folder, ["a", "b"], **OPTIONS | options | {"neighbours": number}) for number in (8, 1))
    asked = {}
    for module in (near, far):
        module.check()
        module.val_set = None
        read = asked[module] = []
        for volume in module.train_set._volumes.values():
            monkeypatch.setattr(volume, "_read", lambda *box, own=volume._read, read=read: read.append(box) or own(*box))
    batches = list(near.train_dataloader())
    assert len(batches) == len(list(far.train_dataloader())) == 40
    assert all(len(set(batch["labels"].tolist())) <= 3 for batch in batches)
    assert len(asked[near]) < len(asked[far]) / 3
    assert len(near.train_set._regions) <= 2 * 3 * 12


def test_preloading_more_than_the_machine_holds_is_refused(folder, monkeypatch):
    monkeypatch.setattr("dataloader.data_multi.total_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"preload keeps .* kB of decoded volumes .* this machine has 1 kB; use --no-preload"):
        make(folder, preload=True).check()
    make(folder).check()


def test_the_record_is_json_and_holds_the_constants(folder):
    record = DataModule(folder, ["a", "b"], **OPTIONS).train_set.intensity_record()
    assert json.loads(json.dumps(record)) == record
    assert (record["nm"], record["nm_clip"], record["dataset"]) == ("11", None, None)
    a, b = record["directions"]["a"], record["directions"]["b"]
    lows, highs = zip(*((int(v.min()), int(v.max())) for v in (value(k, s) for k, s in enumerate(SHAPES))), strict=True)
    assert a["files"] == {f"v{k}.tif": {"low": lows[k], "high": highs[k]} for k in range(3)}
    assert a["pooled"] == {"low": min(lows), "high": max(highs)}
    assert b["pooled"] == {"low": 2 * min(lows), "high": 2 * max(highs)}
    assert a["dtype"] == "uint16"
    assert a["voxel_um"]["v1.tif"] == pytest.approx([4, 0.5, 0.25])


def test_the_transform_of_prepared_data_is_copied_into_the_record(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "train" / "a" / "v.tif", np.zeros((6, 16, 16), np.float32))
    (tmp_path / "dataset.json").write_text('{"transform": {"low": 3}}')
    module = DataModule(tmp_path, ["a"], cropsize=16, cropz=6)
    record = module.train_set.intensity_record()
    assert record["dataset"] == {"transform": {"low": 3}}
    assert record["directions"]["a"]["pooled"] == {"low": -1.0, "high": 1.0}
    assert record["directions"]["a"]["files"] == {}
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json: this record that prepare\.py writes cannot be read"):
        module.train_set.intensity_record()


def test_percentiles_are_remembered(folder):
    dataset = make(folder, nm="01", nm_clip=(5, 95), rotate=False)
    low, high = np.percentile(value(0, SHAPES[0]), (5, 95), method="inverted_cdf")
    assert dataset.intensity_record()["directions"]["a"]["files"]["v0.tif"] == {"low": low, "high": high}
    image = images(dataset[0])[0]
    assert (image.min(), image.max()) == (0, 1)
    assert 0.02 < (image == 0).mean() < 0.09


@pytest.fixture
def broken(tmp_path):
    """A data set to be spoilt: train/a and train/b with one good pair."""
    for direction in "ab":
        (tmp_path / "train" / direction).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "train" / direction / "good.tif", value(0, SHAPES[0]))
    return tmp_path / "train"


def spoil(path, values):
    tifffile.imwrite(path / "a" / "good.tif", values, photometric="minisblack")


def truncate(path):
    file = path / "a" / "good.tif"
    file.write_bytes(file.read_bytes()[:-500])


BAD = {
    "unpaired": (
        lambda p: (p / "b" / "good.tif").rename(p / "b" / "other.tif"),
        r"train/a lacks other\.tif; .*b lacks good\.tif",
    ),
    "empty": (lambda p: (p / "b" / "good.tif").unlink(), r"train/b holds no \*\.tif or \*\.tiff or \*\.url file"),
    "wrong suffix": (lambda p: (p / "b" / "good.tif").rename(p / "b" / "good.png"), r"1 other files, for example good\.png"),
    "no folder": (lambda p: (p / "b").rename(p / "c"), r"train/b is not a folder \(folders there: a, c\)"),
    "unequal": (lambda p: spoil(p, value(0, (9, 41, 30))), r"a/good\.tif is \(9, 41, 30\).*b/good\.tif is \(9, 30, 41\)"),
    "shallow": (lambda p: spoil(p, value(0, (5, 30, 41))), r"a/good\.tif has .*fewer planes than cropz=6"),
    "small": (lambda p: spoil(p, value(0, (9, 30, 15))), r"a/good\.tif has .*smaller in-plane than cropsize=16"),
    "2-D": (lambda p: spoil(p, value(0, (30, 41))), r"a/good\.tif: a 2-D image"),
    "dtype": (lambda p: spoil(p, value(0, SHAPES[0]).astype(np.uint32)), r"a/good\.tif: values of type uint32"),
    "truncated": (truncate, r"a/good\.tif: truncated"),
    "NaN": (lambda p: spoil(p, np.full(SHAPES[0], np.nan, np.float32)), r"a/good\.tif .*NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_and_files_are_named_before_training(name, broken):
    make_bad, message = BAD[name]
    make_bad(broken)
    with pytest.raises(UserError, match=message):
        DataModule(broken.parent, ["a", "b"], **OPTIONS).check()


def test_intensities_outside_the_range_propose_the_normalisation(broken):
    with pytest.raises(UserError, match=r"a/good\.tif: nm=00 expects .*use --nm 11"):
        DataModule(broken.parent, ["a", "b"], cropsize=16, cropz=6).check()


def test_a_rare_bad_voxel_is_found_although_values_are_taken_as_they_are(broken):
    values = np.zeros((9, 120, 120), np.float32)
    values[8, 119, 0] = np.nan  # far from the crop that is tried
    spoil(broken, values)
    with pytest.raises(UserError, match=r"a/good\.tif \(planes 0 to 8\): 1 NaN"):
        DataModule(broken.parent, ["a"], cropsize=16, cropz=6).check()


def test_fewer_samples_than_a_batch_propose_more_crops(broken):
    with pytest.raises(UserError, match=r"1 samples .*batch_size=4\); set crops_per_volume at least 4 times as high"):
        DataModule(broken.parent, ["a", "b"], batch_size=4, **OPTIONS).check()


def test_hidden_files_are_no_volumes(broken):
    (broken / "a" / "._good.tif").write_bytes(b"resource fork of another system")
    assert PairedImageDataset(broken, ["a", "b"], **OPTIONS).names == ["good.tif"]


def test_a_real_volume_thinned_eightfold(tmp_path):
    samples = os.environ.get("ISOSCOPE_SAMPLES") or pytest.skip("ISOSCOPE_SAMPLES is not set")
    (tmp_path / "train" / "x3d0").mkdir(parents=True)
    (tmp_path / "train" / "x3d0" / "fib.tif").symlink_to(Path(samples) / "fibsem_fib25_quickstart.tif")
    module = DataModule(tmp_path, ["x3d0"], cropsize=64, cropz=64, dsp=8, nm="11", crops_per_volume=6, batch_size=2)
    module.check()
    (batch, *_) = module.train_dataloader()
    assert batch["img"][0].shape == (2, 1, 64, 64, 8)
    assert -0.6 < batch["img"][0].mean() < 0.6 and batch["img"][0].std() > 0.1
    assert module.train_set.intensity_record()["directions"]["x3d0"]["pooled"] == {"low": 27.0, "high": 221.0}


def test_nm_00_tolerates_one_voxel_in_a_thousand():
    values = np.linspace(-1.05, 1.05, 2000, dtype=np.float32)
    values[:2] = 3
    check_unit_range(values, "v.tif")
    values[2] = -3
    with pytest.raises(UserError, match=r"v\.tif: nm=00 expects .* 0\.15 % .* \(-3 to 3\); use --nm 11"):
        check_unit_range(values, "v.tif")
    with pytest.raises(UserError, match=r"v\.tif: 2000 NaN"):
        check_unit_range(np.full(2000, np.nan, np.float32), "v.tif")


@pytest.mark.parametrize(
    ("nm", "clip", "message"),
    [
        ("10", None, "known: 00"),
        ("00", (1.0, 99.0), "no effect with nm=00"),
        ("11", (50.0, 50.0), "LOW < HIGH"),
        ("11", (-1.0, 99.0), "LOW < HIGH"),
        ("01", (1.0, 101.0), "LOW < HIGH"),
    ],
)
def test_options_that_make_no_sense_are_refused(nm, clip, message, folder):
    with pytest.raises(UserError, match=message):
        make(folder, nm=nm, nm_clip=clip)
