"""infer.py export: a folder that needs nothing else, appears whole or not at all, and names its damage."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
import zarr
from infer_commands import VOXEL, command, read, refused
from infer_runs import grey, make_run
from safetensors.numpy import load_file

import evaluate
from codes.store import CodeStore
from experiment.runs import RunFolder
from inference import Run, decode, encode, enhance
from sharing.exporting import export
from utils.checksums import SUMS, write_checksums
from utils.errors import UserError
from utils.files import write_json
from writing.write import write_tiff


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a store of it, what the run itself decodes, and the exported folder: the run is gone."""
    root = tmp_path_factory.mktemp("export")
    run = make_run(root / "D" / "P", l1how="dsp", codebook={"levels": 2})
    write_tiff(root / "in.tif", grey((3, 37, 43)), voxel_um=VOXEL)
    store = root / "s" / "in.codes.zarr"
    store.parent.mkdir()
    command("encode", "--run", run, "--input", root / "in.tif", "--output", store)
    wanted = {grid: decode(store, grid=grid) for grid in ("isotropic", "raw")}
    command("export", store, "--output", root / "whole")
    shutil.rmtree(run)
    shutil.rmtree(store)
    return root / "whole", wanted


def test_it_decodes_bit_for_bit_with_no_run_folder(made, tmp_path):
    folder, wanted = made
    command("decode", "--input", folder, "--output", tmp_path / "iso.ome.zarr")
    np.testing.assert_array_equal(read(tmp_path / "iso.ome.zarr"), wanted["isotropic"])
    np.testing.assert_array_equal(decode(folder, grid="raw"), wanted["raw"])
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "x")
    np.testing.assert_array_equal(decode(moved / "codes.zarr"), wanted["isotropic"])
    first = decode(moved, grid="raw", levels=1)
    assert not np.array_equal(first, wanted["raw"])
    again = export(moved, tmp_path / "again")
    np.testing.assert_array_equal(decode(again), wanted["isotropic"])
    listed = sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    assert listed == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_lies_in_it(made):
    folder, _ = made
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".pth", ".ckpt", ".pkl", ".py"))}
    components = {path.name.partition("_model")[0] for path in folder.joinpath("checkpoints").glob("*.safetensors")}
    assert components == {"quantize", "post_quant_conv", "decoder", "net_g"}
    book = load_file(folder / "checkpoints" / "quantize_model_epoch_3.safetensors")
    assert [value.shape for value in book.values()] == [(256, 4)] * 2
    assert zarr.open_group(folder / "codes.zarr", mode="r").attrs["ome"]["version"] == "0.5"
    page = (folder / "README.md").read_text()
    for said in ("0.8, 0.1, 0.1", "`dsp`", "D/P@3", "dsp 1, usp 1.", "2 level(s) of 256 vectors of 4", "no encoder", "## Limits"):
        assert said in page, page
    assert str(folder.parent) not in page + (folder / "codes.zarr" / "zarr.json").read_text()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=True)


def test_info_names_everything(made, caplog):
    caplog.set_level("INFO")
    command("info", made[0])
    for said in ("D/P@3", "no encoder", "every file is as it was written", "256 codes in 2 level(s)", "bytes on disc"):
        assert said in caplog.text


def test_it_cannot_encode(made, tmp_path):
    write_tiff(tmp_path / "in.tif", grey((3, 37, 43)), voxel_um=VOXEL)
    for verb, name in (("encode", "x.codes.zarr"), ("enhance", "x.tif")):
        refused("no encoder", verb, "--run", made[0], "--input", tmp_path / "in.tif", "--output", tmp_path / name)
    assert not list(tmp_path.glob("x*"))


