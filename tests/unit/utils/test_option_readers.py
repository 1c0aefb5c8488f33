"""No option without effect: the code outside the tables reads every one."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.options import BASE_OPTIONS
from models.options import MODEL_OPTIONS

REPOSITORY = Path(__file__).resolve().parents[3]
OPTIONS = sorted({option.name for own in (BASE_OPTIONS, *MODEL_OPTIONS.values()) for option in own})


def names_read(path):
    """Keys read as ``settings["lr"]``, ``s.get("tc")``, ``{n: settings[n] for n in NAMES}`` or ``early.jsn``."""
    tree = ast.parse(path.read_text())
    values = {target.id: node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in named(node.targets)}
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=owner, slice=ast.Constant(value=str(name)), ctx=ast.Load()) if of_settings(owner):
                yield name
            case ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(value=str(name)), *_]):
                if of_settings(owner):
                    yield name
            case ast.Attribute(value=ast.Name(id="early"), attr=name):
                yield name
            case ast.DictComp(generators=[ast.comprehension(target=target, iter=source)], value=ast.Subscript() as found):
                source = values.get(source.id) if isinstance(source, ast.Name) else source
                if of_settings(found.value) and ast.unparse(found.slice) == ast.unparse(target) and isinstance(source, ast.Tuple):
                    yield from (part.value for part in ast.walk(source) if isinstance(part, ast.Constant))


def named(targets):
    return [target for target in targets if isinstance(target, ast.Name)]


def of_settings(owner):
    return ast.unparse(owner).rpartition(".")[2] in ("settings", "s")


@pytest.fixture(scope="module")
def read():
    apart = {"tests", "benchmarks", "shared"}
    folders = [folder for folder in REPOSITORY.iterdir() if folder.name[0] != "." and folder.name not in apart]
    product = [path for folder in folders for path in (folder.rglob("*.py") if folder.is_dir() else [folder])]
    product = [path for path in product if path.suffix == ".py"]
    return {name for path in product for name in names_read(path)}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_reader(read, name):
    assert name in read


def test_debug_in_an_experiment_file_shows_tracebacks(tmp_path):
    for debug in (True, False):
        (tmp_path / "x.json").write_text(json.dumps({"train": {"dataset": "D", "debug": debug}}))
        words = ["--jsn", str(tmp_path / "x.json"), "--prj", "p", "--data_root", str(tmp_path / "nowhere")]
        done = subprocess.run([sys.executable, "train.py", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert "the data folder" in done.stderr
        assert ("Traceback" in done.stderr) == debug
