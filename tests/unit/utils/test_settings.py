"""The settings flow: precedence, given keys, abbreviations, retired and foreign keys, help, and that none of it loads torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from settings_repository import make_repository, read, write_experiment

from models.options import MODEL_OPTIONS
from utils.errors import UserError
from utils.settings.options import BASE_OPTIONS, ESTABLISHED, RETIRED
from utils.settings.reading import default_settings, read_settings

REPOSITORY = Path(__file__).resolve().parents[3]
VQ, KL, SSIM, ISOREF, LATERAL = "ae0iso0tccutvqq", "ae0iso0tccut", "ae0iso0tccutvqqssim", "IsoREF", "lateral"

# The option tables of DECISIONS §1 with their defaults (None: unset).
SHARED = {
    "models": VQ,
    "seed": 123,
    "resume": False,
    "init": None,
    "overwrite": False,
    "strict": False,
    "debug": False,
    "max_time": None,
    "direction": "x3d0",
    "nm": "00",
    "nm_clip": None,
    "precrop": 0,
    "resize": 0,
    "cropsize": 128,
    "cropz": 16,
    "rotate": True,
    "dsp": 1,
    "dsp_how": "pick",
    "usp": 1.0,
    "preload": False,
    "crops_per_volume": 1,
    "batch_size": 1,
    "netD": "patch_16",
    "ngf": 32,
    "ndf": 64,
    "norm": "batch",
    "mc": True,
    "input_nc": 1,
    "output_nc": 1,
    "lamb": 10.0,
    "l1how": "max",
    "skipl1": 4,
    "adv": 1.0,
    "adv_planes": 0,
    "gan_mode": "vanilla",
    "nocut": True,
    "lbNCE": 0.0,
    "num_patches": 256,
    "nce_T": 0.07,
    "use_mlp": False,
    "c_mlp": 256,
    "fWhich": None,
    "nce_includes_all_negatives_from_minibatch": False,
    "lr": 2e-4,
    "lr_g_factor": 1.0,
    "beta1": 0.5,
    "lr_policy": "cosine",
    "n_epochs": 10001,
    "n_epochs_decay": 100,
    "lr_decay_iters": 50,
    "epoch_save": 100,
    "accumulate_grad_batches": 1,
    "gradient_clip": 0.0,
    "ema": 0.0,
    "precision": None,
    "devices": "auto",
    "num_nodes": 1,
    "strategy": "auto",
    "save_d": False,
    "on_nan": "stop",
    "save_minutes": 10.0,
}
SLICES = SHARED | {
    "downbranch": 1,
    "resizebranch": 1,
    "ldmyaml": "vqgan",
    "netG": None,
    "embed_dim": None,
    "tc": False,
    "slabtarget": "pooled",
    "lbm_ms_ssim": 0.0,
    "perceptual_weight": None,
}
TABLES = {
    VQ: SLICES,
    SSIM: SLICES | {"models": SSIM, "lbm_ms_ssim": 1.0},
    KL: SLICES | {"models": KL, "ldmyaml": "ldmaex2", "lbNCE": 1.0, "hbranch": None},
    ISOREF: SHARED
    | {
        "models": ISOREF,
        "dsp_how": "mean",
        "skipl1": 1,
        "lbNCE": 1.0,
        "lambB": 1.0,
        "gdim": "1d_3d",
        "nocyc": False,
        "uprate": None,
        "netG": "edclean",
    },
    LATERAL: {
        "models": LATERAL,
        "uprate": None,
        "axial_sampling": "pick",
        "axial_sigma": 0.0,
        "axial_taps": None,
        "cropz": 2,
        "rotate": False,
        "batch_size": 4,
        "lr": 5e-4,
        "ema": 0.995,
        "ngf": 64,
    },
    "fused": {
        "models": "fused",
        "teacher": None,
        "uprate": None,
        "cropsize": 64,
        "cropz": 8,
        "batch_size": 1,
        "lr": 3e-4,
        "beta1": 0.9,
        "adv": 0.0,
        "fuse_width": 32,
        "fuse_blocks": 4,
    },
}


@pytest.fixture(autouse=True)
def no_machine(monkeypatch):
    monkeypatch.delenv("LOGS", raising=False)
    monkeypatch.delenv("DATASET", raising=False)


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODEL_OPTIONS)
def test_every_option_of_the_decisions_has_its_default(model):
    settings = default_settings(MODEL_OPTIONS, model)
    assert {name: settings.get(name, "missing") for name in TABLES[model]} == TABLES[model]


@pytest.mark.parametrize("model", MODEL_OPTIONS)
def test_default_settings_survive_json_and_pass_their_own_checks(model):
    settings = default_settings(MODEL_OPTIONS, model, dataset="D")
    assert json.loads(json.dumps(settings)) == settings
    assert default_settings(MODEL_OPTIONS, model, **settings) == settings


def test_no_option_is_declared_twice():
    for own in ((), *MODEL_OPTIONS.values()):
        names = [key for option in own for key in option.keys]
        assert len(names) == len(set(names))
    base = [key for option in BASE_OPTIONS for key in option.keys]
    assert len(base) == len(set(base))
    assert not {*base, *(o.name for own in MODEL_OPTIONS.values() for o in own)} & set(RETIRED)


def test_names_of_ours_leave_the_established_abbreviations_alone():
    """No new name begins with an old option's name, or with what abbreviated one, but for those that DECISIONS chose itself."""
    chosen_by_decisions = {
        "accumulate_grad_batches",
        "adv_planes",
        "crops_per_volume",
        "dsp_how",
        "ema",
        "init",
        "nm_clip",
        "num_nodes",
        "on_nan",
        "overwrite",
        "precision",
        "save_minutes",
    }
    known = [own for name, own in MODEL_OPTIONS.items() if name not in (LATERAL, "fused")]  # nobody has habits with these
    every = {option.name: option for own in (BASE_OPTIONS, *known) for option in own}
    old = ESTABLISHED - {"l1"}
    prefixes = {name[:n] for name in old for n in range(1, len(name) + 1)}
    established = {short for short in prefixes if sum(name.startswith(short) for name in old | {*RETIRED}) == 1} | old
    new = every.keys() - old
    assert {name for name in new if any(name.startswith(short) for short in established)} == chosen_by_decisions
    assert {"picture_epochs", "keep_pictures", "val_epochs", "log_steps", "monitor"} <= new


