"""The settings of a training: defaults < experiment file < command line (torch-free); utils.places says where data and runs are.

The models' own options are handed in, so that this module needs neither models nor torch.
"""

import logging
import os
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.autoencoder import complete_autoencoder, require_bottleneck
from experiment.command_line import USAGE, first_pass, make_parser, read_command_line
from experiment.options import BASE_OPTIONS, ESTABLISHED, RETIRED, Option, as_text
from utils.errors import UserError, did_you_mean
from utils.files import read_mapping
from utils.places import Places

SUFFIXES = (".json", ".yaml", ".yml")
COMMAND_LINE = "command line"
SETTINGS_VERSION = 1  # of the settings that a run stores; raised where a key changes its meaning

_SHOWN = 10  # unknown keys in a message

Models = Mapping[str, tuple[Option, ...]]
log = logging.getLogger("isoscope")


@dataclass(frozen=True)
class Experiment(Places):
    """What a training is asked to do; ``notes`` also say how the settings were read.

    Attributes:
        settings: every option's value, plain JSON.
        given: the options that the user has set → ``"command line"`` or the experiment file.
    """

    settings: dict[str, Any]
    given: dict[str, str]


def read_settings(argv: Sequence[str], models: Models, repository: Path) -> Experiment:
    """The experiment that a command line, without the program's name, asks for; ``--help`` prints the options and exits.

    A model's own options replace base options of the same name. Relative paths start from the repository, which holds ``env``.

    Raises:
        UserError: anything that is wrong with the settings themselves; the message names file, key and remedy.
    """
    repository = repository.absolute()
    early = first_pass(argv)
    label, block = read_experiment(repository, early.jsn) if early.jsn is not None else ("", {})
    if early.jsn is None and not early.help:
        known = ", ".join(known_experiments(repository)) or "none"
        raise UserError(f"--jsn is missing (it is never abbreviated): {USAGE}. Experiments in env/jsn: {known}")
    named, where = (early.models, "--models") if early.models else (block.get("models"), f"{label}: models")
    model, options, foreign = model_options(models, named, where)
    for key in ("jsn", "prj"):
        if key in block:
            raise UserError(f"{label}: {key} belongs on the command line: --{key} {block[key]}")
    in_file = _checked_keys(block, options, label, ignored={*RETIRED, *foreign})
    if early.help:
        sources = dict.fromkeys(in_file, Path(label).name)
        effective = {name: (value, sources.get(name, "default")) for name, value in {**in_file, "models": model}.items()}
        make_parser(options, effective).print_help(sys.stdout)
        raise SystemExit(0)
    typed, abbreviations, retired = read_command_line(argv, options, foreign)
    settings = {option.name: option.default for option in options} | in_file | typed
    given = dict.fromkeys(in_file, label) | dict.fromkeys(typed, COMMAND_LINE)
    if settings.get("tc"):
        settings |= {name: 2 for name in ("input_nc", "output_nc") if name not in given}
    if "prj" not in given:
        raise UserError(f"--prj is missing: the run's folder under LOGS/{settings['dataset'] or 'dataset'}/; {USAGE}")
    if not (settings["dataset"] or settings.get("teacher")):  # which says of what data set it is (experiment/teachers.py)
        built_on = ", or a run with --teacher RUN, whose data set is taken" * ("teacher" in settings)
        raise UserError(f'{label}: dataset is missing; add "dataset": "NAME" or give --dataset NAME{built_on}')
    if settings["strict"] and abbreviations:
        wanted = ", ".join(f"{full} instead of {short}" for short, full in abbreviations.items())
        raise UserError(f"--strict refuses abbreviations: write {wanted}")
    said = {
        f"{label}: not used by this model: ": [key for key in block if key in foreign],
        f"{label}: retired, ignored: ": [key for key in block if key in RETIRED],
        "read ": [f"{short} as {full}" for short, full in abbreviations.items()],
        f"{COMMAND_LINE}: retired, ignored: ": retired,
    }
    notes = [beginning + ", ".join(words) for beginning, words in said.items() if words] + _remarks(settings, given)
    places = Places.of_machine(repository, settings["env"], settings["logs"], settings["data_root"], given)
    return Experiment(places.logs, places.data_root, notes + places.notes, places.no_data, settings, given)


