"""Code stores that are damaged, incomplete or crafted: one clear error, nothing written, nothing outside of them read."""

import json
import shutil

import numpy as np
import pytest
import zarr
from infer_commands import refused
from infer_runs import grey, make_run

from codes.store import CodeTarget, Packed
from inference import Options, Run, decode, encode
from tests.forks import script
from tests.unit.codes.test_coded_store import smooth
from utils.checksums import sealed
from utils.errors import UserError, printable
from volumes.open import open_volume

KEY = "isoscope_codes"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 20 x 31 x 31 codes in shards, neighbours alike so that a model of them pays, and the run that made it."""
    root = tmp_path_factory.mktemp("stores")
    run = Run.load(make_run(root / "D" / "P"))
    record = encode(grey((4, 32, 32)), run, root / "small.codes.zarr").about
    book, shape = run.codebook(), [20, 31, 31]
    codes = smooth(shape, book[0]).astype(np.uint8)
    background = np.zeros(shape, bool)
    background[0, 0, 0] = True
    target = CodeTarget(root / "x.codes.zarr", {**record, "shape": shape, "inner": [248, 248]}, book)
    for box in target.units:
        target.write(box, Packed(codes[box], background[box]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codes.store.FEW", 0)
        target.finish()
    seal = sealed(root, {}).keys()  # it would name every change of metadata first; who crafts a store leaves it out
    edited(root / "x.codes.zarr" / "zarr.json", lambda group: [group["attributes"].pop(key) for key in seal])
    return run.path, root / "x.codes.zarr"


def edited(file, change):
    """JSON changed in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def says(**changes):
    """A record that says something else; ``...`` is nothing."""

    def change(group):
        about = group["attributes"][KEY]
        about |= {key: value for key, value in changes.items() if value is not ...}
        for key in [key for key, value in changes.items() if value is ...]:
            del about[key]

    return lambda store: edited(store / "zarr.json", change)


def array(**changes):
    """Metadata of an array that say something else."""
    return lambda store: edited(store / "codes" / "zarr.json", lambda metadata: metadata.update(changes))


def sharding(**changes):
    return lambda store: edited(
        store / "codes" / "zarr.json", lambda metadata: metadata["codecs"][0]["configuration"].update(changes)
    )


def inner(**changes):
    """The codec of the codes themselves."""
    return lambda store: edited(
        store / "codes" / "zarr.json", lambda metadata: metadata["codecs"][0]["configuration"]["codecs"][0].update(changes)
    )


def flipped(name, place=0.5):
    def harm(store):
        data = bytearray((store / name).read_bytes())
        data[int(place * len(data))] ^= 16
        (store / name).write_bytes(data)

    return harm


def cut(name, share=0.5):
    return lambda store: (store / name).write_bytes((store / name).read_bytes()[: int(share * (store / name).stat().st_size)])


def gone(name):
    return lambda store: shutil.rmtree(store / name) if (store / name).is_dir() else (store / name).unlink()


def linked(name):
    """A file of the store is a link to one elsewhere."""

    def harm(store):
        elsewhere = store.parent / "secret"
        shutil.move(store / name, elsewhere)
        (store / name).symlink_to(elsewhere)

    return harm


def with_codes_up_to(top):
    """The same arrays, uncompressed by any model, with another code in them."""

    def harm(store):
        shape = json.loads((store / "codes" / "zarr.json").read_text())["shape"]
        shutil.rmtree(store / "codes")
        zarr.create_array(store / "codes", data=np.full(shape, top, np.uint16), shards=shape, chunks=shape)

    return harm


