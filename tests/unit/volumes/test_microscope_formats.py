"""CZI, LIF and ND2 through open_volume: values, places, choices and damage; see microscope_files for what these files are."""

import json
import pickle
import sys

import numpy as np
import pytest
from microscope_files import CHANNELS, SCENES, SHAPE, TIMES, VOXEL_UM, values, write_czi, write_lif, write_nd2

import infer
import prepare
from inference import inputs_and_outputs
from intensity.transform import IntensityTransform
from utils.errors import UserError
from volumes.open import expand_inputs, open_volume

WRITERS = {".czi": write_czi, ".lif": write_lif, ".nd2": write_nd2}
FORMATS = sorted(WRITERS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("microscopes")
    return {suffix: write(folder / f"many{suffix}", values()) for suffix, write in WRITERS.items()}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("scene", "time", "channel"), [(0, 0, 0), (1, 0, 2), (0, 1, 1), (1, 1, 2)])
def test_the_chosen_volume_is_read(files, suffix, scene, time, channel):
    volume = open_volume(files[suffix], scene=scene, time=time, channel=channel)
    expected = values()[scene, time, channel]
    assert (volume.shape, volume.dtype, volume.channels, volume.times) == (SHAPE, np.dtype("uint16"), CHANNELS, TIMES)
    np.testing.assert_array_equal(volume[:], expected)
    np.testing.assert_array_equal(volume[1:4:2, 1:3, 2:5], expected[1:4:2, 1:3, 2:5])


@pytest.mark.parametrize("suffix", FORMATS)
def test_voxel_sizes_are_those_of_the_file(files, suffix):
    y = VOXEL_UM[1]
    expected = (VOXEL_UM[0], y, y) if suffix == ".nd2" else VOXEL_UM  # ND2 knows square pixels only
    assert open_volume(files[suffix], scene=0, time=0, channel=0).voxel_um == pytest.approx(expected)


@pytest.mark.parametrize("suffix", FORMATS)
def test_volumes_can_be_sent_to_another_process(files, suffix):
    volume = pickle.loads(pickle.dumps(open_volume(files[suffix], scene=1, time=1, channel=1)))
    np.testing.assert_array_equal(volume[2:3], values()[1, 1, 1, 2:3])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({}, f"{SCENES} scenes.*choose one scene"),
        ({"scene": 0}, f"{CHANNELS} channels; choose one channel"),
        ({"scene": 0, "channel": 0}, f"{TIMES} time points; choose one time point"),
        ({"scene": SCENES}, f"scene {SCENES} of {SCENES}"),
        ({"scene": 0, "channel": 5}, f"channel 5 of {CHANNELS}"),
    ],
)
def test_a_choice_is_asked_for(files, suffix, chosen, message):
    with pytest.raises(UserError, match=message):
        open_volume(files[suffix], **chosen)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_one_volume_needs_no_choice(tmp_path, suffix, dtype):
    array = values(dtype)[:1, :1, :1]
    volume = open_volume(WRITERS[suffix](tmp_path / f"one{suffix}", array))
    np.testing.assert_array_equal(volume[:], array[0, 0, 0])
    assert volume.dtype == np.dtype(dtype)


def test_mosaic_is_put_together(tmp_path):
    array = values()[:1, :1, :1]
    volume = open_volume(write_czi(tmp_path / "mosaic.czi", array, split=3))
    np.testing.assert_array_equal(volume[:, 1:4, 2:6], array[0, 0, 0][:, 1:4, 2:6])


def test_sizes_that_are_not_stated_are_unknown(tmp_path):
    assert open_volume(write_czi(tmp_path / "bare.czi", values()[:1, :1, :1], voxel_um=None)).voxel_um is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_flat_images_are_refused(tmp_path, suffix):
    path = WRITERS[suffix](tmp_path / f"flat{suffix}", values()[:1, :1, :1, :1])
    with pytest.raises(UserError, match="2-D image"):
        open_volume(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("damage", ["noise", "truncated"])
def test_damage_is_named(tmp_path, files, suffix, damage):
    whole = files[suffix].read_bytes()
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(whole[: len(whole) // 3] if damage == "truncated" else np.random.default_rng(0).bytes(5000))
    with pytest.raises(UserError, match=rf"damaged{suffix}"):
        open_volume(path, scene=0, time=0, channel=0)[:]


@pytest.mark.parametrize(("suffix", "package"), [(".czi", "pylibCZIrw"), (".lif", "liffile"), (".nd2", "nd2")])
def test_missing_packages_are_named(files, suffix, package, monkeypatch):
    for name in [*(name for name in sys.modules if name.split(".")[0] == package), package, f"{package}.czi"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs the package {package}.*pip install -e '\.\[formats\]'"):
        open_volume(files[suffix], scene=0, time=0, channel=0)


def test_folders_of_them_are_found(files):
    folder = next(iter(files.values())).parent
    assert expand_inputs([folder]) == [files[suffix] for suffix in FORMATS]


def test_scenes_of_other_files_are_refused(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(UserError, match="scene 1 of 1"):
        open_volume(tmp_path / "a.tif", scene=1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_prepare_takes_them(files, tmp_path, suffix):
    prepare.main(
        [
            "volumes",
            "--data_root",
            str(tmp_path),
            "--dataset",
            "X",
            "--input",
            str(files[suffix]),
            "--direction",
            "a_b",
            "--scene",
            "1",
            "--time",
            "0",
            "--channel",
            "2",
            "0",
            "--val",
            "0",
        ]
    )
    record = json.loads((tmp_path / "X" / "dataset.json").read_text())["directions"]
    written = open_volume(next((tmp_path / "X" / "train" / "b").glob("*.tif")))
    transform = IntensityTransform.from_json(record["b"]["sources"][0]["transform"])
    np.testing.assert_allclose(transform.invert(written[:]), values()[1, 0, 0], atol=1e-3)
    assert written.voxel_um == pytest.approx(open_volume(files[suffix], scene=1, time=0, channel=0).voxel_um)


@pytest.mark.parametrize("suffix", FORMATS)
def test_infer_takes_them(files, tmp_path, suffix):
    chosen = ["--scene", "1", "--time", "1", "--channel", "2"]
    given = infer.build_parser().parse_args(
        ["enhance", "--run", "R", "--input", str(files[suffix]), "--output", str(tmp_path / "out.tif"), *chosen]
    )
    which = {name: getattr(given, name) for name in ("channel", "time", "scene", "level")}
    [([volume], _)] = inputs_and_outputs(1, given.input, given.output, given.format, **which)
    np.testing.assert_array_equal(volume[:], values()[1, 1, 2])


@pytest.mark.parametrize(("write", "name"), [(write_czi, "v.czi"), (write_lif, "v.lif"), (write_nd2, "v.nd2")])
def test_sides_that_no_image_has_are_refused_before_room_is_made_for_them(write, name, tmp_path, monkeypatch):
    write(tmp_path / name, values()[:1, :1, :1])
    open_volume(tmp_path / name)
    monkeypatch.setattr("volumes.microscope_formats.LONGEST", min(SHAPE))
    with pytest.raises(UserError, match=r"states the shape \(.*damaged, copy it again"):
        open_volume(tmp_path / name)
