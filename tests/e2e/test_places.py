"""Where an output lies in its input: the same in its record, its position, its consistency, and in evaluate.py."""

import json

import numpy as np
import pytest
from infer_commands import command, read
from infer_runs import grey, make_run

import evaluate
from codes.store import CodeStore
from evaluation import measure
from evaluation.report import plain
from inference import Options, Run, decode, encode, enhance
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

FIB25 = {"ldmyaml": "vqlocal", "cropz": 32, "dsp": 8, "usp": 4.0, "downbranch": 4, "l1how": "dsp"}
MESOSPIM = {"ldmyaml": "vqlocal", "cropz": 32, "dsp": 4, "downbranch": 2, "l1how": "mean"}


def judged(folder, *arguments):
    """What evaluate.py finds, without the figures, which take most of the time."""
    options = evaluate.build_parser().parse_args([*map(str, arguments), "--output", str(folder)])
    return json.loads(json.dumps(plain(measure.numbers(evaluate.request_of(options), folder)[0])))


@pytest.fixture(scope="module")
def fib25(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("fib25") / "D" / "P", **FIB25)


@pytest.mark.parametrize(("depth", "first"), [(24, 4), (22, 4), (20, 3), (17, 0)])
def test_the_plane_that_is_picked_lets_the_output_begin_where_the_input_begins(fib25, depth, first):
    """F // 2 of F planes, as evaluate.py --thin does; earlier only where the last one would lie beyond the end."""
    volume = grey((depth, 24, 24))
    made, of_picked = enhance(fib25, volume), enhance(fib25, volume[first::8], Options(dsp=1))
    assert len(made) == 2 * np.ceil(depth / 2)
    np.testing.assert_array_equal(made, of_picked[: len(made)])


def test_an_output_lies_on_its_input_and_is_judged_there(fib25, tmp_path):
    write_tiff(tmp_path / "v.tif", grey((24, 24, 24)))
    command("enhance", "--run", fib25, "--input", tmp_path / "v.tif", "--output", tmp_path / "out.ome.tif")
    about = open_volume(tmp_path / "out.ome.tif").attributes
    assert about["place"] == {"origin": [0, 0, 0], "step": [1, 1, 1]}
    assert about["slices"] == {"first": 1, "spacing": 2, "thinned": 8, "how": "pick", "first_kept": 4}
    found = judged(tmp_path, "--reconstruction", tmp_path / "out.ome.tif", "--truth", tmp_path / "v.tif", "--thin", "8")
    assert (found["alignment"]["input"]["first_plane"], found["alignment"]["reconstruction"]["first_plane"]) == (4, 0)
    assert not any("command line" in note for note in found["notes"])


def test_evaluate_simulates_the_planes_that_the_run_saw(fib25, tmp_path):
    write_tiff(tmp_path / "v.tif", grey((20, 24, 24)))
    command("enhance", "--run", fib25, "--input", tmp_path / "v.tif", "--output", tmp_path / "out.ome.tif")
    arguments = ("--reconstruction", tmp_path / "out.ome.tif", "--truth", tmp_path / "v.tif")
    found = judged(tmp_path, *arguments, "--thin", "8")
    assert found["alignment"]["input"]["first_plane"] == 3 and found["alignment"]["reconstruction"]["first_plane"] == -1
    assert found["grid"]["region"][0] == [0, 19]
    found = judged(tmp_path, *arguments, "--thin", "4")
    assert any("2 + k·4, but the reconstruction records" in note and "3 + k·8" in note for note in found["notes"])


@pytest.fixture(scope="module")
def mesospim(tmp_path_factory):
    """A run whose slices are means, an input without a voxel size of which it picks planes, and the output."""
    folder = tmp_path_factory.mktemp("mesospim")
    run = make_run(folder / "D" / "P", **MESOSPIM)
    write_tiff(folder / "v.tif", grey((24, 24, 24)))
    command("enhance", "--run", run, "--input", folder / "v.tif", "--output", folder / "out.ome.zarr", "--consistency")
    return folder, run


