"""Files and folders that appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.files import beside, new_folder, put_files, put_folder, replaced, write_json, write_text, writing

ROOT = Path(__file__).resolve().parents[3]


def test_a_file_appears_whole_and_what_was_there_survives_a_failure(tmp_path):
    file = tmp_path / "a[1].json"
    (tmp_path / ".a[1].json.99.partial").touch()  # of a process that was killed
    other = tmp_path / ".a[1].json.partial.zarr.12ab.partial"  # of one that begins another output, a folder
    other.mkdir()
    write_json(file, {"µ": 1})
    assert file.read_text(encoding="utf-8") == '{\n  "µ": 1\n}\n'
    with pytest.raises(RuntimeError), replaced(file) as partial:
        partial.write_text("half of i")
        raise RuntimeError
    assert file.read_text(encoding="utf-8") == '{\n  "µ": 1\n}\n'
    assert set(tmp_path.iterdir()) == {file, other}


def test_content_and_name_are_on_disc_before_anyone_goes_on(tmp_path, monkeypatch):
    done, kinds = [], {True: "folder", False: "file"}
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (done.append(kinds[Path(f"/proc/self/fd/{h}").resolve().is_dir()]), sync(h)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    write_text(tmp_path / "a.txt", "a")
    assert done == ["file", "rename", "folder"]


def test_a_full_disc_and_a_forbidden_folder_are_messages(tmp_path):
    with pytest.raises(UserError, match=r"a\.pth: the disc is full; make room and run the command again"), writing("a.pth"):
        with open("/dev/full", "wb") as file:
            torch.save({"weight": torch.zeros(10**5)}, file)
    with pytest.raises(UserError, match=r"missing/a\.txt cannot be written \(.*No such file"):
        write_text(tmp_path / "missing" / "a.txt", "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "deep" / "run") as folder:
        (folder / "0.json").touch()
        raise RuntimeError
    assert not list((tmp_path / "deep").iterdir())
    for content in "ab":
        with new_folder(tmp_path / "new") as folder:
            (folder / content).touch()
        put_folder(tmp_path / "new", tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["b"]
    with pytest.raises(UserError, match="run cannot be written"), new_folder(tmp_path / "run"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "run"}


def test_a_set_of_files_takes_the_place_of_an_older_one(tmp_path):
    for name, content in {"scratch/a": "new", "out/a": "old", "out/b": "old", "out/c": "kept"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    put_files(tmp_path / "scratch", tmp_path / "out", ["a", "b"])
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {"a": "new", "c": "kept"}


def test_files_are_put_in_place_by_nobody_else():
    ways = ("os.replace(", "os.fsync(", "NamedTemporaryFile", "mkstemp")
    rooms = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in ("tests", "benchmarks") and p.name[0] != "."]
    found = {str(p.relative_to(ROOT)) for room in rooms for p in room.rglob("*.py") if any(w in p.read_text() for w in ways)}
    assert found == {"utils/files.py"}


def test_what_killed_processes_left_is_removed_by_the_next_one(tmp_path):
    """And nothing else: what a living process works on, and other names."""
    code = "import os, sys; from pathlib import Path; from utils.files import beside, new_folder, put_folder\n"
    dying = (
        "with new_folder(Path(sys.argv[1]) / 'out') as f: (f / 'x').mkdir(); os.kill(os.getpid(), 9)",
        "beside(Path(sys.argv[1]) / 'out', 'replaced').mkdir()",
        "beside(Path(sys.argv[1]) / 'out', 'discarded').mkdir()",
    )
    for line in dying:
        subprocess.run([sys.executable, "-c", code + line, tmp_path], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 3
    others = [beside(tmp_path / "out", "partial"), beside(tmp_path / "out2", "partial"), tmp_path / ".out.mine-1-2.partial"]
    for other in others:
        other.mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert set(tmp_path.iterdir()) == {tmp_path / "out", *others}
