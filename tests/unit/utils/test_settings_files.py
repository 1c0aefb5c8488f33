"""Experiment files, machine profiles and autoencoder yaml files."""

import json
from pathlib import Path

import pytest
from settings_repository import PROFILES, make_repository, read

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings, known_experiments, read_settings
from experiment.rules import check_settings, parse_duration
from experiment.runs import RunFolder
from experiment.teachers import taught
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from utils.places import read_profiles

REPOSITORY = Path(__file__).resolve().parents[3]


# Experiments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"train": {', r"x.json: this experiment cannot be read: Expecting .* line 1"),
        ("x.json", '{"train": {"dsp": 1, "dsp": 2}}', r"x.json: .* given twice: dsp"),
        ("x.json", "[1]", r"x.json: the experiment must be one object of named values"),
        ("x.json", '{"dataset": "D"}', r'with the block "train".*; found beside it: dataset'),
        ("x.json", '{"train": {}, "lr": 1}', r"found beside it: lr"),
        ("x.json", '{"train": 3}', r'with the block "train"'),
        ("x.yaml", "train: {dsp: 1, dsp: 2}", r"x.yaml: .* given twice: dsp"),
        ("x.yaml", "train: [", r"x.yaml: this experiment cannot be read"),
        ("x.yaml", "[1]: {dsp: 1}", r"x.yaml: this experiment cannot be read: .* unhashable key .* line 1"),
    ],
)
def test_unreadable_experiments_are_named(tmp_path, name, text, message):
    repository = make_repository(tmp_path)
    (repository / "env" / "jsn" / "x.json").unlink()
    (repository / "env" / "jsn" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(repository)


def test_a_mark_of_its_encoding_is_no_part_of_a_file(tmp_path):
    repository = make_repository(tmp_path)
    file, before = repository / "env" / "jsn" / "x.json", read(repository).settings
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read(repository).settings == before


def test_two_channels_need_no_counts(tmp_path):
    s = read(make_repository(tmp_path), "--tc").settings
    assert (s["input_nc"], s["output_nc"]) == (2, 2)
    assert read(make_repository(tmp_path / "given"), "--tc", "--output_nc", 1).settings["output_nc"] == 1  # refused later


def test_missing_experiment_lists_the_others(tmp_path):
    with pytest.raises(UserError, match=r"no experiment xx: expected env/jsn/xx.json .*did you mean x\? Experiments: x"):
        read(make_repository(tmp_path), "--jsn", "xx")


def test_two_files_of_one_name_are_not_guessed_between(tmp_path):
    repository = make_repository(tmp_path)
    (repository / "env" / "jsn" / "x.yaml").write_text("train: {dataset: D}")
    with pytest.raises(UserError, match=r"--jsn x may be env/jsn/x.json or env/jsn/x.yaml; give the path"):
        read(repository)


@pytest.mark.parametrize("name", known_experiments(REPOSITORY))
def test_published_experiments_parse_and_pass_every_check(name, tmp_path):
    open_ = ["--dataset", "X", "--uprate", "8"] if name == "lateral" else []  # what prepare.py check --write fills in
    open_ = ["--teacher", "lateral", "--logs", str(tmp_path)] if name in ("texture", "codes") else open_
    experiment = read_settings(["--jsn", name, "--prj", "p", *open_], MODEL_OPTIONS, REPOSITORY)
    if name in ("texture", "codes"):
        known = default_settings(MODEL_OPTIONS, "lateral", dataset="X", uprate=4)
        (tmp_path / "lateral").mkdir()
        RunFolder(tmp_path / "lateral").write_settings({**known, "given": {}, "autoencoder": None})
        experiment = taught(experiment, MODEL_OPTIONS)
    settings = experiment.settings
    assert not [note for note in experiment.notes if "ignored" in note or "not used" in note]
    autoencoder = read_autoencoder_yaml(REPOSITORY, settings["ldmyaml"]) if "ldmyaml" in settings else None
    check_settings(settings, autoencoder)


def test_the_users_experiment_sets_what_they_published():
    s = read_settings(["--jsn", "aisr", "--prj", "p"], MODEL_OPTIONS, REPOSITORY).settings
    published = {"dataset": "X2527T102MM", "env": "brcb", "models": "ae0iso0tccutvqq"}
    assert s == default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", **published, jsn="aisr", prj="p")
    two = read_settings(["--jsn", "aisrtc", "--prj", "p"], MODEL_OPTIONS, REPOSITORY).settings
    changed = {"jsn": "aisrtc", "tc": True, "direction": "x3d0_x3d1", "input_nc": 2, "output_nc": 2}
    assert two == s | changed


# Machines ------------------------------------------------------------------------------------------------------------


def test_paths_come_from_profile_dotenv_environment_and_options_in_this_order(tmp_path, monkeypatch):
    repository = make_repository(tmp_path, env="lab")

    def found(*argv):
        experiment = read(repository, *argv)
        return str(experiment.data_root), str(experiment.logs), [n for n in experiment.notes if n.startswith(("data:", "runs:"))]

    data, logs, notes = found()
    assert (data, logs) == ("/lab/Data", "/lab/logs")
    assert notes == ["runs: /lab/logs (from env/env, profile lab)", "data: /lab/Data (from env/env, profile lab)"]
    (repository / "env" / ".lab").write_text("DATASET=/dotenv/Data\n")
    data, logs, notes = found()
    assert (data, logs) == ("/dotenv/Data", "/lab/logs")
    assert notes[1] == "data: /dotenv/Data (from env/.lab)"
    monkeypatch.setenv("DATASET", "/shell/Data")
    monkeypatch.setenv("LOGS", "")
    data, logs, notes = found()
    assert (data, logs) == ("/shell/Data", "/lab/logs")
    assert notes[1] == "data: /shell/Data (from environment variable DATASET)"
    data, logs, notes = found("--data_root", "here/Data", "--logs", "runs")
    assert (data, logs) == (str(repository / "here/Data"), str(repository / "runs"))
    assert notes[1] == f"data: {repository}/here/Data (from command line: data_root)"


def test_profile_is_local_unless_file_or_command_line_names_one(tmp_path):
    repository = make_repository(tmp_path / "a")
    assert read(repository).data_root == repository / "data"
    repository = make_repository(tmp_path / "b", env="lab")
    assert read(repository, "--env", "local").logs == repository / "logs"
    assert str(read(repository).logs) == "/lab/logs"


def test_a_profile_may_live_in_its_dotenv_alone(tmp_path):
    repository = make_repository(tmp_path)
    (repository / "env" / ".mine").write_text("LOGS=/m/logs\n")
    with pytest.raises(UserError, match=r"env=mine: no such machine profile\. Known in env/env: local, lab.*env/\.mine"):
        read(repository, "--env", "mine")
    (repository / "env" / ".mine").write_text("LOGS=/m/logs\nDATASET=/m/data\n")
    assert str(read(repository, "--env", "mine").data_root) == "/m/data"


def test_unknown_profile_suggests_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"env=locla: no such machine profile; did you mean local\?"):
        read(make_repository(tmp_path), "--env", "locla")