def test_half_a_plane_that_is_left_is_recorded_said_and_used(mesospim, tmp_path, caplog):
    folder, run = mesospim
    assert open_volume(folder / "out.ome.zarr").attributes["place"]["origin"] == [0.5, 0, 0]
    assert open_volume(folder / "out_consistency.ome.zarr").attributes["place"] == {"origin": [2, 0, 0], "step": [4, 1, 1]}
    caplog.set_level("INFO")
    command(
        "enhance", "--run", run, "--input", folder / "v.tif", "--output", tmp_path / "part.ome.tif", "--region", "4:12,8:24,0:16"
    )
    assert "plane k lies at plane 4.5 + k·1 of the input, row and column 0 at 8, 0" in caplog.text
    for truth in ("--truth", "--input"):
        found = judged(tmp_path, "--reconstruction", folder / "out.ome.zarr", truth, folder / "v.tif")
        place = found["alignment"]["reconstruction" if truth == "--truth" else "input"]
        assert place["first_plane"] == (0.5 if truth == "--truth" else -0.5) and "records it" in place["how"]
    found = judged(tmp_path, "--reconstruction", tmp_path / "part.ome.tif", "--truth", folder / "v.tif")
    assert found["grid"]["region"] == [[5, 12], [8, 24], [0, 16]]


def test_without_options_evaluate_takes_what_the_output_knows(fib25, tmp_path):
    truth = grey((24, 24, 24))
    write_tiff(tmp_path / "truth.tif", truth)
    write_tiff(tmp_path / "raw.tif", truth[4::8])
    words = ("--run", fib25, "--input", tmp_path / "raw.tif", "--dsp", 1)
    command("enhance", *words, "--output", tmp_path / "out.ome.tif")
    given = ("--reconstruction", tmp_path / "out.ome.tif", "--truth", tmp_path / "truth.tif", "--input", tmp_path / "raw.tif")
    known = judged(tmp_path, *given)
    assert known["alignment"]["input"]["first_plane"] == 4 and known["alignment"]["input"]["planes_per_section"] == 8
    stated = judged(tmp_path, *given, "--input-position", "pick", "--factor", "8")
    assert stated["volumes"] == known["volumes"] and not any("command line" in note for note in stated["notes"])
    other = judged(tmp_path, *given, "--input-position", "average", "--factor", "8")
    assert other["alignment"]["input"]["first_plane"] == 3.5
    assert any("3.5 + k·8, but the reconstruction records that it was made of sections at 4 + k·8" in n for n in other["notes"])


def test_a_code_store_hands_the_place_on_and_an_old_one_does_not_invent_it(mesospim, tmp_path):
    folder, path = mesospim
    run = Run.load(path)
    store = encode(run, folder / "v.tif", tmp_path / "v.codes.zarr")
    decode(store, run, output=tmp_path / "out.ome.zarr")
    decode(store, run, grid="raw", output=tmp_path / "raw.ome.zarr")
    assert open_volume(tmp_path / "out.ome.zarr").attributes["place"]["origin"] == [0.5, 0, 0]
    assert open_volume(tmp_path / "raw.ome.zarr").attributes["place"] == {"origin": [2, 0, 0], "step": [4, 1, 1]}
    np.testing.assert_array_equal(read(tmp_path / "out.ome.zarr"), read(folder / "out.ome.zarr"))
    old = CodeStore(store.path, {key: value for key, value in store.about.items() if key != "slices"}, store.shape)
    decode(old, run, output=tmp_path / "old.ome.zarr")
    assert not {"place", "slices"} & open_volume(tmp_path / "old.ome.zarr").attributes.keys()
    found = judged(tmp_path, "--reconstruction", tmp_path / "old.ome.zarr", "--truth", folder / "v.tif")
    assert found["alignment"]["reconstruction"]["how"] == "equal shapes: compared voxel by voxel"


