"""What README promises of the installation, as far as it can be told offline."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
REQUIRED = [
    *PROJECT["project"]["dependencies"],
    *(r for extra in PROJECT["project"]["optional-dependencies"].values() for r in extra),
]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("line", [line for line in REQUIRED if not line.startswith("isoscopexx[")])
def test_the_tested_installation_has_every_requirement(line):
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.partition("==")[::2] for line in lines if not line.startswith("#"))
    versions = {normal(name): version for name, version in pins.items()}
    wanted = Requirement(line)
    assert versions[normal(wanted.name)] in wanted.specifier


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_same_pythons_are_promised_and_accepted(python):
    assert python + ".0" in SpecifierSet(PROJECT["project"]["requires-python"])
    assert python in (REPOSITORY / "README.md").read_text() and f"python{python}" in (REPOSITORY / "run.sh").read_text()


def test_no_requirement_admits_a_version_that_must_not_be_used():
    """torch 2.9 is slow or wrong on CUDA; Lightning 2.6.2 and 2.6.3 were released by an attacker."""
    wanted = {normal(Requirement(line).name): Requirement(line).specifier for line in REQUIRED}
    assert "2.9.1" not in wanted["torch"]
    assert not {"2.6.2", "2.6.3", "3.0.0"} & set(wanted["pytorch-lightning"].filter(["2.6.2", "2.6.3", "2.6.4", "3.0.0"]))


def test_an_installation_that_is_not_editable_is_refused(monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(REPOSITORY / PROJECT["build-system"]["backend-path"][0]))
    backend = __import__(PROJECT["build-system"]["build-backend"])
    monkeypatch.delitem(sys.modules, backend.__name__)
    with pytest.raises(SystemExit, match="--editable"):
        backend.build_wheel("somewhere")
    assert callable(backend.build_editable)


def test_every_package_is_listed():
    folders = {path.parent.relative_to(REPOSITORY) for path in REPOSITORY.glob("[a-z]*/**/__init__.py")}
    packages = {".".join(folder.parts) for folder in folders if folder.parts[0] not in ("tests", "benchmarks", "shared")}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])
