"""Settings that a run keeps: those of an older version are completed, those that are damaged or newer are refused by name."""

import json
import logging
from pathlib import Path

import pytest

from experiment.options import BASE_OPTIONS, Option, as_text
from experiment.reading import SETTINGS_VERSION, default_settings, stored_settings
from experiment.runs import RunFolder, resumed_settings
from models.build import build_model, load_components
from models.options import MODEL_OPTIONS
from utils.errors import UserError

RUN = Path(__file__).parents[2] / "data" / "made_by_6ea4a28" / "run"
STORED = json.loads((RUN / "0.json").read_text())
# Options that came after that version, with the defaults that they get.
SINCE = {
    "tracker": None,
    "draw": "uniform",
    "neighbours": 1,
    "unreadable_files": 0,
    "recompute": False,
    "spread": "slices",
    "from_interpolation": False,
    "lblateral": 0.0,
    "teacher": None,
    "teacher_planes": 0,
    "lbteach": 10.0,
    "from_teacher": False,
}
_AUTOENCODER = STORED["autoencoder"]
_LOSS = {**_AUTOENCODER["loss"], "reconstruction": "absolute"}
_CODEBOOK = {**_AUTOENCODER["codebook"], "fewer": 0.0}
COMPLETE = {
    **STORED,
    **SINCE,
    "monitor": "validation/projection",
    "autoencoder": {**_AUTOENCODER, "start": "random", "loss": _LOSS, "codebook": _CODEBOOK},
}
ENTRIES = [(key,) for key in STORED["autoencoder"]]
ENTRIES += [(section, key) for section in ("ddconfig", "loss", "codebook") for key in STORED["autoencoder"][section]]


def read(folder, **changes):
    (folder / "0.json").write_text(json.dumps({**STORED, **changes}))
    return RunFolder(folder).stored_settings(MODEL_OPTIONS)


def works(settings):
    """As far as weights and options tell: a training can go on, a volume can be enhanced."""
    resumed_settings(settings, settings, {})
    for for_training in (True, False):
        model = build_model(settings, for_training, frozen=False)
        load_components(model, RunFolder(RUN))
    return True


def without(path):
    left = json.loads(json.dumps(STORED))
    inside = left
    for key in path[:-1]:
        inside = inside[key]
    del inside[path[-1]]
    return left


def test_the_settings_of_an_older_version_are_read_as_they_are(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert read(tmp_path) == COMPLETE
    [message] = caplog.messages
    assert message.endswith(
        f"taken from today's defaults: {', '.join(f'{name} {as_text(value)}' for name, value in SINCE.items())}"
    )
    caplog.clear()
    assert read(tmp_path, **SINCE) == COMPLETE
    assert not caplog.messages


def test_options_that_it_did_not_know_get_todays_defaults(tmp_path, caplog, monkeypatch):
    """As after a version that adds an option."""
    monkeypatch.setattr("experiment.reading.BASE_OPTIONS", (*BASE_OPTIONS, Option("texture", float, 0.5)))
    caplog.set_level(logging.INFO)
    assert read(tmp_path, **SINCE) == {**COMPLETE, "texture": 0.5}
    assert caplog.messages == [f"{tmp_path / '0.json'} is of an older version; taken from today's defaults: texture 0.5"]


@pytest.mark.parametrize("path", [*((key,) for key in STORED), *(("autoencoder", *entry) for entry in ENTRIES)], ids=".".join)
def test_without_any_one_key_it_works_or_the_key_is_named(tmp_path, path):
    try:
        (tmp_path / "0.json").write_text(json.dumps(without(path)))
        assert works(stored_settings(tmp_path / "0.json", MODEL_OPTIONS))
    except UserError as error:
        assert path[-1] in str(error).replace("no model", "models")
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize("key", ["adv_planes", "lr_g_factor", "beta1", "seed", "slabtarget", "num_nodes", "given"])
def test_what_has_a_sensible_default_is_completed(tmp_path, key):
    (tmp_path / "0.json").write_text(json.dumps(without((key,))))
    settings = stored_settings(tmp_path / "0.json", MODEL_OPTIONS)
    assert settings[key] == ({} if key == "given" else default_settings(MODEL_OPTIONS, STORED["models"])[key])
    assert works(settings)


@pytest.mark.parametrize(
    "entry", [("codebook", "grid"), ("codebook", "levels"), ("ddconfig", "norm"), ("loss", "perceptual_weight")]
)
def test_entries_of_the_autoencoder_that_older_runs_lack_get_their_defaults(tmp_path, entry):
    settings = read(tmp_path, autoencoder=without(("autoencoder", *entry))["autoencoder"])["autoencoder"]
    assert settings[entry[0]][entry[1]] == {"grid": [], "levels": 1, "norm": "group", "perceptual_weight": 1.0}[entry[1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cropsise": 32}, r"0.json: unknown key cropsise; did you mean cropsize\?$"),
        (
            {"settings_version": 9, "texture": 1, "port": 8},
            r"version 9, newer than .* update it\): unknown key texture.*, port",
        ),
        ({"cropsize": "wide"}, r"0.json: cropsize=wide must be a whole number"),
        ({"cropsize": 4}, r"0.json: cropsize=4 must be >=8"),
        ({"norm": "layer"}, r"0.json: norm=layer must be one of batch"),
        ({"models": "unet"}, r"0.json: models=unet: no such model"),
        ({"settings_version": "two"}, r"0.json: settings_version=two must be a whole number"),
        ({"given": 3}, r"0.json: given must be an object"),
        ({"autoencoder": 3}, r"0.json: autoencoder must be an object"),
        ({"autoencoder": {**STORED["autoencoder"], "texture": 1}}, r"0.json: unknown key autoencoder.texture"),
        (
            {"autoencoder": {**STORED["autoencoder"], "n_embed": "many"}},
            r"0.json: autoencoder.n_embed=many must be a whole number",
        ),
    ],
)
def test_what_does_not_belong_there_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


def test_retired_keys_of_older_settings_are_dropped(tmp_path):
    assert read(tmp_path, load3d=True) == COMPLETE


def test_a_run_says_the_version_of_its_settings(tmp_path):
    run = RunFolder(tmp_path)
    run.write_settings(COMPLETE)
    assert json.loads((tmp_path / "0.json").read_text()) == {"settings_version": SETTINGS_VERSION, **COMPLETE}
    assert run.stored_settings(MODEL_OPTIONS) == COMPLETE