SHARD = "codes/c/0/0/0"
TABLE = {
    "a flipped byte": (flipped(SHARD, 0.3), r"codes cannot be read .*damaged"),
    "a flipped byte, background": (flipped("empty/c/0/0/0", 0.1), r"empty cannot be read .*damaged"),
    "a flipped byte, index": (flipped(SHARD, 0.99), r"codes cannot be read .*damaged"),
    "a shard cut short": (cut(SHARD), r"codes cannot be read .*damaged"),
    "an empty shard": (cut(SHARD, 0), r"codes cannot be read .*damaged"),
    "a missing shard": (gone(SHARD), r"codes cannot be read .*c/0/0/0 is missing"),
    "a missing shard, background": (gone("empty/c/0/0/0"), r"empty cannot be read .*c/0/0/0 is missing"),
    "a missing array": (gone("codes"), r"codes cannot be read"),
    "no metadata": (gone("zarr.json"), r"is not a code store"),
    "metadata cut short": (cut("zarr.json"), r"is not a code store"),
    "metadata of an array cut short": (cut("codes/zarr.json"), r"codes cannot be read"),
    "no object": (lambda store: (store / "zarr.json").write_text("[]"), r"is not a code store"),
    "nested a thousand times": (lambda store: (store / "zarr.json").write_text("[" * 10**5), r"is not a code store"),
    "attributes are a list": (lambda s: edited(s / "zarr.json", lambda g: g.update(attributes=[])), r"is not a code store"),
    "the record is a list": (
        lambda s: edited(s / "zarr.json", lambda g: g["attributes"].update({KEY: [1]})),
        r"of version None",
    ),
    "a newer version": (says(version=99), r"is of version 99, this program reads 1 to 7"),
    "a version that is text": (says(version="\x1b[2J"), r"is of version"),
    "another kind": (says(kind="wavelet"), r"its kind is 'wavelet'"),
    "a kind that is a list": (says(kind=[]), r"its kind is \[\]"),
    "a billion levels": (says(levels=10**9), r"its levels is 1000000000 and must be 1 to 64"),
    "levels that are not there": (says(levels=3), r"says \(3, 256, 4\)"),
    "levels that are true": (says(levels=True), r"its levels is True"),
    "no shape": (says(shape=...), r"its shape is missing"),
    "a negative size": (says(shape=[20, -6, 31]), r"its shape is"),
    "a size of text": (says(shape="abc"), r"its shape is 'abc'"),
    "sizes of another store": (says(shape=[40, 31, 31]), r"it has \(20, 31, 31\) uint8 .*where \(40, 31, 31\)"),
    "no run_path": (says(run_path=None), r"its run_path is None"),
    "run_path gone": (says(run_path=...), r"does not say its run_path"),
    "a run_path of another kind": (says(run_path=[1]), r"its run_path is \[1\]"),
    "another run": (says(run_path="/nowhere"), r"was made by /nowhere, which is not there"),
    "no epoch": (says(epoch="last"), r"its epoch is 'last'"),
    "no weights": (says(weights=None), r"its weights is None"),
    "other weights": (says(weights="00" * 32), r"encoded with other weights"),
    "another codebook": (says(codes=128), r"says \(1, 128, 4\) levels"),
    "background of text": (says(background="no"), r"its background is 'no'"),
    "background that is missing": (gone("empty"), r"empty cannot be read"),
    "no factor": (says(factor=0), r"its factor is 0"),
    "no input": (says(input=None), r"its input is None"),
    "another dtype": (says(dtype="float64"), r"its dtype is 'float64'"),
    "a dtype for outputs": (says(output_dtype="object"), r"must be a type of values"),
    "voxels of text": (says(slice_voxel_um=["a", 1, 1]), r"its slice_voxel_um"),
    "intensities": (says(intensities={"a": 1}), r"its intensities"),
    "a lattice": (says(lattice=3), r"its lattice is 3"),
    "chunks of size 0": (sharding(chunk_shape=[0, 0, 0]), r"codes cannot be read"),
    "chunks that fill memory": (sharding(chunk_shape=[2**20] * 3), r"codes cannot be read"),
    "shards of size 0": (
        array(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [0, 0, 0]}}),
        r"codes cannot be read",
    ),
    "another shape": (array(shape=[10**9, 31, 31]), r"codes cannot be read .*it has \(1000000000, 31, 31\)"),
    "another type": (array(data_type="float64"), r"codes cannot be read"),
    "a codec that is not installed": (inner(name="isoscopexx.later"), r"isoscopexx.later.*which this program does not have"),
    "another table": (inner(configuration={"codes": 4, "rank": 1, "numbers": "AAAA"}), r"codes cannot be read"),
    "a table that is none": (inner(configuration={}), r"codes cannot be read .*without codes, numbers, rank"),
    "a code beyond the codebook": (
        lambda s: (with_codes_up_to(300)(s), says(dtype="uint16")(s)),
        r"the code 300, and there are 256",
    ),
    "a link out, codes": (linked(SHARD), r"is a link that leads out of the store"),
    "a link out, metadata": (linked("zarr.json"), r"is a link that leads out of the store"),
    "a link out, an array": (linked("codes"), r"is a link that leads out of the store"),
}


