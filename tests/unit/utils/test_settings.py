"""The settings flow: command line over file over defaults, given keys, and mistakes that are named."""

from pathlib import Path

import pytest
from settings_repository import make_repository, read, write_experiment

from experiment.reading import read_settings
from models.options import MODEL_OPTIONS
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
VQ, KL, SSIM, ISOREF, LATERAL = "ae0iso0tccutvqq", "ae0iso0tccut", "ae0iso0tccutvqqssim", "IsoREF", "lateral"


def test_command_line_beats_file_beats_default(tmp_path):
    experiment = read(make_repository(tmp_path, cropsize=64, cropz=8, lr=1), "--cropz", 16, "--no-mc")
    s = experiment.settings
    assert (s["cropsize"], s["cropz"], s["lr"], s["mc"], s["ngf"]) == (64, 16, 1.0, False, 32)
    assert isinstance(s["lr"], float)
    assert experiment.given == {
        "dataset": "env/jsn/x.json",
        "cropsize": "env/jsn/x.json",
        "lr": "env/jsn/x.json",
        "cropz": "command line",
        "mc": "command line",
        "jsn": "command line",
        "prj": "command line",
    }


def test_model_comes_from_command_line_then_file_then_default(tmp_path):
    repository = make_repository(tmp_path)
    assert read(repository).settings["models"] == VQ
    write_experiment(repository, {"dataset": "D", "models": KL})
    assert read(repository).settings["ldmyaml"] == "ldmaex2"
    changed = read(repository, "--models", ISOREF).settings
    assert (changed["models"], changed["dsp_how"], "ldmyaml" in changed) == (ISOREF, "mean", False)


def test_booleans_lists_aliases_and_null(tmp_path):
    repository = make_repository(tmp_path, nocut=False, nm_clip=[1, 99.5], use_ema=0.99, seed=None, gradient_clip=False)
    s = read(repository, "--l1", "mean", "-b", 3, "--fWhich", 1, 0, 0, 2, "--rotate").settings
    assert (s["nocut"], s["nm_clip"], s["ema"], s["seed"], s["gradient_clip"]) == (False, [1.0, 99.5], 0.99, 123, 0.0)
    assert (s["l1how"], s["batch_size"], s["fWhich"], s["rotate"]) == ("mean", 3, [1.0, 0.0, 0.0, 2.0], True)
    assert read(repository, "--devices", 2).settings["devices"] == 2


def test_yaml_experiment_reads_the_scalars_that_people_write(tmp_path):
    repository = make_repository(tmp_path)
    (repository / "env" / "jsn" / "x.json").unlink()
    (repository / "env" / "jsn" / "x.yml").write_text(
        "train:\n  dataset: 2024\n  nm: 01\n  lr: 2e-4\n  max_time: 1:00:00:00\n"
        "  mc: false\n  resume: ~\n  fWhich: [1, .5, 0, 0]\n"
    )
    experiment = read(repository)
    s = experiment.settings
    assert (s["dataset"], s["nm"], s["lr"], s["max_time"], s["mc"]) == ("2024", "01", 2e-4, "1:00:00:00", False)
    assert s["fWhich"] == [1.0, 0.5, 0.0, 0.0]
    assert experiment.given["nm"] == "env/jsn/x.yml"