def test_missing_data_folder_names_profile_path_and_the_other_profiles(tmp_path):
    repository = make_repository(tmp_path, env="lab")
    with pytest.raises(UserError, match=r"/lab/Data does not exist \(machine profile lab.*env/env.*--env \(local: ./data/\)"):
        read(repository).require_data()
    (repository / "data").mkdir()
    read(repository, "--env", "local").require_data()


@pytest.mark.parametrize(
    "profile", [{"LOGS": "./logs/"}, {"LOGS": "a", "DATASET": "b", "DATA": "c"}, {"LOGS": 1, "DATASET": "b"}, 3]
)
def test_malformed_profiles_are_named(tmp_path, profile):
    repository = make_repository(tmp_path)
    (repository / "env" / "env").write_text(json.dumps({**PROFILES, "odd": profile}))
    with pytest.raises(UserError, match=r"env: profile odd"):
        read(repository)


def test_the_published_profiles_are_there():
    profiles = read_profiles(REPOSITORY)
    assert set(profiles) == {"local", "brcb", "a6k", "runpod", "t09", "aisr"}
    assert profiles["local"] == {"LOGS": "./logs/", "DATASET": "./data/"}
    assert profiles["a6k"] == {"LOGS": "/home/ubuntu/Data/logs/", "DATASET": "/home/ubuntu/Data/"}