def default_settings(models: Models, model: str, /, **overrides: Any) -> dict[str, Any]:
    """The complete settings of a model, changed by overrides; a UserError where model, key or value is refused."""
    label = "default_settings"
    model, options, foreign = model_options(models, model, f"{label}: models")
    values = _checked_keys(overrides, options, label, ignored=RETIRED, foreign=foreign)
    return {option.name: option.default for option in options} | {"models": model} | values


def stored_settings(path: Path, models: Models) -> dict[str, Any]:
    """The settings in a run's newest N.json, with today's defaults for what an older version did not know.

    They are complete, with the resolved ``autoencoder`` and ``given``.

    Raises:
        UserError: the file is damaged or edited: an unknown key, a wrong type, or without what makes a run; or it is of a newer
            version and has keys that this one does not know.
    """
    block = read_mapping(path, "file of a run's settings")
    version = Option("settings_version", int).checked(block.pop("settings_version", 0), f"{path}: settings_version")
    newer = version > SETTINGS_VERSION
    label = f"{path}" + f" (settings version {version}, newer than this program's {SETTINGS_VERSION}: update it)" * newer
    given, autoencoder, restorer = block.pop("given", {}), block.pop("autoencoder", None), block.pop("restorer", None)
    for name, part in (("given", given), ("restorer", restorer or {})):
        if not isinstance(part, dict):
            raise UserError(f"{label}: {name} must be an object of keys and values")
    if "models" not in block:
        raise UserError(f"{path.parent} is not a training's folder: its settings ({path.name}) name no model")
    model, options, _ = model_options(models, block["models"], f"{label}: models")
    values = _checked_keys(block, options, label, ignored=() if newer else RETIRED)
    settings = {option.name: option.default for option in options} | values
    needed = {option.name for option in options if option.group in ("data", "geometry", "networks")} & ESTABLISHED
    parts = {
        "autoencoder": "ldmyaml" in settings and autoencoder is None,
        "restorer": settings.get("from_teacher") and not restorer,
    }
    missing = sorted(needed - block.keys()) + [name for name, lacking in parts.items() if lacking]
    if missing:
        raise UserError(f"{label} does not say {', '.join(missing)}, which every run's settings do; copy the file again")
    if autoencoder is not None:
        autoencoder = complete_autoencoder(autoencoder, label, "autoencoder.")
        require_bottleneck(autoencoder, model, gaussian="hbranch" in settings, where=f"{label}: autoencoder.")
    if added := [f"{name} {as_text(value)}" for name, value in settings.items() if name not in block]:
        log.info("%s is of an older version; taken from today's defaults: %s", path, ", ".join(added))
    if restorer is not None:
        settings["restorer"] = _checked_keys(
            restorer, model_options(models, "lateral", label)[1], f"{label}: restorer", ignored=()
        )
    return {**settings, "autoencoder": autoencoder, "given": given}


def model_options(models: Models, model: Any, where: str) -> tuple[str, list[Option], dict[str, str]]:
    """A model's name, None being the default; its options; and the options that only other models have → those models.

    No such model is a UserError that says ``where`` it was named.
    """
    base = {option.name: option for option in BASE_OPTIONS}
    name = base["models"].default if model is None else str(model)
    if name not in models:
        raise UserError(f"{where}={name}: no such model{did_you_mean(name, models, '.')} Known: {', '.join(models)}")
    own = base | {option.name: option for option in models[name]}
    foreign: dict[str, str] = {}
    for other, options in models.items():
        for key in (option.name for option in options if option.name not in own):
            foreign[key] = f"{foreign[key]}, {other}" if key in foreign else other
    return name, list(own.values()), foreign


