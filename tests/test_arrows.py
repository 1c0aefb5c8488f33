"""The architecture as code: which package may import which, and what must stay free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
MAY_IMPORT = {
    "utils": set(),
    "experiment": {"utils"},
    "volumes": {"utils"},
    "writing": {"volumes", "utils"},
    "intensity": {"volumes", "utils"},
    "taming": {"utils"},
    "networks": {"utils"},
    "ldm": {"utils"},
    "models": {"experiment", "ldm", "networks", "taming", "utils"},
    "dataloader": {"intensity", "volumes", "writing", "utils"},
    "training": {"experiment", "models", "dataloader", "utils"},
    "reference": {"experiment", "models", "utils"},
    "codes": {"experiment", "intensity", "volumes", "writing", "utils"},
    "inference": {"experiment", "intensity", "models", "codes", "volumes", "writing", "utils"},
    "sharing": {"experiment", "inference", "models", "codes", "volumes", "utils"},
    "evaluation": {"experiment", "intensity", "volumes", "taming", "utils"},
    "scripts": {"sharing", "inference", "training", "evaluation", "dataloader", "reference", "experiment", "utils"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def test_every_package_has_its_arrows():
    assert set(MAY_IMPORT) >= PACKAGES


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_only_downwards(package):
    files = ROOT.glob("*.py") if package == "scripts" else (ROOT / package).rglob("*.py")
    for path in files:
        ours = {name for name in imported(path) if name in PACKAGES | SCRIPTS}
        allowed = MAY_IMPORT[package] | {package}
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {sorted(ours - allowed)}"


def test_scripts_are_imported_by_nobody():
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in PACKAGES | SCRIPTS:
            assert not SCRIPTS & set(imported(path)), path


def test_files_stay_readable():
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in PACKAGES | {f"{name}.py" for name in SCRIPTS}:
            assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("arguments", [["--help"], ["--jsn", "aisr", "--help"]])
def test_help_needs_no_torch(arguments):
    code = (
        f"import runpy, sys; sys.argv = ['train.py', *{arguments!r}]\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'pytorch_lightning', 'albumentations'} & set(sys.modules), 'too early'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--cropsize" in done.stdout


def test_applying_a_run_needs_no_lightning():
    """Its import lasts longer than PyTorch's."""
    code = (
        "import infer, sys; infer.main(['info', 'pretrained/fib25'])\n"
        "assert {'torch'} == {'torch', 'pytorch_lightning', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