# Autoencoders --------------------------------------------------------------------------------------------------------


def test_vqgan_states_the_published_facts():
    vqgan = read_autoencoder_yaml(REPOSITORY, "vqgan")
    assert (vqgan["embed_dim"], vqgan["n_embed"]) == (4, 256)
    assert vqgan["ddconfig"] == {
        "double_z": False,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 1,
        "out_ch": 1,
        "ch": 64,
        "ch_mult": [1, 2, 2, 4],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "interpolator": "ed023e",
        "norm": "group",
        "mid_attention": True,
    }
    assert vqgan["loss"] == {
        "disc_conditional": False,
        "disc_in_channels": 1,
        "disc_ndf": 64,
        "disc_start": 250001,
        "disc_weight": 0.8,
        "codebook_weight": 1.0,
        "perceptual_weight": 1.0,
        "reconstruction": "absolute",
    }
    assert vqgan["start"] == "random"
    assert vqgan["codebook"] == {
        "levels": 1,
        "fewer": 0.0,
        "grid": [],
        "initialise": "kmeans",
        "revive_after": 100,
        "legacy": False,
    }


def test_kl_settings_extend_vqgan():
    vqgan, kl = (read_autoencoder_yaml(REPOSITORY, name) for name in ("vqgan", "ldmaex2"))
    assert kl["ddconfig"] == vqgan["ddconfig"] | {"double_z": True, "branch_point": "mid"}
    assert {key: kl["loss"][key] for key in ("disc_start", "kl_weight", "disc_weight")} == {
        "disc_start": 1,
        "kl_weight": 1e-6,
        "disc_weight": 0.5,
    }
    assert not {"n_embed", "codebook"} & kl.keys()
    assert "codebook_weight" not in kl["loss"]
    two = read_autoencoder_yaml(REPOSITORY, "ldmaex2B")
    assert two == kl | {"loss": kl["loss"] | {"disc_in_channels": 2}}
    assert read_autoencoder_yaml(REPOSITORY, "vqgan_small")["ddconfig"] == vqgan["ddconfig"] | {"ch": 32}


