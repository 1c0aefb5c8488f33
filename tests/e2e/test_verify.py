"""What was written is checked before it is built upon: files deleted and bits flipped in outputs, stores and runs are noticed."""

import json
import logging
import shutil

import numpy as np
import pytest
import zarr
from infer_commands import command, read
from infer_runs import grey, make_run

from inference import Engine, Options, Output, Run, decode, encode, enhance
from utils.checksums import sha256
from utils.errors import UserError
from writing.target import Target
from writing.write import write_tiff

CPU = Engine.choose("cpu")
TILE = Options(tile=32)
KINDS = ("volume", "codes", "gaussian")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, place):
    """One bit at a place of a file, 0 to 1."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def spoilt(path, how):
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        flip(path, float(how))


HOW = ("deleted", "cut", "zeros", "0", "0.5", "1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "D"
    return {"codes": make_run(folder / "P"), "gaussian": make_run(folder / "G", "ae0iso0tccut", hbranch="z")}


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """An output of each kind, with planes of pure background, whose codes, emptiness and voxels are zero."""
    folder = tmp_path_factory.mktemp("whole")
    values = grey((5, 70, 90))
    values[:, :, 40:] = 0
    write_tiff(folder / "in.tif", values)
    enhance(folder / "in.tif", runs["codes"], TILE, engine=CPU, output=folder / "volume.ome.zarr")
    for kind in ("codes", "gaussian"):
        encode(folder / "in.tif", runs[kind], folder / f"{kind}.codes.zarr", engine=CPU)
    return folder


def made(folder, kind):
    return folder / ("volume.ome.zarr" if kind == "volume" else f"{kind}.codes.zarr")


def verified(path):
    with pytest.raises(SystemExit) as end:
        command("verify", path)
    return end.value.code


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_found_whole(whole, kind, caplog):
    assert verified(made(whole, kind)) == 0
    assert "nothing damaged or missing" in caplog.text and "no checksums" not in caplog.text


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_finished_output_is_checked_where_it_is_used(whole, runs, tmp_path, caplog, kind, how):
    source = made(whole, kind)
    shape = read(source).shape if kind == "volume" else None
    right = read(source) if kind == "volume" else decode(source, engine=CPU)
    for file in files(source):
        copied = tmp_path / source.name
        shutil.copytree(source, copied)
        spoiled = copied / file.relative_to(source)
        spoilt(spoiled, how)
        caplog.clear()
        assert verified(copied) == 1, f"{how} of {file.relative_to(source)} is not found"
        try:
            found = read(copied) if kind == "volume" else decode(copied, runs[kind], engine=CPU)
        except UserError as error:
            assert str(copied) in str(error)
        else:  # the description of an image is for other programs to change: said, not refused
            assert kind == "volume" and spoiled.parent == copied and "other than it was written" in caplog.text
            assert found.shape == shape and (found == right).all()
        shutil.rmtree(copied)


class Killed(BaseException):
    """What stands for SIGKILL: nothing after it is done."""


@pytest.mark.parametrize("how", ["deleted", "cut", "0.5"])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_an_unfinished_output_are_checked_before_it_goes_on(whole, runs, tmp_path, monkeypatch, caplog, kind, how):
    output = tmp_path / made(whole, kind).name

    def begin():
        if kind == "volume":
            enhance(whole / "in.tif", runs["codes"], TILE, engine=CPU, output=output)
        else:
            encode(whole / "in.tif", runs[kind], output, engine=CPU)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "require_whole", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            begin()
    partial = next(tmp_path.iterdir())
    blocks = [file for file in files(partial) if file.name.isdigit()]
    assert blocks
    for file in blocks:
        spoilt(file, how)
    caplog.clear()
    begin()
    assert how == "deleted" or "it is made again" in caplog.text
    if kind == "volume":
        assert (read(output) == read(made(whole, kind))).all()
    else:
        assert (decode(output, engine=CPU) == decode(made(whole, kind), engine=CPU)).all()
    assert verified(output) == 0


def test_what_is_whole_is_not_made_again(whole, runs, tmp_path, monkeypatch):
    output, written = tmp_path / "v.ome.zarr", []
    with monkeypatch.context() as patch:
        patch.setattr(Target, "require_whole", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            enhance(whole / "in.tif", runs["codes"], engine=CPU, output=output)
    monkeypatch.setattr(Target, "note", lambda _, numbers, level=0: written.extend(numbers))
    enhance(whole / "in.tif", runs["codes"], engine=CPU, output=output)
    assert not written and output.is_dir()


def test_an_output_of_an_older_version_is_read_and_said_to_have_no_checksums(whole, tmp_path, caplog):
    old = tmp_path / "old.ome.zarr"
    shutil.copytree(made(whole, "volume"), old)
    for file in old.rglob("zarr.json"):
        content = json.loads(file.read_text())
        content["attributes"] = {k: v for k, v in content["attributes"].items() if k in ("ome", "isoscope")}
        file.write_text(json.dumps(content))
    assert verified(old) == 0 and "no checksums were recorded" in caplog.text
    assert (read(old) == read(made(whole, "volume"))).all()


@pytest.mark.parametrize("name", ["o.ome.tif", "o.nii.gz"])
def test_a_volume_in_one_file_is_read_to_its_end(whole, runs, tmp_path, caplog, name):
    output = tmp_path / name
    enhance(whole / "in.tif", runs["codes"], engine=CPU, output=Output(output))
    assert verified(output) == 0 and "no checksums were recorded" in caplog.text
    content = output.read_bytes()
    output.write_bytes(content[: len(content) // 2] + bytes(1000) + content[len(content) // 2 + 1000 :])
    assert verified(output) == 1 and "1 damaged or missing" in caplog.text


def test_every_file_of_a_run_is_checked(workspace, caplog):
    run = workspace.train("one", "--ema", 0.9, "--epoch_save", 1)
    assert verified(run.path) == 0 and "epochs 1, 2" in caplog.text
    for path in sorted(run.path.rglob("*")):
        if path.suffix not in (".pth", ".ckpt", ".json") or path.name == "manifest.json":
            continue
        content, digest = path.read_bytes(), sha256(path)
        path.write_bytes(content[:-30])
        caplog.clear()
        assert verified(run.path) == 1 and path.name in caplog.text, path
        path.write_bytes(content)
        assert sha256(path) == digest
    assert verified(run.path) == 0


def test_a_plain_array_is_read_to_its_end(tmp_path, caplog):
    zarr.create_array(tmp_path / "v.zarr", data=np.ones((5, 6, 7), np.uint8))
    assert verified(tmp_path / "v.zarr") == 0 and "no checksums" in caplog.text


def test_a_run_is_needed_no_more_for_what_it_made(whole, runs, caplog):
    assert Run.load(runs["codes"], engine=CPU).weight_hash
    with pytest.raises(UserError, match="no such file or folder"):
        command("verify", whole / "nothing.zarr")