# Precedence ----------------------------------------------------------------------------------------------------------


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


# Abbreviations, retired and foreign keys -----------------------------------------------------------------------------


def test_unambiguous_abbreviations_are_read_and_noted_once(tmp_path):
    experiment = read(make_repository(tmp_path), "--cropsi", 64, "--ldm=vqgan_small", "--nor", "none")
    s = experiment.settings
    assert (s["cropsize"], s["ldmyaml"], s["norm"]) == (64, "vqgan_small", "none")
    notes = [note for note in experiment.notes if note.startswith("read ")]
    assert notes == ["read --cropsi as --cropsize, --ldm as --ldmyaml, --nor as --norm"]


@pytest.mark.parametrize(
    ("short", "value", "name"),
    [("--crops", 64, "cropsize"), ("--prec", 512, "precrop"), ("--em", 8, "embed_dim"), ("--a", 2, "adv")],
)
def test_options_of_ours_take_no_abbreviation_away(tmp_path, short, value, name):
    assert read(make_repository(tmp_path), short, value).settings[name] == value


def test_exact_names_are_no_abbreviations(tmp_path):
    experiment = read(make_repository(tmp_path), "--dsp", 2, "--n_epochs", 5, "--adv", 0, "--nm", "11", "--l1", "min")
    assert not [n for n in experiment.notes if n.startswith("read ")]
    assert [experiment.settings[k] for k in ("dsp", "n_epochs", "adv", "nm", "l1how")] == [2, 5, 0.0, "11", "min"]


