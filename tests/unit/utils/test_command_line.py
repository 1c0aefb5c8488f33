"""What all scripts have in common on their command line."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from settings_repository import make_repository, read

from utils.command_line import Parser
from utils.errors import UserError, reported

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def parser():
    parser = Parser(prog="script.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    group = commands.add_parser("go", help="goes").add_argument_group("places")
    group.add_argument("--ignore-voxels", action="store_true", help="whether it looks")
    group.add_argument("--all", action="store_false", dest="some", help="nothing left out")
    group.add_argument("--voxel_um", type=float, default=0.25, help="side")
    return parser


@pytest.mark.parametrize("words", [["--ignore-voxels", "--voxel_um", "1"], ["--ignore_voxels", "--voxel-um=1"]])
def test_hyphens_and_underscores_are_one(parser, words):
    given = parser.parse_args(["go", *words])
    assert (given.ignore_voxels, given.voxel_um, given.debug) == (True, 1.0, False)


def test_hyphens_and_underscores_are_one_for_a_training(tmp_path):
    experiment = read(
        make_repository(tmp_path), "--batch-size", 3, "--no-use-mlp", "--crops-per-volume=2", "--data-root", "a", "--strict"
    )
    assert (experiment.settings["batch_size"], experiment.settings["crops_per_volume"]) == (3, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["go", "--voxel_um", "wide"], r"--voxel_um: invalid float value: 'wide'; see script.py go --help"),
        (["go", "--ignore"], r"^--ignore is not an option; did you mean --ignore-voxels\? see script.py go --help$"),
        (["go", "--qqq"], r"^unrecognized arguments: --qqq; see script.py go --help$"),
        (["--voxel_um", "1", "go"], r"^the command \(go\) comes first, then its options; see script.py --help$"),
        ([], r"^name a command: go; see script.py --help$"),
    ],
)
def test_mistakes_are_told_without_a_usage_of_many_lines(parser, words, message):
    with pytest.raises(UserError, match=message):
        parser.parse_args(words)


def test_the_help_says_defaults(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["go", "--help"])
    text = capsys.readouterr().out
    assert "side (default: 0.25)" in text and "whether it looks\n" in text
    assert "nothing left out\n" in text


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", ["--jsn"]),
        ("infer.py", ["enhance", "--run"]),
        ("prepare.py", ["volumes", "--input"]),
        ("evaluate.py", ["--truth"]),
        ("evaluate.py", ["compress", "--run"]),
        ("import_reference.py", ["--from"]),
    ],
)
def test_every_script_ends_with_one_line_and_code_2(script, words):
    done = subprocess.run([sys.executable, script, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: argument {words[-1]}: expected ")
    assert line.endswith(f"; see {' '.join([script, *words[:-1]])} --help")


def test_a_terminal_that_does_not_know_a_letter_is_shown_its_number(monkeypatch):
    """As on a cluster whose language is de_DE.ISO-8859-1; what is written are names of any bytes, too."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    with reported(debug=False):
        sys.stdout.write("5 µm … \udcff")
        sys.stdout.flush()
    assert shown.getvalue() == b"5 \xb5m \\u2026 \\udcff"


@pytest.mark.parametrize(("stopped", "code"), [(KeyboardInterrupt(), 130), (SystemExit(75), 75), (ValueError(), None)])
def test_a_signal_that_comes_as_a_library_is_loaded_ends_the_program_as_ever(stopped, code):
    """pybind11 makes an ImportError of it."""
    with pytest.raises(SystemExit if code else ImportError) as caught, reported(debug=False):
        raise ImportError("initialization failed") from stopped
    assert code is None or caught.value.code == code


def test_a_lack_of_memory_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as end, reported(debug=False):
        raise MemoryError("Unable to allocate 3.00 GiB")
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory does not suffice (Unable to allocate 3.00 GiB); ")
    with pytest.raises(MemoryError), reported(debug=True):
        raise MemoryError


def test_lines_that_nobody_reads_any_more_end_nothing():
    code = (
        "import logging, sys\nfrom utils.command_line import Messages\n"
        "logging.basicConfig(level=20, handlers=[Messages(sys.stdout)], format='%(message)s')\n"
        "for n in range(20000): logging.info('line %d', n)\nprint('done', file=sys.stderr)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout.readline() == "line 0\n"
        shown.stdout.close()
        assert shown.stderr.read() == "done\n"
    assert shown.returncode == 0