FILES = (
    *("README.md", "export.json", "0.json", "dataset.json", "checkpoints/manifest.json", "codes.zarr/zarr.json"),
    *(f"checkpoints/{name}_model_epoch_3.safetensors" for name in ("quantize", "decoder", "net_g")),
    *("codes.zarr/codes/zarr.json", "codes.zarr/codes/c/0/0/0", "codes.zarr/codes_1/c/0/0/0"),
)


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(made, tmp_path, harm, name):
    folder = shutil.copytree(made[0], tmp_path / "x")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).unlink()
    if harm != "gone":
        (folder / name).write_bytes(data if harm == "flip" else data[: len(data) // 2])
    with pytest.raises(UserError, match=name if harm == "gone" else "codes.zarr" if name.startswith("codes") else name):
        decode(folder)
    refused(name, "info", folder)


def test_without_its_list_it_is_refused(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "x")
    (folder / SUMS).unlink()
    with pytest.raises(UserError, match=SUMS):
        decode(folder)
    write_checksums(folder)
    decode(folder)
    about = json.loads((folder / "export.json").read_text())
    for changes, said in (({"version": 9}, "version 9"), ({"components": None, "run": 3}, "does not say run, components")):
        write_json(folder / "export.json", {**about, **changes})
        write_checksums(folder)
        with pytest.raises(UserError, match=said):
            decode(folder)


def test_it_appears_whole_or_not_at_all(made, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept").write_text("precious")
    refused("exists; an export never replaces", "export", made[0], "--output", tmp_path / "there")
    refused("no such file or folder", "export", tmp_path / "nothing", "--output", tmp_path / "o")
    refused("is not a code store", "export", tmp_path / "there", "--output", tmp_path / "o")
    refused("holds or lies in", "export", made[0], "--output", made[0] / "inside")
    damaged = shutil.copytree(made[0], tmp_path / "damaged")
    (damaged / "codes.zarr" / "codes_1" / "c" / "0" / "0" / "0").write_bytes(b"12")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="codes_1 cannot be read"):
        patch.setattr("experiment.runs.check_checksums", lambda *_, **__: None)
        export(damaged, tmp_path / "o")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sharing.exporting.write_checksums", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        export(made[0], tmp_path / "o")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "there"]
    assert (tmp_path / "there" / "kept").read_text() == "precious"


def test_a_store_of_other_weights_is_not_exported(made, tmp_path):
    write_tiff(tmp_path / "in.tif", grey((3, 37, 43)), voxel_um=VOXEL)
    run, other = make_run(tmp_path / "D" / "P"), make_run(tmp_path / "D" / "O", l1how="dsp", ngf=8)
    encode(tmp_path / "in.tif", run, tmp_path / "x.codes.zarr")
    refused("encoded with other weights", "export", tmp_path / "x.codes.zarr", "--run", other, "--output", tmp_path / "o")
    shutil.move(run, tmp_path / "moved")
    refused("which is not there; name the run", "export", tmp_path / "x.codes.zarr", "--output", tmp_path / "o")
    command("export", tmp_path / "x.codes.zarr", "--run", tmp_path / "moved", "--output", tmp_path / "o")
    assert CodeStore.open(tmp_path / "o").shape == (3, 5, 6)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("ae0iso0tccutvqq", {}),
        ("ae0iso0tccut", {"hbranch": "z"}),
        ("ae0iso0tccut", {"hbranch": "mid"}),
        ("IsoREF", {"nocyc": True}),
        ("lateral", {"uprate": 4.0, "blocks": 1}),
    ],
)
def test_a_run_alone(tmp_path, model, settings):
    run = make_run(tmp_path / "D" / "P", model, **settings)
    averaged = run / "checkpoints" / "net_g_ema_model_epoch_3.pth"
    for path in list(averaged.parent.glob("*.pth")):
        if path.name.startswith("net_g_"):
            shutil.copy(path, averaged)
        else:
            shutil.copy(path, path.with_name(path.name.replace("_model", "_ema_model")))
    state = torch.load(averaged)
    first = next(iter(state))
    state[first] += 0.01
    torch.save(state, averaged)
    volume = grey((3, 37, 43))
    wanted, known = enhance(run, volume), Run.load(run)
    assert known.ema
    export(run, tmp_path / "alone")
    opened = Run.load(tmp_path / "alone")
    assert (opened.name, opened.ema, opened.weight_hash) == (known.name, True, known.weight_hash)
    shutil.rmtree(run)
    np.testing.assert_array_equal(enhance(tmp_path / "alone", volume), wanted)


def test_the_page_says_how_good_it_is(tmp_path):
    run, other = (
        make_run(tmp_path / "D" / name, "lateral", uprate=4.0, blocks=1, ngf=width) for name, width in (("P", 4), ("O", 8))
    )
    write_tiff(tmp_path / "truth.tif", grey((32, 40, 40)))
    write_tiff(tmp_path / "in.tif", grey((32, 40, 40))[2::4])
    command("enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / "out.tif")
    judged = ["--truth", tmp_path / "truth.tif", "--input", tmp_path / "in.tif", "--output", tmp_path / "report"]
    evaluate.main([str(word) for word in ["--reconstruction", tmp_path / "out.tif", *judged]])
    (tmp_path / "about.md").write_text("Data: CC BY, µm\n\nTrained <fast>\n")
    told = ("--about", tmp_path / "about.md")
    command("export", run, "--output", tmp_path / "alone", "--evaluation", tmp_path / "report", *told)
    page = (tmp_path / "alone" / "README.md").read_text()
    [line] = [line for line in page.splitlines() if "--init FOLDER" in line]
    assert set(line.partition("FOLDER ")[2].split(" --")) == {"--ngf 4", "blocks 1", "uprate 4"}, line
    assert "\n\nData: CC BY, µm\n\nTrained &lt;fast>\n\nHere are:" in page
    assert "import zarr" not in page and "autoencoder" not in page  # of a run that restores, without codes
    verdict = json.loads((tmp_path / "report" / "metrics.json").read_text())["verdict"]
    assert f"`evaluate.py` on out.tif, made of in.tif, beside the truth truth.tif: **{verdict['headline']}**" in page
    assert all(f"* {sentence}" in page for sentence in verdict["sentences"]) and "Not measured" not in page
    wanted = ("--output", tmp_path / "o", "--evaluation", tmp_path / "report")
    refused("which D/O@3 with these weights has not made", "export", other, *wanted)
    (tmp_path / "report" / "metrics.json").write_text("{}")
    refused("is no evaluation", "export", run, *wanted)
    for harm in (lambda file: file.write_bytes(b"\xff"), lambda file: file.unlink()):
        harm(tmp_path / "about.md")
        refused("cannot be read as text", "export", run, "--output", tmp_path / "o", *told)
    assert not (tmp_path / "o").exists()


def test_a_training_starts_from_an_exported_run(workspace, tmp_path):
    run = workspace.train("first")
    folder = export(run.path, tmp_path / "alone")
    assert str(run.path.parents[1]) not in (folder / "0.json").read_text()  # a place on the maker's machine
    made = workspace.train("second", "--init", folder, "--n_epochs", 1, "--lr", 1e-9)
    for name in ("encoder", "net_g"):
        state, before = (torch.load(path, weights_only=True) for path in (made.component(name, 1), run.component(name, 2)))
        assert all(torch.allclose(state[key], before[key], atol=1e-6) for key in before if key.endswith("weight"))
    with pytest.raises(UserError, match="already holds a training"):
        RunFolder(folder).check(resume=False, overwrite=False)
