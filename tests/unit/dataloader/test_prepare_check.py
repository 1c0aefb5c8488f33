"""``prepare.py check``: faults of files, anisotropy, recommendation, needs, pictures."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

import prepare
from dataloader.check import summarised
from dataloader.data_multi import PairedImageDataset
from dataloader.survey import Surveyed, contact_sheet, survey
from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings
from experiment.runs import RunFolder
from models.options import MODEL_OPTIONS
from training.requirements import training_requirements
from utils.boxes import boxes
from volumes.volume import ArrayVolume
from writing.write import write_tiff

SMALL = {
    "models": "ae0iso0tccutvqq",
    "dataset": "X",
    "nm": "11",
    "cropsize": 32,
    "cropz": 4,
    "ldmyaml": "vqgan_small",
    "ngf": 16,
    "ndf": 16,
    "perceptual_weight": 0,
    "n_epochs": 10,
    "epoch_save": 5,
}


def cells(seed, shape=(12, 48, 40)):
    blurred = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return (1000 + 4000 * np.clip(blurred / blurred.std(), 0, None)).astype(np.uint16)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with an experiment and two training files of 8-fold anisotropy."""
    (tmp_path / "env" / "jsn").mkdir(parents=True)
    (tmp_path / "env" / "env").write_text(json.dumps({"local": {"LOGS": "logs", "DATASET": "data"}}))
    (tmp_path / "env" / "jsn" / "x.json").write_text(json.dumps({"train": SMALL}))
    shutil.copytree(prepare.REPOSITORY / "ldm", tmp_path / "ldm", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for k in range(2):
        place(tmp_path, f"v{k}.tif", cells(k))
    monkeypatch.setattr(prepare, "REPOSITORY", tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Without the sheets of pictures, which take longer than the rest."""
    monkeypatch.setattr("dataloader.check.write_sheets", lambda *_: [])


def place(repository, name, values, direction="x3d0", voxel_um=(2.0, 0.25, 0.25)):
    path = repository / "data" / "X" / "train" / direction / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(path, values, voxel_um=voxel_um)
    return path


def check(*options):
    prepare.main(["check", "--jsn", "x", *map(str, options)])


def refused(capsys, *options):
    with pytest.raises(SystemExit) as end:
        check(*options)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_good_data(repository, caplog):
    caplog.set_level("INFO")
    check()
    for part in (
        "train/x3d0/v0.tif: 12 × 48 × 40 (Z, Y, X), 2 × 0.25 × 0.25 µm, uint16",
        "anisotropy: axial over lateral resolution length",
        "recommended: --dsp 1 --l1how max --cropsize 32 --cropz 4",
        "so 8 planes per slice",
        "disc: about",
        "memory: at least",
    ):
        assert part in caplog.text
    report = repository / "logs" / "X" / "check"
    content = json.loads((report / "check.json").read_text())
    assert content["problems"] == [] and content["factor"] == 8 and len(content["files"]) == 2
    with Image.open(report / "contact_sheet_x3d0.png") as picture:
        assert picture.width == 1500 and np.asarray(picture).std() > 20


def test_more_data_than_the_machine_holds(repository, undrawn, monkeypatch, capsys):
    monkeypatch.setattr("dataloader.data_multi.total_memory", lambda: 1000)
    assert "use --no-preload" in refused(capsys, "--preload")
    check("--no-preload")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("grey", [[], ["--nm_clip", "1", "99"], ["--preload"], ["--nm", "00"]])
def test_every_voxel_is_read_once(repository, undrawn, voxels_read, dtype, grey):
    """Statistics, spectra, pictures and the range that a training maps: one scan; under nm 00 crops are tried besides."""
    scale, crop = (16000.0, 4 * 32 * 32) if "00" in grey else (1, 0)
    for k in range(2):
        place(repository, f"v{k}.tif", ((cells(k) - 1000) // scale if dtype == "uint16" else cells(k) / scale).astype(dtype))
    assert voxels_read(lambda: check("--no-rotate", *grey)) == 2 * (12 * 48 * 40 + crop)


@pytest.mark.parametrize("clip", [None, (0.5, 99)])
def test_the_scan_finds_the_ranges_that_a_training_finds(repository, clip):
    place(repository, "float.tif", cells(7).astype(np.float32) / 3)
    root = repository / "data" / "X"
    files, _ = survey(root, {"direction": "x3d0", "nm": "11", "nm_clip": clip})
    data = PairedImageDataset(root / "train", ["x3d0"], cropsize=32, cropz=4, nm="11", nm_clip=clip)
    assert {file.volume.path.name: {"low": file.ends[0], "high": file.ends[1]} for file in files} == (
        data.intensity_record()["directions"]["x3d0"]["files"]
    )


@pytest.mark.parametrize("nm", ["00", "11"])
def test_a_hole_at_the_end_of_a_large_file_is_found(repository, capsys, monkeypatch, nm):
    monkeypatch.setattr("dataloader.survey._READ", 2**14)
    monkeypatch.setattr("volumes.volume.Volume.blocks", lambda self, voxels=0: boxes(self.shape, (1, *self.shape[1:])))
    values = cells(5).astype(np.float32) / 16000
    values[-1, -1, -1] = np.nan
    path = place(repository, "holes.tif", values)
    assert f"{path}: 1 NaN or infinite voxels" in refused(capsys, "--nm", nm)


def test_planes_per_slice_that_do_not_divide_the_measured_crop(repository, undrawn, caplog):
    caplog.set_level("INFO")
    check("--models", "IsoREF", "--cropsize", "40", "--cropz", "8", "--nocyc")
    assert "memory: at least" in caplog.text


def test_what_a_training_on_a_lateral_run_takes(repository, undrawn, capsys, caplog):
    """It is counted with the network of that run, which is looked for where a training looks."""
    caplog.set_level("INFO")
    assert "neither lateral nor" in refused(capsys, "--from_teacher", "--teacher", "lateral", "--nocut", "--ldmyaml", "vqlinear")
    known = default_settings(MODEL_OPTIONS, "lateral", dataset="X", nm="11", uprate=8, ngf=4, blocks=1)
    run = RunFolder(repository / "logs" / "lateral")
    run.path.mkdir(parents=True)
    run.write_settings({**known, "given": {}, "autoencoder": None})
    check("--from_teacher", "--teacher", "lateral", "--ldmyaml", "vqlinear")
    assert "as in the teacher lateral: direction x3d0, l1how dsp" in caplog.text and "memory: at least" in caplog.text


def test_faults_of_files_are_named(repository, caplog, tmp_path):
    caplog.set_level("INFO")
    place(repository, "empty.tif", np.full((12, 48, 40), 7, np.uint16))
    place(repository, "saturated.tif", np.minimum(cells(3), 3000))
    hot = cells(4) // 2 + np.uint16(500)
    hot[3, 4, 5] = 65535
    place(repository, "hot.tif", hot)
    check("--report", tmp_path / "there")
    assert "empty: every voxel is 7" in caplog.text
    assert "have the largest value 3000: saturated or clipped" in caplog.text
    assert "values reach from 1000 to 65535" in caplog.text and "--nm_clip 0.01 99.99" in caplog.text
    assert (tmp_path / "there" / "contact_sheet_x3d0.png").is_file()


def test_what_would_stop_a_training_ends_the_check_after_everything_else(repository, undrawn, capsys, caplog):
    caplog.set_level("INFO")
    assert "use --nm 11" in refused(capsys, "--nm", "00")
    assert "Try" in refused(capsys, "--cropz", "5") and "recommended: --dsp 1" in caplog.text
    holes = cells(5).astype(np.float32)
    holes[1, 2, 3] = np.nan
    path = place(repository, "holes.tif", holes)
    assert f"{path}: 1 NaN or infinite voxels" in refused(capsys)
    path.write_bytes(path.read_bytes()[:2000])
    assert "holes.tif" in refused(capsys)
    path.unlink()
    place(repository, "v0.tif", cells(0), "x3d1")
    assert "lacks v1.tif" in refused(capsys, "--direction", "x3d0_x3d1")
    place(repository, "v1.tif", cells(1)[:, :-1], "x3d1")
    assert "the files of a pair" in refused(capsys, "--direction", "x3d0_x3d1")
    assert "does not exist" in refused(capsys, "--data_root", repository / "none" / "here")
    assert "--jsn is missing" in refused_without_experiment(capsys)


def refused_without_experiment(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["check"])
    return capsys.readouterr().err


def test_the_survey_of_a_file_by_hand(tmp_path):
    values = np.arange(9 * 16 * 16, dtype=np.float32).reshape(9, 16, 16)
    values[0, 0, :4] = [np.nan, np.inf, -5, 2303]
    (tmp_path / "train" / "d").mkdir(parents=True)
    write_tiff(tmp_path / "train" / "d" / "v.tif", values)
    (file,), problems = survey(tmp_path, {"direction": "d", "nm": "00"})
    assert (file.low, file.high, file.bad, file.looked_at) == (-5, 2303, 2, 1)
    assert file.saturated == pytest.approx(2 / 2302)
    assert file.percentiles[1] == pytest.approx(1152.5, abs=2)
    assert file.spectra is None and len(problems) == 1
    assert summarised([file]).sampling is None
    (file,), _ = survey(tmp_path, {"direction": "d", "nm": "00", "uprate": 8})
    assert summarised([file]).sampling == 8  # where the file does not say


def test_large_files_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("dataloader.survey._READ", 4096)
    monkeypatch.setattr("dataloader.survey._BOX", 2)
    monkeypatch.setattr("volumes.volume.Volume.blocks", lambda self, voxels=0: boxes(self.shape, (1, 32, 32)))
    (tmp_path / "train" / "d").mkdir(parents=True)
    write_tiff(tmp_path / "train" / "d" / "v.tif", np.repeat(np.arange(16, dtype=np.uint8), 32 * 32).reshape(16, 32, 32))
    (file,), _ = survey(tmp_path, {"direction": "d", "nm": "00"})
    assert (file.low, file.high, file.looked_at) == (0, 12, 5 / 16)  # every fourth, and planes 7 and 8 in the middle
    assert [plane.ravel().tolist() for plane in file.planes] == [[8] * 4, [7, 7, 8, 8], [7, 7, 8, 8]]


def needs(model, **changes):
    narrow = {"ngf": 16} if model == "lateral" else {"ngf": 16, "ndf": 16}
    settings = default_settings(MODEL_OPTIONS, model, **narrow, **changes)
    if "ldmyaml" in settings:
        read = read_autoencoder_yaml(prepare.REPOSITORY, "vqgan_small")
        settings |= {"perceptual_weight": 0, "ldmyaml": "vqgan_small"}
        settings["autoencoder"] = configure_autoencoder(read, settings)
    return training_requirements(settings)


@pytest.mark.parametrize(
    ("model", "geometry"),
    [
        ("ae0iso0tccutvqq", {"cropsize": 64, "cropz": 8}),
        ("ae0iso0tccutvqq", {"cropsize": 48, "cropz": 2, "resizebranch": 3, "skipl1": 1}),
        ("IsoREF", {"cropsize": 64, "cropz": 8}),
        ("IsoREF", {"cropsize": 48, "cropz": 16}),
        ("IsoREF", {"cropsize": 40, "cropz": 24, "dsp": 3}),
    ],
)
def test_needs_follow_crop_and_width(model, geometry):
    """Also where the planes of a slice do not divide the crop that is measured."""
    small, large = needs(model, **geometry), needs(model, **geometry | {k: 2 * geometry[k] for k in ("cropsize", "cropz")})
    assert small.parameters == large.parameters and small.component_files == 4 * small.parameters
    states = 16 * small.parameters
    assert large.memory - states == pytest.approx(8 * (small.memory - states), rel=0.01)


@pytest.mark.parametrize("cropz", [8, 5])
def test_needs_of_a_model_of_single_slices(cropz):
    """Also where so many slices would make a cube."""
    small, large = (needs("lateral", cropsize=64, cropz=n, uprate=8) for n in (cropz, 2 * cropz))
    states = 16 * small.parameters
    assert large.memory - states == pytest.approx(2 * (small.memory - states), rel=0.01)


def test_a_sheet_shows_planes_at_their_proportions(tmp_path):
    volume = ArrayVolume(np.zeros((40, 40, 40), np.uint8), "a\udcff.tif", (2.0, 0.25, 0.25))  # a name that is no UTF-8
    planes = (np.eye(40), np.eye(5, 40), np.eye(5, 40))
    file = Surveyed(
        "train", "d", volume, 0, 1, (0, 1), (0.0, 0.5, 1.0), 0.5, 0, 1.0, None, None, {}, planes
    )  # half is saturated, a fault
    contact_sheet(tmp_path / "new" / "sheet.png", "title", [file])
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        sheet = np.asarray(picture)[..., :3]
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 1500
    assert (sheet == (214, 39, 40)).all(-1).any()  # the fault, in red


@pytest.mark.skipif("ISOSCOPE_SAMPLES" not in os.environ, reason="ISOSCOPE_SAMPLES names no folder with real volumes")
def test_real_volumes(repository, caplog):
    caplog.set_level("INFO")
    samples = Path(os.environ["ISOSCOPE_SAMPLES"])
    shutil.rmtree(repository / "data" / "X")
    where = ["--data_root", str(repository / "data"), "--dataset", "X", "--link"]
    prepare.main(["volumes", *where, "--input", str(samples / "mesospim_nuclei_c5.tif")])
    prepare.main(["volumes", *where, "--direction", "x3d1", "--input", str(samples / "nuclei_cyto_rgb3d_ch1.tif")])
    check()
    assert "resolution length 1.15 (in voxels; voxel sizes not stated)" in caplog.text
    assert "recommended: --dsp 4 --l1how mean --cropsize 64 --cropz 64" in caplog.text
    check("--direction", "x3d1")
    assert "0.32 % of the voxels have the largest value 65535: saturated or clipped" in caplog.text
    assert "resolution length 1.67" in caplog.text


def test_the_axial_profile_is_said_as_options_to_paste(repository, undrawn, caplog):
    caplog.set_level("INFO")
    specimen = gaussian_filter(np.random.default_rng(0).standard_normal((96, 80, 80)), 1.5)
    for k in range(2):
        place(repository, f"v{k}.tif", gaussian_filter1d(specimen, 2.5, axis=0).astype(np.float32), voxel_um=(0.25,) * 3)
    lateral = ("--models", "lateral", "--uprate", "1", "--cropsize", "64", "--crops_per_volume", "4")
    check(*lateral, "--axial_sigma", "2", "--axial_sampling", "mean")
    line = next(line for line in caplog.messages if "for the lateral model" in line)
    assert line.split("--axial_taps")[0].endswith("--uprate 1 --axial_sampling mean ")
    taps = [float(tap) for tap in line.split("--axial_taps")[1].split()]
    assert len(taps) % 2 and max(taps) == pytest.approx(0.16, rel=0.05) and sum(taps) == pytest.approx(1, abs=1e-3)
    assert "not to be trusted" not in caplog.text
    found = json.loads((repository / "logs" / "X" / "check" / "check.json").read_text())["axial_profile"]
    assert found["width"] == pytest.approx(5.9, rel=0.05) and found["doubts"] == []
    caplog.clear()
    check(*lateral, "--axial_taps", *taps)


def test_profiles_that_are_not_measured_or_sharp_give_no_options(repository, undrawn, caplog):
    caplog.set_level("INFO")
    check()
    assert "axial profile: not measured" in caplog.text
    for k in range(2):
        sharp = gaussian_filter(np.random.default_rng(k).standard_normal((64, 64, 64)), 1.5)
        place(repository, f"v{k}.tif", sharp.astype(np.float32), voxel_um=(0.25,) * 3)
    caplog.clear()
    check()
    assert "z is blurred no more than y and x" in caplog.text and "for the lateral model" not in caplog.text
