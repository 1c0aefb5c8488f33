"""README and docs/: links lead somewhere, commands are those of the program, the page of settings is what the tables say."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import evaluate
import import_reference
import infer
import prepare
from experiment.reading import known_experiments, read_settings
from training import MODEL_OPTIONS

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "pretrained" / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(
    r"^(?:python (\w+)\.py|\./run\.sh (prepare|train|infer|evaluate|import_reference)|.*(?:--|python) (infer|train)\.py) +(.*)"
)
PARSERS = {"infer": infer.build_parser, "import_reference": import_reference.build_parser}


def prose(page):
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page):
    """As GitHub and MkDocs name the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands():
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            yield from (pytest.param(line, id=f"{page.name}: {line[:60]}") for line in block.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = re.findall(
        r"\b((?:benchmarks|docs|env/jsn|ldm|models|networks|evaluation|utils|tests)/[\w/-]+\.\w+)\b", page.read_text()
    )
    named += [
        f"env/jsn/{name}" for name in re.findall(r"`(\w+\.json)`", page.read_text()) if name.startswith(("fib", "quick", "meso"))
    ]
    missing = {name for name in named if not (ROOT / name).is_file() and "mytissue" not in name and "NAME" not in name}
    assert not missing


@pytest.mark.parametrize("line", [*commands()])
def test_commands_are_those_of_the_program(line):
    """Every line is understood by the parser of its script; what it does is tested with the script."""
    found = COMMAND.match(line)
    if not found:
        assert line.split()[:1] in ([], ["./run.sh"], ["source"])
        return
    script, words = next(filter(None, found.groups()[:3])), shlex.split(found[4], comments=True)
    if script == "train":
        understood(words)
    elif script == "prepare":
        options, rest = prepare.build_parser().parse_known_args(words)
        if options.command == "check":
            understood(["--prj", "check", *rest])
        else:
            assert not rest
    elif script == "evaluate" and words[0] == "compress":
        evaluate.build_compress_parser().parse_args(words[1:])
    elif script == "evaluate":
        evaluate.build_parser().parse_args(words)
    else:
        options, rest = PARSERS[script]().parse_known_args(words)
        assert script == "import_reference" or not rest


def understood(words):
    """The settings of a training; an experiment that the reader is to make stands for the one it begins with."""
    name = words[words.index("--jsn") + 1]
    known = name in known_experiments(ROOT)
    words = [("lateral" if word == name and not known else word) for word in words]
    read_settings([*words, *(() if known else ("--dataset", name))], MODEL_OPTIONS, ROOT)


def test_the_page_of_settings_is_what_the_tables_say():
    assert (ROOT / "docs" / "settings.md").read_text() == runpy.run_path(str(ROOT / "docs" / "settings.py"))["page"](), (
        "./run.sh docs"
    )


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_page_has_its_place():
    entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {page for entry in entries for page in entry.values()} == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<table" in (tmp_path / "site" / "settings.html").read_text()
