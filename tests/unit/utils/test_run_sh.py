"""run.sh installs what it is asked for, once, and says what to do where that cannot be had; the containers call it."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PIP = """#!/usr/bin/env bash
[ "$*" != "-c import pip" ] || exit 0
echo "$*" >> {calls}
for word; do [ "$before" != --constraint ] || cp "$word" {seen}; before=$word; done
exit {code}
"""


@pytest.fixture
def checkout(tmp_path):
    for name in ("run.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(checkout, *words, code=0):
    python = checkout / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(PIP.format(calls=checkout / "calls", seen=checkout / "seen", code=code))
    python.chmod(0o755)
    (checkout / "calls").write_text("")
    environment = {**os.environ, "ISOSCOPE_VENV": str(checkout / "venv")}
    done = subprocess.run([checkout / "run.sh", *words], env=environment, capture_output=True, text=True)
    return done, (checkout / "calls").read_text().splitlines()


def test_it_installs_once_and_again_where_versions_changed(checkout):
    done, calls = run(checkout, "enhance")
    assert (
        done.returncode == 2 and "'./run.sh enhance' is not known" in done.stderr and "./run.sh test" in done.stderr and not calls
    )
    done, calls = run(checkout, "--help")
    assert done.returncode == 0 and "./run.sh test" in done.stdout and not calls
    done, calls = run(checkout, "setup")
    assert done.returncode == 0 and len(calls) == 1 and calls[0].endswith("--editable .[test]")
    assert (checkout / "seen").read_text() == (checkout / "constraints.txt").read_text()
    assert run(checkout, "setup")[1] == []
    (checkout / "constraints.txt").write_text((checkout / "constraints.txt").read_text() + "more==1\n")
    done, calls = run(checkout, "setup")
    assert len(calls) == 1 and "--quiet" in calls[0] and "up to date" in done.stdout and not done.stderr
    done, calls = run(checkout, "infer", "info", "x y")
    assert calls == ["infer.py info x y"]


def test_benchmarks_have_a_door(checkout):
    shutil.copytree(ROOT / "benchmarks", checkout / "benchmarks", ignore=shutil.ignore_patterns("results"))
    run(checkout, "setup")
    assert run(checkout, "bench", "step", "--steps", "1")[1] == ["benchmarks/step.py --steps 1"]
    for words in ((), ("setp",)):
        done, calls = run(checkout, "bench", *words)
        assert done.returncode == 2 and " step " in done.stderr and " machine " not in done.stderr and not calls


def test_without_cuda(checkout):
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("elsewhere the usual packages have no CUDA")
    done, calls = run(checkout, "--cpu", "setup", code=1)
    assert done.returncode == 2 and "Start Locally" in done.stderr and len(calls) == 1
    done, calls = run(checkout, "--cpu", "setup")
    assert done.returncode == 0 and len(calls) == 1
    pins = (checkout / "seen").read_text().splitlines()
    plain = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(("torch==", "torchvision=="))
    ]
    assert {f"{line}+cpu" for line in plain} <= set(pins) and not set(plain) & set(pins)
    assert not [line for line in pins if line.startswith(("nvidia", "cuda", "triton"))]
    assert run(checkout, "setup")[1] == []  # it stays what it is


def test_containers_call_it():
    docker, apptainer = ((ROOT / "container" / name).read_text() for name in ("Dockerfile", "isoscopexx.def"))
    assert "RUN ./run.sh ${SETUP}" in docker and "    ./run.sh setup\n" in apptainer
    assert 'ENTRYPOINT ["/isoscopexx/run.sh"]' in docker and 'exec /isoscopexx/run.sh "$@"' in apptainer
    assert "python:${PYTHON}-slim-bookworm" in docker and "python:3.12-slim-bookworm" in apptainer and "PYTHON=3.12\n" in docker
