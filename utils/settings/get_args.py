"""The settings of a training: defaults < experiment file < command line, and where data and logs are (torch-free).

The models' own options are handed in, so that this module needs neither models nor torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from utils.errors import UserError
from utils.runs import COMMAND_LINE
from utils.settings.base_options import BASE_OPTIONS, RETIRED, Option
from utils.settings.command_line import USAGE, CommandLine, checked_value, first_pass, make_parser, read_command_line
from utils.settings.make_config import PROFILE_KEYS, find_experiment, known_experiments, read_experiment_file, read_profiles
from utils.settings.read_mapping import did_you_mean, shown

__all__ = [
    *("BASE_OPTIONS", "RETIRED", "Experiment", "Option"),
    *("check_data_root", "data_folder", "default_settings", "read_settings"),
]

Models = Mapping[str, tuple[Option, ...]]


@dataclass(frozen=True)
class Experiment:
    """What a training is asked to do.

    Attributes:
        settings: every option's value, plain JSON.
        given: the options that the user has set → ``"command line"`` or the experiment file.
        logs: folder of all runs, absolute.
        data_root: folder of all data sets, absolute.
        notes: how the settings were read, one line each.
        profiles: machine profile → its data folder.
        data_source: where data_root was said.
    """

    settings: dict[str, Any]
    given: dict[str, str]
    logs: Path
    data_root: Path
    notes: list[str]
    profiles: dict[str, str] = field(default_factory=dict)
    data_source: str = ""


def read_settings(argv: Sequence[str], models: Models, repository: Path) -> Experiment:
    """The experiment that a command line asks for; ``--help`` prints the options and exits.

    Args:
        argv: the command line without the program's name.
        models: model → its own options; one of the same name replaces a base option.
        repository: folder that holds ``env`` and that relative paths start from.

    Raises:
        UserError: anything that is wrong with the settings themselves; the message names file, key and remedy.
    """
    repository = repository.absolute()
    early = first_pass(argv)
    file = _read_file(early.jsn, early.help, repository)
    model = _model(early.models, file, models)
    options = model_options(models, model)
    file.take(options, _foreign(models, model))
    if early.help:
        _print_help(options, {**file.values, "models": model}, file)
        raise SystemExit(0)
    typed = read_command_line(argv, options, _foreign(models, model))
    settings = {option.name: option.default for option in options} | file.values | typed.values
    given = dict.fromkeys(file.values, file.label) | dict.fromkeys(typed.values, COMMAND_LINE)
    _check_complete(settings, typed, file)
    notes = [*file.notes(), *_command_line_notes(typed, settings["strict"]), *_remarks(settings)]
    return _located(settings, given, notes, repository)


def default_settings(models: Models, model: str, /, **overrides: Any) -> dict[str, Any]:
    """The complete settings of a model, changed by checked overrides.

    Raises:
        UserError: unknown model or key, or a value that the option refuses.
    """
    file = _File("default_settings", {"models": model, **overrides})
    options = model_options(models, _model(None, file, models))
    file.take(options, _foreign(models, model), ignore_foreign=False, from_file=False)
    return {option.name: option.default for option in options} | file.values


def model_options(models: Models, model: str) -> list[Option]:
    """The base options and a model's own, which replace base options of the same name."""
    return list({option.name: option for option in (*BASE_OPTIONS, *models[model])}.values())


def check_data_root(experiment: Experiment) -> None:
    """Checks, before a training, that the folder of the data sets is there.

    Raises:
        UserError: it is not; the message names profile, path and the other profiles.
    """
    if experiment.data_root.is_dir():
        return
    mine = experiment.settings["env"]
    others = "; ".join(f"{name}: {path}" for name, path in sorted(experiment.profiles.items()) if name != mine)
    raise UserError(
        f"the data folder {experiment.data_root} does not exist (machine profile {mine}, path from {experiment.data_source}). "
        f"Name the folder with --data_root or another profile with --env ({others})"
    )


def data_folder(repository: Path, *, env: str | None = None, data_root: str | None = None) -> Path:
    """The folder of the data sets by the same rules as for a training; made if only its last part is missing.

    Args:
        repository: folder that holds ``env`` and that relative paths start from.
        env: machine profile, default ``local``.
        data_root: ``--data_root`` of the command line; wins over profile and environment variables.

    Raises:
        UserError: unknown profile, or the folder does not exist on this machine.
    """
    given = {key: value for key, value in (("env", env), ("data_root", data_root)) if value}
    settings = {option.name: option.default for option in BASE_OPTIONS} | given
    experiment = _located(settings, dict.fromkeys(given, COMMAND_LINE), [], repository.absolute())
    if experiment.data_root.parent.is_dir():
        experiment.data_root.mkdir(exist_ok=True)
    check_data_root(experiment)
    return experiment.data_root


# The experiment file -------------------------------------------------------------------------------------------------


