"""What a training takes from the run that it builds on: the data, and how slices stand for planes; what was given wins."""

from dataclasses import replace

import pytest
from settings_repository import make_repository, read, write_experiment

from experiment.reading import default_settings
from experiment.runs import RunFolder
from experiment.teachers import taught
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from utils.geometry import Geometry

CODES = {"models": "ae0iso0tccutvqq", "cropsize": 64, "from_teacher": True}


def experiment(folder, block, *options, **teacher):
    """The experiment of a file that names no data set, built on a lateral run that was trained with these settings."""
    repository = make_repository(folder)
    write_experiment(repository, block)
    known = default_settings(MODEL_OPTIONS, "lateral", dataset="brain", nm="01", **{"direction": "cells", "uprate": 8, **teacher})
    asked = read(repository, "--teacher", "brain/first", *options)
    run = RunFolder(asked.logs / "brain" / "first")
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_settings({**known, "given": {}, "autoencoder": None})
    return asked


def test_texture_takes_the_data_and_the_network(tmp_path):
    asked = experiment(tmp_path, {"models": "texture"}, ngf=24, axial_taps=[0.25, 0.5, 0.25], cropsize=80)
    s = taught(asked, MODEL_OPTIONS)
    assert [s.settings[key] for key in ("dataset", "direction", "nm", "uprate", "ngf", "cropsize")] == [
        "brain", "cells", "01", 8.0, 24, 64,
    ]  # fmt: skip
    assert s.settings["axial_taps"] == [0.25, 0.5, 0.25] and s.given == asked.given
    (said,) = set(s.notes) - set(asked.notes)
    assert said.startswith("as in the teacher brain/first: dataset brain, direction cells, nm 01, uprate 8.0")


def test_what_was_given_wins_in_the_file_and_on_the_command_line(tmp_path):
    asked = experiment(tmp_path, {"models": "texture", "nm": "11"}, "--ngf", 16, "--dataset", "mine")
    s = taught(asked, MODEL_OPTIONS).settings
    assert (s["nm"], s["ngf"], s["dataset"], s["direction"]) == ("11", 16, "mine", "cells")


def test_two_channels_of_the_teacher_are_taken_with_its_folders(tmp_path):
    two = {"tc": True, "direction": "a_b", "input_nc": 2, "output_nc": 2}
    s = taught(experiment(tmp_path, {"models": "texture"}, **two), MODEL_OPTIONS).settings
    assert {key: s[key] for key in two} == two
    codes = taught(experiment(tmp_path / "codes", {**CODES, "direction": "a"}, **two), MODEL_OPTIONS).settings
    assert (codes["tc"], codes["output_nc"]) == (False, 1)  # of one folder that is asked for there is one channel


@pytest.mark.parametrize(("apart", "planes"), [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (4.6, 8), (3, 8)])
def test_codes_take_operator_and_factor(tmp_path, apart, planes):
    """8 where the factor of the teacher is none that codes can have; that is then refused with both numbers."""
    s = taught(experiment(tmp_path, CODES, axial_sampling="mean", uprate=apart), MODEL_OPTIONS).settings
    assert s["l1how"] == "mean"
    assert Geometry.from_settings(s).factor == planes
    crop = taught(experiment(tmp_path / "given", CODES, "--cropz", 5, uprate=apart), MODEL_OPTIONS).settings
    assert (crop["cropz"], crop["downbranch"], crop["l1how"]) == (5, 1, "dsp")


def test_a_resume_needs_the_teacher_only_for_the_name_of_the_data(tmp_path):
    asked = experiment(tmp_path, {"models": "texture", "dataset": "mine"}, "--resume")
    gone = replace(asked, settings=asked.settings | {"teacher": "nowhere"})
    assert taught(gone, MODEL_OPTIONS) is gone
    with pytest.raises(UserError, match="--teacher 'nowhere': neither"):
        taught(replace(gone, settings=gone.settings | {"dataset": None}), MODEL_OPTIONS)


def test_a_teacher_of_another_model_is_told_at_once(tmp_path):
    asked = experiment(tmp_path, {"models": "texture"})
    codes = default_settings(MODEL_OPTIONS, "IsoREF", dataset="brain")
    RunFolder(asked.logs / "brain" / "first").write_settings({**codes, "given": {}, "autoencoder": None})
    with pytest.raises(UserError, match="is a run of IsoREF; a teacher is a run of the lateral model"):
        taught(asked, MODEL_OPTIONS)
