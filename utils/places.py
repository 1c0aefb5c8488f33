"""Where a machine keeps runs and data sets: profiles of env/env < env/.PROFILE < environment variables < options (torch-free)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dotenv import dotenv_values

from utils.errors import UserError, did_you_mean
from utils.files import read_mapping, refuse_far

_LONGEST_NAME = 200  # bytes; file systems have 255, of which what is hidden beside it needs some
PROFILE_KEYS = ("LOGS", "DATASET")


@dataclass(frozen=True)
class Places:
    """Two folders, both absolute.

    Attributes:
        logs: of all runs.
        data_root: of all data sets.
        notes: where each was said, one line each.
        no_data: what to say where data_root does not exist.
    """

    logs: Path
    data_root: Path
    notes: list[str]
    no_data: str

    @classmethod
    def of_machine(cls, repository: Path, name: str, logs: str | None, data_root: str | None, given: Mapping[str, str]) -> Self:
        """Those of a machine profile; the options ``logs`` and ``data_root`` win, ``given`` says where they were given.

        Relative paths start from the repository. A UserError: there is no such profile.
        """
        profiles = read_profiles(repository)
        profile, own = profiles.get(name, {}), repository / "env" / f".{name}"
        written = dotenv_values(own) if os.path.isfile(own) else {}
        if not all(profile.get(key) or written.get(key) for key in PROFILE_KEYS):
            raise UserError(
                f"env={name}: no such machine profile{did_you_mean(name, profiles, '.')} Known in env/env: "
                f"{', '.join(profiles)}; or write LOGS=... and DATASET=... into env/.{name}"
            )
        paths, notes = [], []
        for key, what, option, chosen in (("LOGS", "runs", "logs", logs), ("DATASET", "data", "data_root", data_root)):
            said = (
                (chosen, f"{given.get(option)}: {option}"),
                (os.environ.get(key), f"environment variable {key}"),
                (written.get(key), f"env/.{name}"),
                (profile.get(key), f"env/env, profile {name}"),
            )
            text, source = next((text, source) for text, source in said if text)
            refuse_far(text)
            paths.append(Path(os.path.normpath(repository / Path(text).expanduser())))
            notes.append(f"{what}: {paths[-1]} (from {source})")
        others = "; ".join(f"{other}: {its['DATASET']}" for other, its in sorted(profiles.items()) if other != name)
        no_data = (
            f"the data folder {paths[1]} does not exist (machine profile {name}, path from {source}). "
            f"Name the folder with --data_root or another profile with --env ({others})"
        )
        return cls(paths[0], paths[1], notes, no_data)

    def require_data(self) -> None:
        """Raises a UserError that names profile, path and the other profiles where the folder of the data sets is missing."""
        if not self.data_root.is_dir():
            raise UserError(self.no_data)


def read_profiles(repository: Path) -> dict[str, dict[str, str]]:
    """The machine profiles of env/env: profile → {"LOGS": path, "DATASET": path}; anything else in them is a UserError."""
    path = repository / "env" / "env"
    profiles = read_mapping(path, "list of machine profiles")
    for name, profile in profiles.items():
        paths = profile.values() if isinstance(profile, dict) and profile.keys() == set(PROFILE_KEYS) else [None]
        if not all(isinstance(value, str) and value for value in paths):
            raise UserError(
                f"{path}: profile {name} must have the keys {' and '.join(PROFILE_KEYS)}, both paths, and nothing else"
            )
    return profiles


def dataset_folder(repository: Path, dataset: str, env: str | None, data_root: str | None) -> Path:
    """The folder of a data set by the same rules as for a training; the one that holds it is made if only that is missing.

    ``env`` names a machine profile, by default ``local``; ``data_root`` of the command line wins over it and over environment
    variables.

    Raises:
        UserError: a name that leads elsewhere, an unknown profile, or data_root does not exist on this machine.
    """
    require_folder_name("dataset", dataset)
    places = Places.of_machine(repository.absolute(), env or "local", None, data_root, {"data_root": "command line"})
    if places.data_root.parent.is_dir():
        places.data_root.mkdir(exist_ok=True)
    places.require_data()
    return places.data_root / dataset


def require_folder_name(option: str, text: str) -> None:
    """Refuses, as a UserError, the name of a run or data set that would lead elsewhere, or that no folder can have."""
    if text.startswith(("/", "~")) or not set(text.rstrip("/").split("/")).isdisjoint(("", ".", "..")):
        rule = "must be the name of a folder inside the run or data folder, without . or .. or a leading /"
        raise UserError(f"{option}={text} {rule}")
    if not text.isprintable() or max(len(part.encode()) for part in text.split("/")) > _LONGEST_NAME:
        raise UserError(f"{option}={text} must have printable letters only, and {_LONGEST_NAME} bytes at most between two /")