def _checked_keys(
    block: Mapping[str, Any], options: Sequence[Option], label: str, *, ignored: Container[str], foreign: Mapping[str, str] = {}
) -> dict[str, Any]:
    """The checked values of a block of settings by option; null leaves the default. All unknown keys are in one UserError."""
    by_key = {key: option for option in options for key in option.keys}
    values: dict[str, Any] = {}
    unknown = []
    for key, value in block.items():
        if key in by_key:
            option, where = by_key[key], f"{label}: {key}"
            if option.name in values:
                raise UserError(f"{where}: {option.name} is given twice, also by another of its names")
            if value is not None:
                values[option.name] = option.checked(value, where)
        elif key in foreign:
            unknown.append(f"{key} (an option of {foreign[key]})")
        elif key not in ignored:
            near = did_you_mean(key, by_key, " (--help lists the known ones)") if len(unknown) < _SHOWN else ""
            unknown.append(f"{key}{near}")
    if unknown:
        unknown[_SHOWN:] = [f"and {more} more"] if (more := len(unknown) - _SHOWN) > 0 else []
        raise UserError(f"{label}: unknown key {', '.join(unknown)}")
    return values


def _remarks(settings: Mapping[str, Any], given: Mapping[str, str]) -> list[str]:
    """What has no effect, or another one than its name says."""
    final, cut = settings.get("final", "tanh"), not settings.get("nocut", True)
    unguided = "lbteach" in given and not settings["teacher"]
    otherwise = given.get("axial_sampling") == COMMAND_LINE != given.get("axial_taps", COMMAND_LINE)
    remarks = {
        f"final={final} is overridden: the last activation is tanh": final != "tanh",
        "save_d=false is overridden: discriminators are always saved": "save_d" in given and not settings["save_d"],
        "lbteach is the weight of a teacher, but none is named (--teacher RUN), so it has no effect": unguided,
        f"axial_taps of {given.get('axial_taps')} are the blur beside the axial_sampling that was said then; where it was "
        "another one, measure it anew: prepare.py check --axial_sampling …": otherwise,
        "the contrastive term is on (nocut false) but its weight lbNCE is 0, so it has no effect": cut and not settings["lbNCE"],
    }
    return [text for text, holds in remarks.items() if holds]


def known_experiments(repository: Path) -> list[str]:
    """The names of the experiments in env/jsn."""
    return sorted({path.stem for path in (repository / "env" / "jsn").glob("*") if path.suffix in SUFFIXES})


def read_experiment(repository: Path, name: str) -> tuple[str, dict[str, Any]]:
    """The experiment ``--jsn NAME``: env/jsn/NAME.json|.yaml|.yml, or the path that NAME is (from here or the repository).

    Returns the file as messages name it, and its block "train", unchecked. A UserError: there is no such file or there are
    several, it is unreadable, or it is more or less than such a block.
    """
    folder = repository / "env" / "jsn"
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if os.path.isfile(folder / f"{name}{suffix}")]
    if not found and Path(name).suffix in SUFFIXES:
        found = [path for path in (Path(name).expanduser().absolute(), repository / name, folder / name) if os.path.isfile(path)][
            :1
        ]
    labels = [path.relative_to(repository).as_posix() if path.is_relative_to(repository) else str(path) for path in found]
    if len(found) > 1:
        raise UserError(f"--jsn {name} may be {' or '.join(labels)}; give the path")
    if not found:
        known = known_experiments(repository)
        raise UserError(
            f"there is no experiment {name}: expected env/jsn/{name}.json (.yaml, .yml) or the path of such a file"
            f"{did_you_mean(name, known, '.')} Experiments: {', '.join(known) or 'none'}"
        )
    content = read_mapping(found[0], "experiment")
    block, beside = content.pop("train", None), f"; found beside it: {', '.join(sorted(content))}" if content else ""
    if beside or not isinstance(block, dict):
        example = '{"train": {"dataset": ..., ...}}'
        raise UserError(f'{found[0]}: an experiment is one object with the block "train": {example}{beside}')
    return labels[0], block
