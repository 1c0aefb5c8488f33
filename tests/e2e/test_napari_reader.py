"""napari's reader: its manifest as npe2 takes it, and layers that are decoded only where one looks."""

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from infer_commands import VOXEL, command
from infer_runs import ROOT, grey

from codes.record import KEY
from codes.store import CodeStore
from inference import decode
from inference.decoding import IsotropicField
from sharing.napari_reader import LazyArray, layers_of, reader_of
from sharing.view import Layer, Place
from utils.checksums import sealed
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

MANIFEST = ROOT / "sharing" / "napari.yaml"


@pytest.fixture(scope="module")
def stores(run, tmp_path_factory):
    """Codes of a volume with voxel sizes, of one without, and of one that is coarse along x."""
    folder = tmp_path_factory.mktemp("stores")
    write_tiff(folder / "in.tif", grey((6, 72, 80)), voxel_um=VOXEL)
    write_tiff(folder / "bare.tif", grey((6, 72, 80)))
    for name, source, more in (("in", "in", []), ("bare", "bare", []), ("thick", "bare", ["--thick", "x"])):
        words = ["--run", run, "--input", folder / f"{source}.tif", "--output", folder / f"{name}.codes.zarr"]
        command("encode", *words, *more)
    return folder


@pytest.mark.filterwarnings("ignore")  # npe2's own
def test_the_manifest_is_valid_and_its_command_reads_a_store(stores):
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    manager = npe2.PluginManager()
    manager.register(manifest)
    manager.activate(manifest.name)
    path = str(stores / "in.codes.zarr")
    (data, about, kind), (codes, _, codes_kind) = npe2.io_utils._read([path], stack=False, _pm=manager)
    assert about["name"] == "in.codes decoded" and (kind, codes_kind) == ("image", "labels")
    assert data.shape == decode(CodeStore.open(path)).shape and codes.shape == (6, 9, 10)
    with pytest.raises(ValueError, match=r"No (compatible )?readers"):
        npe2.io_utils._read([str(stores / "in.tif")], stack=False, _pm=manager)


def test_the_installation_announces_the_manifest():
    import tomllib

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["napari.manifest"]
    module, _, file = EntryPoint("isoscopexx", points["isoscopexx"], "napari.manifest").value.partition(":")
    assert (Path(__import__(module).__file__).parent / file) == MANIFEST


def test_only_code_stores_are_read(stores, tmp_path):
    (tmp_path / "group.zarr").mkdir()
    (tmp_path / "group.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    store = str(stores / "in.codes.zarr")
    assert reader_of(store) is layers_of and reader_of([store, str(stores / "bare.codes.zarr")]) is layers_of
    for other in (str(stores / "in.tif"), str(tmp_path / "group.zarr"), str(tmp_path), str(tmp_path / "none"), []):
        assert reader_of(other) is None
    assert reader_of([store, str(stores / "in.tif")]) is None


def test_planes_are_decoded_where_one_looks_and_once(stores, monkeypatch):
    made, compute = [], IsotropicField.compute
    monkeypatch.setattr(IsotropicField, "compute", lambda self, tiles, seen: made.extend(tiles) or compute(self, tiles, seen))
    (data, about, _), (codes, hidden, _) = layers_of(str(stores / "in.codes.zarr"))
    assert not made and about["visible"] and not hidden["visible"]
    found = {3: data[3], 4: data[4], "yz": np.asarray(data[(slice(None), slice(8, 20), 7)])}
    seen = len(made)
    assert seen == len(set(made)) and np.array_equal(data[4, ...], found[4]) and len(made) == seen
    whole = decode(CodeStore.open(stores / "in.codes.zarr"))
    assert data.dtype == whole.dtype and np.array_equal(found[3], whole[3]) and np.array_equal(found[4], whole[4])
    assert np.array_equal(found["yz"], whole[:, 8:20, 7]) and np.array_equal(np.asarray(data), whole)
    low, high = about["contrast_limits"]
    assert low < high
    assert np.array_equal(
        np.asarray(codes), CodeStore.open(stores / "in.codes.zarr").read((slice(0, 6), slice(0, 9), slice(0, 10))).codes
    )


def test_layers_lie_where_the_stores_say(stores):
    (_, decoded, _), (_, codes, _) = layers_of(str(stores / "in.codes.zarr"))
    volume = open_volume(stores / "in.codes.zarr")
    assert decoded["units"] == codes["units"] == ["um"] * 3
    assert codes["scale"] == pytest.approx(volume.voxel_um) and codes["translate"] == pytest.approx(volume.translation_um)
    assert decoded["scale"] == pytest.approx([VOXEL[1]] * 3, rel=1e-6) or decoded["scale"][1] == pytest.approx(VOXEL[1])
    (_, bare, _), (_, of_codes, _) = layers_of(str(stores / "bare.codes.zarr"))
    assert bare["units"] == ["pixel"] * 3 and bare["scale"][1:] == [1, 1] and of_codes["scale"][1:] == [8, 8]
    assert of_codes["translate"][1:] == [3.5, 3.5]


def test_codes_of_another_thick_axis_are_turned(stores):
    (data, about, _), (codes, of_codes, _) = layers_of(str(stores / "thick.codes.zarr"))
    whole = decode(stores / "thick.codes.zarr")
    assert data.shape == whole.shape and np.array_equal(data[2], whole[2]) and np.array_equal(data[:, 5:9, 40], whole[:, 5:9, 40])
    assert about["scale"][:2] == [1, 1] and of_codes["scale"][:2] == [8, 8] and codes.shape[2] == whole.shape[2] // 8


def test_a_store_without_its_run_says_so(stores, tmp_path):
    shutil.copytree(stores / "in.codes.zarr", tmp_path / "x.codes.zarr")
    file = tmp_path / "x.codes.zarr" / "zarr.json"
    found = json.loads(file.read_text())
    found["attributes"][KEY]["run_path"] = "/no/such/run"
    found["attributes"] = sealed(tmp_path / "x.codes.zarr", found["attributes"])
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match="made by /no/such/run, which is not there"):
        layers_of(str(tmp_path / "x.codes.zarr"))


INDICES = [
    3,
    -1,
    (2, 3, 4),
    (slice(None), 3),
    (..., 5),
    (slice(1, 5), ..., slice(None, None, 3)),
    (slice(None, None, -2), 0, slice(2, 2)),
    ([1, 4], slice(0, 3), 2),
    (np.int64(2), slice(-3, None)),
    slice(4, 100),
]


@pytest.mark.parametrize("key", INDICES, ids=str)
@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_an_array_that_is_read_when_it_is_indexed_selects_as_numpy_does(key, axes):
    values = np.arange(6 * 7 * 8).reshape(6, 7, 8)
    stored = values if axes == "zyx" else np.transpose(values)
    place = Place()
    layer = Layer("a", "grey", stored.shape, stored.dtype, stored.__getitem__, place, place, (0, 1), axes)
    array = LazyArray(layer)
    assert array.shape == values.shape and len(array) == 6 and array.ndim == 3
    assert np.array_equal(array[key], values[key])


def test_an_index_beyond_the_array_is_an_error():
    values = np.zeros((2, 3, 4))
    array = LazyArray(Layer("a", "grey", values.shape, values.dtype, values.__getitem__, None, Place(), (0, 1)))
    for key in (2, -3, (0, 3), (0, 0, 0, 0), (0, [1, 9])):
        with pytest.raises(IndexError, match=r"beyond|too many"):
            array[key]
    assert sum(plane.size for plane in array) == 24
