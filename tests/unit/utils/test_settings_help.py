"""The help of train.py, and that neither it nor the settings load torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from settings_repository import make_repository

from experiment.reading import read_settings
from models.options import MODEL_OPTIONS

REPOSITORY = Path(__file__).resolve().parents[3]
VQ, KL, SSIM, ISOREF, LATERAL = "ae0iso0tccutvqq", "ae0iso0tccut", "ae0iso0tccutvqqssim", "IsoREF", "lateral"


def help_text(capsys, repository, *argv):
    with pytest.raises(SystemExit) as stop:
        read_settings([*argv, "--help"], MODEL_OPTIONS, repository)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_groups_the_options_with_their_effective_defaults(tmp_path, capsys):
    repository = make_repository(tmp_path, cropsize=64, models=KL)
    text = " ".join(help_text(capsys, repository, "--jsn", "x").split())
    headings = [text.index(f" {group}: ") for group in ("run", "data", "geometry", "networks", "losses", "CUT", "optimisation")]
    assert headings == sorted(headings)
    assert "a multiple of 8 (>=8) [x.json: 64]" in text
    assert "[default: ldmaex2]" in text
    assert "--nm {00,01,11}" in text
    assert "--mc, --no-mc" in text


def test_help_without_experiment_shows_the_default_model_or_the_one_asked_for(tmp_path, capsys):
    repository = make_repository(tmp_path)
    assert "--ldmyaml" in help_text(capsys, repository)
    text = help_text(capsys, repository, "--models", ISOREF)
    assert "--gdim" in text
    assert "--ldmyaml" not in text


@pytest.mark.parametrize("argv", [["--help"], ["--jsn", "aisr", "--help"], ["--jsn", "aisr", "--prj", "p"]])
def test_settings_and_help_load_no_torch(argv):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from models.options import MODEL_OPTIONS\nfrom experiment.reading import read_settings\n"
        "try:\n    read_settings(sys.argv[1:], MODEL_OPTIONS, Path('.'))\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'pytorch_lightning', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["train", "infer", "prepare", "evaluate", "import_reference"])
def test_the_help_of_every_script_loads_nothing_heavy(script):
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pytorch_lightning', 'scipy', 'skimage', 'matplotlib', 'zarr', 'tensorstore'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, f"{script}.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
