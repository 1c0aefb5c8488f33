"""A small repository for tests of the settings: profiles, one experiment, and how to read it."""

import json

from experiment.reading import read_settings
from models.options import MODEL_OPTIONS

PROFILES = {
    "local": {"LOGS": "./logs/", "DATASET": "./data/"},
    "lab": {"LOGS": "/lab/logs/", "DATASET": "/lab/Data/"},
}


def write_experiment(repository, block, name="x.json"):
    (repository / "env" / "jsn" / name).write_text(json.dumps({"train": block}))


def make_repository(folder, **block):
    (folder / "env" / "jsn").mkdir(parents=True)
    (folder / "env" / "env").write_text(json.dumps(PROFILES))
    write_experiment(folder, {"dataset": "D", **block})
    return folder


def read(repository, *argv, prj="run"):
    return read_settings(["--jsn", "x", "--prj", prj, *map(str, argv)], MODEL_OPTIONS, repository)