def test_the_other_vq_settings_differ_from_vqgan_in_their_point_alone():
    vqgan = read_autoencoder_yaml(REPOSITORY, "vqgan")
    residual, local = (read_autoencoder_yaml(REPOSITORY, name) for name in ("vqresidual", "vqlocal"))
    assert residual == vqgan | {"codebook": vqgan["codebook"] | {"levels": residual["codebook"]["levels"]}}
    assert residual["codebook"]["levels"] > 1
    scalar, grid = read_autoencoder_yaml(REPOSITORY, "vqfsq"), {"grid": [8, 6, 5]}
    assert scalar == vqgan | {
        "embed_dim": 3,
        "n_embed": 240,
        "ddconfig": vqgan["ddconfig"] | {"z_channels": 3},
        "codebook": vqgan["codebook"] | grid,
    }
    assert local == vqgan | {"ddconfig": vqgan["ddconfig"] | {"norm": "batch", "mid_attention": False}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: vqgan\nembed_din: 4", r"own.yaml: unknown key embed_din; did you mean embed_dim\?"),
        ("extends: vqgan\nddconfig: {chh: 4}", r"unknown key ddconfig.chh; did you mean ch"),
        ("extends: vqgan\nddconfig: {ch: wide}", r"ddconfig.ch=wide must be a whole number"),
        ("extends: vqgan\nddconfig: {ch: true}", r"ddconfig.ch=true must be a whole number"),
        ("extends: vqgan\nddconfig: {ch_mult: [1, x]}", r"ddconfig.ch_mult=x must be a whole number"),
        ("extends: vqgan\nddconfig: 3", r"ddconfig must be an object with the keys"),
        ("extends: vqgan\nloss: {disc_weight: null}", r"loss.disc_weight is missing"),
        ("extends: vqgan\nloss: {disc_conditional: true}", r"disc_conditional: true is not supported"),
        ("extends: vqgan\ncodebook: {initialise: random}", r"codebook.initialise=random must be one of kmeans, uniform"),
        ("extends: vqgan\ncodebook: {level: 2}", r"unknown key codebook.level; did you mean levels"),
        ("extends: vqgan\ncodebook: {levels: 0}", r"codebook.levels=0 must be >=1 and <=32"),
        ("extends: vqgan\ncodebook: {levels: 2.5}", r"codebook.levels=2.5 must be a whole number"),
        ("extends: vqgan\ncodebook: {grid: [8, 6, 5]}", r"240 codes of 3 channels, but n_embed=256 and embed_dim=4; set"),
        ("extends: vqgan\ncodebook: {grid: [1, 256]}", r"every channel needs at least 2 values"),
        ("extends: vqgan\ncodebook: {grid: [4, 4, 4, 4], levels: 2}", r"codebook.grid is one level"),
        ("extends: vqgan\nn_embed: 65537", r"n_embed=65537 must be >=2 and <=65536"),
        ("extends: vqgan\nddconfig: {norm: layer}", r"ddconfig.norm=layer must be one of group, batch, none"),
        ("extends: vqgan\nddconfig: {mid_attention: 0}", r"ddconfig.mid_attention=0 must be true or false"),
        ("extends: own", r"extends goes round in a circle: own → own"),
        ("extends: vqga", r"there are no autoencoder settings .*vqga.yaml; known: own, vqgan"),
        ("embed_dim: 4", r"own.yaml: (ddconfig|loss) is missing"),
        ("- 1", r"own.yaml: the file of autoencoder settings must be one object"),
    ],
)
def test_mistakes_in_autoencoder_settings_are_named(tmp_path, text, message):
    (tmp_path / "ldm").mkdir()
    (tmp_path / "ldm" / "vqgan.yaml").write_text((REPOSITORY / "ldm" / "vqgan.yaml").read_text())
    (tmp_path / "ldm" / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_autoencoder_yaml(tmp_path, "own")


def test_extends_merges_entry_by_entry_and_a_path_works(tmp_path):
    (tmp_path / "ldm").mkdir()
    (tmp_path / "ldm" / "vqgan.yaml").write_text((REPOSITORY / "ldm" / "vqgan.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("extends: vqgan\nn_embed: 512\nloss: {disc_weight: 1e-3}")
    vqgan, mine = read_autoencoder_yaml(tmp_path, "vqgan"), read_autoencoder_yaml(tmp_path, "mine.yaml")
    assert mine == vqgan | {"n_embed": 512, "loss": vqgan["loss"] | {"disc_weight": 0.001}}


def test_run_settings_win_over_the_yaml():
    vqgan, kl = (read_autoencoder_yaml(REPOSITORY, name) for name in ("vqgan", "ldmaex2B"))
    unset = default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq")
    assert configure_autoencoder(vqgan, unset) == vqgan
    assert "branch_point" not in configure_autoencoder(vqgan, unset)["ddconfig"]
    changed = default_settings(MODEL_OPTIONS, "ae0iso0tccut", tc=True, hbranch="z", embed_dim=3, perceptual_weight=0)
    made = configure_autoencoder(kl, changed)
    assert (made["ddconfig"]["in_channels"], made["ddconfig"]["branch_point"], made["embed_dim"]) == (2, "z", 3)
    assert (made["loss"]["perceptual_weight"], made["loss"]["disc_in_channels"]) == (0.0, 1)
    assert kl["ddconfig"]["in_channels"] == 1


def test_durations():
    assert parse_duration(None) is None
    assert parse_duration("01:02:03:04") == 93784
    for wrong in ("12", "1:00:00", "00:24:00:00", "00:00:60:00", "00:00:00:00", "-1:00:00:00"):
        with pytest.raises(UserError, match="DD:HH:MM:SS"):
            parse_duration(wrong)