def test_consistency_is_one_number_in_enhance_and_evaluate(tmp_path):
    """Of grey values from 0 to 1000, as the run knows them, whatever this input has."""
    run = make_run(tmp_path / "D" / "P", l1how="mean")
    write_tiff(tmp_path / "raw.tif", grey((3, 24, 24), high=600))
    command("enhance", "--run", run, "--input", tmp_path / "raw.tif", "--output", tmp_path / "out.ome.tif", "--consistency")
    given = ("--reconstruction", tmp_path / "out.ome.tif", "--input", tmp_path / "raw.tif")
    ours = json.loads((tmp_path / "out_consistency.json").read_text())["channels"][0]
    document = judged(tmp_path, *given)
    theirs = document["volumes"]["reconstruction"]["consistency"]["average"]
    assert theirs["rmse"] == pytest.approx(ours["rmse"], rel=1e-5)
    assert theirs["psnr_db"] == pytest.approx(ours["psnr_db"], abs=1e-3) and theirs["data_range"] == ours["peak"] == 1000
    assert any(f"{ours['psnr_db']:.1f} dB (1000 grey values)" in sentence for sentence in document["verdict"]["sentences"])
    stated = judged(tmp_path, *given, "--data-range", "600")["volumes"]["reconstruction"]["consistency"]["average"]
    assert stated["data_range"] == 600


def test_the_volume_first_or_the_run(fib25, tmp_path):
    volume = grey((16, 24, 24))
    write_tiff(tmp_path / "v.tif", volume)
    file, run = tmp_path / "v.tif", str(fib25)
    expected = enhance(volume, run=run)
    for given in ((fib25, volume), (file, run), (run, str(file)), (volume, Run.load(fib25))):
        np.testing.assert_array_equal(enhance(*given), expected)
    store = encode(file, run=fib25, output=tmp_path / "v.codes.zarr")
    np.testing.assert_array_equal(decode(store), expected)
    with pytest.raises(UserError, match="a volume and a run are needed, not a ndarray and a ndarray"):
        enhance(volume, volume)


@pytest.mark.parametrize(("thick", "axes"), [("x", (2, 1, 0)), ("y", (1, 0, 2))])
def test_a_thick_axis_that_is_not_z_is_judged_alike(fib25, thick, axes, tmp_path):
    """From the record of the output; or from --thick, of baselines alone."""
    truth = grey((24, 32, 40))
    box = (slice(2, 22), slice(3, 32), slice(0, 33))
    found = {}
    for name, order in (("z", (0, 1, 2)), (thick, axes)):
        write_tiff(tmp_path / f"truth_{name}.tif", np.ascontiguousarray(truth.transpose(order)))
        write_tiff(tmp_path / f"raw_{name}.tif", np.ascontiguousarray(truth[4::8].transpose(order)))
        words = ("--run", fib25, "--input", tmp_path / f"raw_{name}.tif", "--dsp", 1, "--thick", name)
        command("enhance", *words, "--output", tmp_path / f"out_{name}.ome.tif")
        region = ",".join(f"{box[axis].start}:{box[axis].stop}" for axis in order)
        given = [
            "--truth",
            tmp_path / f"truth_{name}.tif",
            "--region",
            region,
            "--voxel",
            ",".join(str(1 + axis) for axis in order),
        ]
        whole = ["--reconstruction", tmp_path / f"out_{name}.ome.tif", "--input", tmp_path / f"raw_{name}.tif"]
        found[name] = [judged(tmp_path, *given, *whole), judged(tmp_path, *given, "--thin", "8", "--thick", name)]
    for one, other in zip(found["z"], found[thick], strict=True):
        assert one["volumes"] == other["volumes"] and one["grid"] == other["grid"]
        assert one["alignment"].keys() == other["alignment"].keys()
        assert any(f"thick axis of the files is {thick}" in note for note in other["notes"])
    with pytest.raises(UserError, match=f"--thick z: .* records {thick} as its thick axis"):
        judged(tmp_path, "--reconstruction", tmp_path / f"out_{thick}.ome.tif", "--input", tmp_path / "raw_z.tif", "--thick", "z")
