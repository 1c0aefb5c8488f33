"""Abbreviated, retired and foreign options: read, noted once, or refused by name."""

from pathlib import Path

import pytest
from settings_repository import make_repository, read

from experiment.options import RETIRED
from experiment.reading import default_settings
from models.options import MODEL_OPTIONS
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
VQ, KL, SSIM, ISOREF, LATERAL = "ae0iso0tccutvqq", "ae0iso0tccut", "ae0iso0tccutvqqssim", "IsoREF", "lateral"


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
    with pytest.raises(UserError, match=r"uprate \(an option of IsoREF, lateral, texture, fused\)"):
        default_settings(MODEL_OPTIONS, VQ, uprate=8)


def test_settings_without_effect_are_said(tmp_path):
    notes = read(make_repository(tmp_path), "--no-nocut", "--final", "none").notes
    assert [n for n in notes if "lbNCE" in n]
    assert [n for n in notes if "final=none is overridden" in n]