@pytest.mark.parametrize("place", ["command line", "file"])
def test_strict_refuses_abbreviations(tmp_path, place):
    repository = make_repository(tmp_path, **({"strict": True} if place == "file" else {}))
    flag = ["--strict"] if place == "command line" else []
    with pytest.raises(UserError, match="write --cropsize instead of --cropsi"):
        read(repository, "--cropsi", 64, *flag)
    assert read(repository, "--cropsize", 64, *flag).settings["strict"]


def test_ambiguous_abbreviation_lists_what_it_may_mean(tmp_path):
    with pytest.raises(UserError, match="--crop is ambiguous: it may mean --cropsize, --cropz"):
        read(make_repository(tmp_path), "--crop", 64)


def test_what_decides_the_options_is_never_abbreviated(tmp_path):
    with pytest.raises(UserError, match="--model: write --models in full"):
        read(make_repository(tmp_path), "--model", ISOREF)


def test_retired_settings_give_one_note_per_place(tmp_path):
    repository = make_repository(tmp_path, load3d=True, port=8000, sane_index_shape=False)
    experiment = read(repository, "--mode", "client", "--flip", "--host", "a", "--cropz", 8)
    notes = [n for n in experiment.notes if "retired, ignored" in n]
    assert notes == [
        "env/jsn/x.json: retired, ignored: load3d, port, sane_index_shape",
        "command line: retired, ignored: mode, flip, host",
    ]
    assert not set(RETIRED) & experiment.settings.keys()
    assert experiment.settings["cropz"] == 8


def test_options_of_other_models_are_noted_in_files_and_refused_on_the_command_line(tmp_path):
    repository = make_repository(tmp_path, models=ISOREF, ldmyaml="vqgan", tc=False)
    assert "env/jsn/x.json: not used by this model: ldmyaml, tc" in read(repository).notes
    with pytest.raises(UserError, match="--hbranch is an option of ae0iso0tccut, not of this model"):
        read(repository, "--hbranch", "z")
    with pytest.raises(UserError, match=r"uprate \(an option of IsoREF, lateral, fused\)"):
        default_settings(MODEL_OPTIONS, VQ, uprate=8)


def test_settings_without_effect_are_said(tmp_path):
    notes = read(make_repository(tmp_path), "--no-nocut", "--final", "none").notes
    assert [n for n in notes if "lbNCE" in n]
    assert [n for n in notes if "final=none is overridden" in n]


# Mistakes ------------------------------------------------------------------------------------------------------------


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


# Help ----------------------------------------------------------------------------------------------------------------


def help_text(capsys, repository, *argv):
    with pytest.raises(SystemExit) as stop:
        read_settings([*argv, "--help"], MODEL_OPTIONS, repository)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_groups_the_options_with_their_effective_defaults(tmp_path, capsys):
    repository = make_repository(tmp_path, cropsize=64, models=KL)
    text = " ".join(help_text(capsys, repository, "--jsn", "x").split())
    headings = [text.index(f" {group}: ") for group in ("run", "data", "geometry", "networks", "losses", "CUT", "optimisation")]
    assert headings == sorted(headings)
    assert "a multiple of 8 (>=8) [x.json: 64]" in text
    assert "[default: ldmaex2]" in text
    assert "--nm {00,01,11}" in text
    assert "--mc, --no-mc" in text


def test_help_without_experiment_shows_the_default_model_or_the_one_asked_for(tmp_path, capsys):
    repository = make_repository(tmp_path)
    assert "--ldmyaml" in help_text(capsys, repository)
    text = help_text(capsys, repository, "--models", ISOREF)
    assert "--gdim" in text
    assert "--ldmyaml" not in text


@pytest.mark.parametrize("argv", [["--help"], ["--jsn", "aisr", "--help"], ["--jsn", "aisr", "--prj", "p"]])
def test_settings_and_help_load_no_torch(argv):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from models.options import MODEL_OPTIONS\nfrom utils.settings.reading import read_settings\n"
        "try:\n    read_settings(sys.argv[1:], MODEL_OPTIONS, Path('.'))\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'pytorch_lightning', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