def test_experiment_may_be_a_path(tmp_path, monkeypatch):
    repository = make_repository(tmp_path / "repository")
    elsewhere = tmp_path / "mine.json"
    elsewhere.write_text('{"train": {"dataset": "other"}}')
    for name in (str(elsewhere), "mine.json"):
        monkeypatch.chdir(tmp_path)
        experiment = read_settings(["--jsn", name, "--prj", "p"], MODEL_OPTIONS, repository)
        assert experiment.settings["dataset"] == "other"
        assert experiment.given["dataset"] == str(elsewhere)
    assert read_settings(["--jsn=env/jsn/x.json", "--prj=p"], MODEL_OPTIONS, repository).settings["dataset"] == "D"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"cropsise": 64}, r"env/jsn/x.json: unknown key cropsise; did you mean cropsize\?"),
        ({"cropsize": "big"}, r"env/jsn/x.json: cropsize=big must be a whole number"),
        ({"cropsize": 64.5}, r"cropsize=64.5 must be a whole number"),
        ({"cropsize": True}, r"cropsize=true must be a whole number"),
        ({"cropsize": [64]}, r"cropsize=\[64\] must be a whole number"),
        ({"lr": 0}, r"lr=0 must be >0"),
        ({"lr": float("nan")}, r"lr=NaN must be a number"),
        ({"beta1": 1}, r"beta1=1 must be >=0 and <1"),
        ({"mc": 1}, r"mc=1 must be true or false"),
        ({"nm": "10"}, r"nm=10 must be one of 00, 01, 11"),
        ({"nm_clip": [1]}, r"nm_clip=\[1\] must be a list of 2 values; it has 1"),
        ({"nm_clip": [0, 101]}, r"nm_clip=101 must be >=0 and <=100"),
        ({"fWhich": []}, r"fWhich=\[\] must be a list of at least one value"),
        ({"num_patches": 0}, r"num_patches=0 must be >=1"),
        ({"devices": 0}, r"devices=0 must be of this kind: processes per machine"),
        ({"prj": "a"}, r"prj belongs on the command line: --prj a"),
        ({"ema": 0.9, "use_ema": 0.9}, r"ema is given twice"),
        ({"models": "ae0iso0tccutvq"}, r"env/jsn/x.json: models=ae0iso0tccutvq: no such model; did you mean ae0iso0tccut"),
        ({"netG": "ed023"}, r"netG=ed023 must be one of ed023e; did you mean ed023e\?"),
        ({"l1how": "maxmin"}, r"l1how=maxmin must be one of max, min, mean, dsp"),
        ({"dataset": None}, r"env/jsn/x.json: dataset is missing"),
    ],
)
def test_mistakes_in_a_file_name_file_and_key(tmp_path, block, message):
    with pytest.raises(UserError, match=message):
        read(make_repository(tmp_path, **block))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cropsise", "64"], r"--cropsise is not an option; did you mean --cropsize\?"),
        (["---cropz", "8"], r"---cropz is not an option; did you mean --cropz\?"),
        (["–cropz", "8"], r"–cropz is not an option; did you mean --cropz\?"),
        (["--lamda", "1", "--cropsise", "64"], r"--lamda .* --lamb\?. --cropsise"),
        (["--qqqqqqqq"], r"--qqqqqqqq is not an option; --help lists them all"),
        (["--bogus"], r"--bogus is not an option; --help lists them all"),
        (["--cropsize", "big"], r"--cropsize=big must be a whole number"),
        (["--cropsize"], r"expected one argument"),
        (["--mc", "true"], r"not understood: true; booleans are written --name or --no-name"),
        (["--models", "IsoREV"], r"--models=IsoREV: no such model; did you mean IsoREF\?"),
        (["--precision", "16-mixed"], r"must be one of 32, bf16-mixed .*loss scaling"),
        (["--strategy", "fsdp"], r"must be one of auto, ddp .*20 M parameters"),
        (["--strategy", "deepspeed"], r"must be one of auto, ddp .*two optimisers"),
        (["--gan_mode", "wgangp"], r"--gan_mode=wgangp must be one of vanilla, lsgan, hinge .*gradient penalty"),
        (["--models", "IsoREF", "--gdim", "2d_3d"], r"--gdim=2d_3d must be one of .*2d is not supported"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, argv, message):
    with pytest.raises(UserError, match=message):
        read(make_repository(tmp_path), *argv)


def test_jsn_and_prj_are_required(tmp_path):
    repository = make_repository(tmp_path)
    with pytest.raises(UserError, match=r"--jsn is missing.*Experiments in env/jsn: x"):
        read_settings(["--prj", "a"], MODEL_OPTIONS, repository)
    with pytest.raises(UserError, match=r"--prj is missing: the run's folder under LOGS/D/"):
        read_settings(["--jsn", "x"], MODEL_OPTIONS, repository)