@dataclass
class _File:
    """The block "train" of an experiment file, before and after its keys were understood."""

    label: str
    block: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def take(
        self, options: Iterable[Option], foreign: Mapping[str, str], *, ignore_foreign: bool = True, from_file: bool = True
    ) -> None:
        """Sorts the block's keys into checked values, retired ones and options of other models; null leaves the default."""
        by_key = {key: option for option in options for key in option.keys}
        unknown = []
        for key, value in self.block.items():
            if key in by_key:
                self._set(by_key[key], key, value, from_file)
            elif key in RETIRED:
                self.retired.append(key)
            elif key in foreign and ignore_foreign:
                self.foreign.append(key)
            elif key in foreign:
                unknown.append(f"{key} (an option of {foreign[key]})")
            else:
                unknown.append(f"{key}{did_you_mean(key, by_key, ' (--help lists the known ones)')}")
        if unknown:
            raise UserError(f"{self.label}: unknown key {', '.join(unknown)}")

    def _set(self, option: Option, key: str, value: Any, from_file: bool) -> None:
        where = f"{self.label}: {key}"
        if from_file and option.name in ("jsn", "prj"):
            raise UserError(f"{where} belongs on the command line: --{option.name} {value}")
        if option.name in self.values:
            raise UserError(f"{where}: {option.name} is given twice, also by another of its names")
        if value is not None:
            self.values[option.name] = checked_value(option, value, where)

    def notes(self) -> list[str]:
        """What the user should know about the file."""
        found = []
        if self.foreign:
            found.append(f"{self.label}: not used by this model: {', '.join(self.foreign)}")
        if self.retired:
            found.append(f"{self.label}: retired, ignored: {', '.join(self.retired)}")
        return found


def _read_file(jsn: str | None, for_help: bool, repository: Path) -> _File:
    if jsn is not None:
        path = find_experiment(repository, jsn)
        return _File(shown(path, repository), read_experiment_file(path))
    if for_help:
        return _File("", {})
    known = ", ".join(known_experiments(repository)) or "none"
    raise UserError(f"--jsn is missing (it is never abbreviated): {USAGE}. Experiments in env/jsn: {known}")


def _model(typed: str | None, file: _File, models: Models) -> str:
    model = typed or file.block.get("models") or next(o.default for o in BASE_OPTIONS if o.name == "models")
    if model not in models:
        where = "--models" if typed else f"{file.label}: models"
        raise UserError(f"{where}={model}: no such model{did_you_mean(str(model), models, '.')} Known: {', '.join(models)}")
    return str(model)


def _foreign(models: Models, model: str) -> dict[str, str]:
    """Options that only other models have → such models."""
    own = {option.name for option in model_options(models, model)}
    found: dict[str, list[str]] = {}
    for name, options in models.items():
        for option in options:
            if option.name not in own:
                found.setdefault(option.name, []).append(name)
    return {name: ", ".join(owners) for name, owners in found.items()}


def _print_help(options: list[Option], effective: Mapping[str, Any], file: _File) -> None:
    source = Path(file.label).name
    defaults = {name: (value, source if name in file.values else "default") for name, value in effective.items()}
    make_parser(options, defaults).print_help(sys.stdout)


# What was given ------------------------------------------------------------------------------------------------------


def _check_complete(settings: Mapping[str, Any], typed: CommandLine, file: _File) -> None:
    if "prj" not in typed.values:
        raise UserError(f"--prj is missing: the run's folder under LOGS/{settings['dataset'] or 'dataset'}/; {USAGE}")
    if not settings["dataset"]:
        raise UserError(f'{file.label}: dataset is missing; add "dataset": "NAME" or give --dataset NAME')


def _command_line_notes(typed: CommandLine, strict: bool) -> list[str]:
    if strict and typed.abbreviations:
        wanted = ", ".join(f"{full} instead of {short}" for short, full in typed.abbreviations.items())
        raise UserError(f"--strict refuses abbreviations: write {wanted}")
    found = []
    if typed.abbreviations:
        found.append("read " + ", ".join(f"{short} as {full}" for short, full in typed.abbreviations.items()))
    if typed.retired:
        found.append(f"{COMMAND_LINE}: retired, ignored: {', '.join(typed.retired)}")
    return found


def _remarks(settings: Mapping[str, Any]) -> list[str]:
    found = []
    if settings["final"] != "tanh":
        found.append(f"final={settings['final']} is overridden: the last activation is tanh")
    if not settings["nocut"] and not settings["lbNCE"]:
        found.append("the contrastive term is on (nocut false) but its weight lbNCE is 0, so it has no effect")
    return found


# Where things are ----------------------------------------------------------------------------------------------------


def _located(settings: dict[str, Any], given: dict[str, str], notes: list[str], repository: Path) -> Experiment:
    profiles = read_profiles(repository)
    found = _profile_paths(settings["env"], profiles, repository)
    for key, name in zip(PROFILE_KEYS, ("logs", "data_root"), strict=True):
        if os.environ.get(key):
            found[key] = (os.environ[key], f"environment variable {key}")
        if settings[name]:
            found[key] = (settings[name], f"{given[name]}: {name}")
    paths = {key: Path(os.path.normpath(repository / Path(text).expanduser())) for key, (text, _) in found.items()}
    labels = {"LOGS": "runs", "DATASET": "data"}
    where = [f"{labels[key]}: {paths[key]} (from {found[key][1]})" for key in PROFILE_KEYS]
    data_folders = {name: profile["DATASET"] for name, profile in profiles.items()}
    return Experiment(settings, given, paths["LOGS"], paths["DATASET"], notes + where, data_folders, found["DATASET"][1])


def _profile_paths(name: str, profiles: Mapping[str, Mapping[str, str]], repository: Path) -> dict[str, tuple[str, str]]:
    """Of a profile, LOGS and DATASET with where each is said: env/env, then env/.<profile> on top."""
    found = {key: (text, f"env/env, profile {name}") for key, text in profiles.get(name, {}).items()}
    own = repository / "env" / f".{name}"
    if own.is_file():
        written = dotenv_values(own)
        found |= {key: (text, f"env/.{name}") for key in PROFILE_KEYS if (text := written.get(key))}
    if found.keys() != set(PROFILE_KEYS):
        raise UserError(
            f"env={name}: no such machine profile{did_you_mean(name, profiles, '.')} Known in env/env: {', '.join(profiles)}; "
            f"or write LOGS=... and DATASET=... into env/.{name}"
        )
    return found
