"""A disc that fills up while a command writes: one message, nothing that reads as finished, and the command goes on."""

import errno
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from infer_commands import VOXEL, command, refused
from infer_runs import grey, make_run

import evaluate
import prepare
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

SHAPE = (4, 96, 96)
# what is written, by whom
COMMANDS = {
    "o.ome.zarr": "enhance",
    "o.ome.tif": "enhance",
    "o.nii.gz": "enhance",
    "o.codes.zarr": "encode",
    "decoded.ome.zarr": "decode",
    "exported": "export",
    "data": "prepare",
    "report": "evaluate",
}
FULL = r"the disc is full; make room|cannot be written .*File too large"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a volume, a code store of it, a restored volume, and what every command writes where there is room."""
    root = tmp_path_factory.mktemp("full")
    make_run(root / "D" / "P")
    write_tiff(root / "in.tif", grey(SHAPE), voxel_um=VOXEL)
    write_tiff(root / "truth.tif", grey((32, 64, 64), dtype="uint8", high=250), voxel_um=(0.1, 0.1, 0.1))
    write_tiff(root / "restored.tif", grey((32, 64, 64), 1, "uint8", 250), voxel_um=(0.1, 0.1, 0.1))
    command("encode", "--run", root / "D" / "P", "--input", root / "in.tif", "--output", root / "in.codes.zarr")
    (root / "whole").mkdir()
    return root


def run(root, place, name):
    """One command, with its output in a place."""
    output, how = place / name, COMMANDS[name]
    if how in ("enhance", "encode"):
        command(how, "--run", root / "D" / "P", "--input", root / "in.tif", "--output", output)
    elif how == "decode":
        command(how, "--codes", root / "in.codes.zarr", "--output", output)
    elif how == "export":
        command(how, root / "in.codes.zarr", "--output", output)
    elif how == "prepare":
        words = ["volumes", "--input", root / "in.tif", "--dataset", "data", "--data_root", place, "--val", "0"]
        prepare.main([*map(str, words), "--debug"])
    else:
        files = ["--reconstruction", root / "restored.tif", "--truth", root / "truth.tif", "--thin", 8, "--output", output]
        evaluate.main([*map(str, files), "--debug"])


def contents(path):
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path.parent)): file.stat().st_size for file in files}


@contextmanager
def small_files(folder, most, _):
    """No file of this process grows beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def small_disc(folder, _, most):
    """A file system of so many bytes, that grows afterwards."""
    subprocess.run(["mount", "-o", f"remount,size={most}", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,size=256m", folder], check=True)


@pytest.fixture(params=["files", "disc"])
def disc(request, tmp_path):
    """A folder, and what limits it."""
    if request.param == "files":
        yield tmp_path, small_files
        return
    mounted = os.geteuid() == 0 and shutil.which("mount")
    (tmp_path / "disc").mkdir()
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", tmp_path / "disc"]).returncode:
        pytest.skip("a file system of its own needs root")
    yield tmp_path / "disc", small_disc
    subprocess.run(["umount", "--lazy", tmp_path / "disc"], check=True)  # what failed may still be held by its traceback


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disc_that_fills_up(made, disc, name, monkeypatch):
    place, limited = disc
    if not (made / "whole" / name).exists():
        run(made, made / "whole", name)
    whole = contents(made / "whole" / name)
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))  # what is looked at before says nothing
    largest, total = max(whole.values()), sum(-(-size // 4096) * 4096 for size in whole.values())
    with limited(place, largest // 2, max(total // 2 // 4096, 2) * 4096):
        with pytest.raises((UserError, OSError)) as end:
            run(made, place, name)
    if isinstance(end.value, OSError):  # the scripts show it so
        assert end.value.errno in (errno.ENOSPC, errno.EFBIG)
    else:
        assert end.match(FULL) and str(place) in str(end.value)
    left = place / name
    assert not left.exists() or not any(contents(left)) or (name == "report" and "report.html" not in str(contents(left)))
    run(made, place, name)
    assert contents(left).keys() == whole.keys()
    if "." in name and "codes" not in name:
        assert (open_volume(left)[:] == open_volume(made / "whole" / name)[:]).all()
    assert {path.name for path in place.iterdir()} <= {name, "disc"}


@pytest.mark.parametrize("how", ["enhance", "encode"])
def test_what_cannot_fit_is_refused_before_it_begins(made, tmp_path, how, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    words = ("--run", made / "D" / "P", "--input", made / "in.tif", "--output", tmp_path / f"o.{how}.zarr")
    refused("needs up to [1-9].* and .* has 10 bytes free; make room", how, *words)
    if how == "enhance":
        refused("needs up to [1-9].* and .* has 10 bytes free; make room", how, *words, "--dry-run")
    assert not list(tmp_path.iterdir())