@pytest.mark.parametrize("what", TABLE)
def test_it_is_named(made, tmp_path, what):
    run, whole = made
    harm, said = TABLE[what]
    store = shutil.copytree(whole, tmp_path / "x.codes.zarr")
    harm(store)
    before = sorted((path, path.lstat().st_size) for path in store.rglob("*"))
    named = () if "run" in what or "epoch" in what else ("--run", run)
    refused(said, "decode", "--codes", store, *named, "--output", tmp_path / "o.ome.tif", "--region", "0:16,0:64,0:64")
    assert sorted((path, path.lstat().st_size) for path in store.rglob("*")) == before
    assert not (tmp_path / "o.ome.tif").exists()


def test_what_is_whole_is_read_beside_the_damage(made, tmp_path):
    run, whole = made
    store = shutil.copytree(whole, tmp_path / "x.codes.zarr")
    flipped(SHARD, 0.1)(store)  # in the first chunk, 16 x 16 x 16 of 2 x 2 x 2
    region = Options(region=(slice(152, 160), slice(232, 248), slice(232, 248)), tile=8)
    with pytest.raises(UserError, match="damaged"):
        decode(store, run, grid="raw")
    np.testing.assert_array_equal(decode(store, run, options=region), decode(whole, run, options=region))


def test_a_whole_store_behind_a_link_is_read(made, tmp_path):
    run, whole = made
    (tmp_path / "here.codes.zarr").symlink_to(whole)
    region = Options(region=(slice(0, 8), slice(0, 8), slice(0, 8)), tile=8)
    np.testing.assert_array_equal(decode(tmp_path / "here.codes.zarr", run, options=region), decode(whole, run, options=region))


def test_no_escape_sequence_reaches_the_terminal(made, tmp_path):
    store = shutil.copytree(made[1], tmp_path / "x.codes.zarr")
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    says(run=evil)(store)
    for words in (["info", store], ["decode", "--codes", store, "--output", tmp_path / "o.tif", "--run", tmp_path / evil[:9]]):
        done = script(tmp_path, "infer.py", *words)
        assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr and "\\x1b]0;owned" in done.stdout + done.stderr
    assert printable("a\tb\nµ — 中\x1b\x7f\r") == "a\tb\nµ — 中\\x1b\\x7f\\r"


def test_a_volume_is_not_read_from_outside_its_folder(tmp_path):
    inside, outside = tmp_path / "a.ome.zarr", tmp_path / "b.zarr"
    zarr.create_array(outside, data=np.zeros((2, 3, 4), np.uint8))
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    for name in ("../b.zarr", str(outside), "link"):
        datasets = [{"path": name, "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
        ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
        inside.mkdir(exist_ok=True)
        (inside / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}))
        if name == "link" and not (inside / name).exists():
            (inside / name).symlink_to(outside)
        with pytest.raises(UserError, match="outside of it, which is not followed"):
            open_volume(inside)
