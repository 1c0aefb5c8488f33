"""Files of strangers: one test per way in which a file could do more than be read."""

import gzip
import json
import logging
import os
import pickle
import shutil
import zipfile
import zlib
from itertools import pairwise

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import torch
import zarr
from infer_commands import command
from infer_runs import grey, make_run
from PIL import Image
from sound_files import RECORD, VALUES, ome_zarr, ome_zarr_4, zipped

from codes.store import CodeStore
from experiment.runs import RunFolder
from inference import Run, decode, encode
from sharing.exporting import export
from tests.outcomes import limited, measures_memory
from tests.unit.volumes.target_volumes import write_volume
from utils.checksums import sha256
from utils.command_line import Messages
from utils.errors import UserError
from volumes.open import expand_inputs, open_volume
from writing.write import write_tiff

MOST = 2**25  # bytes beside what is held, while one of 2**27 is refused
BOMB = 2**27


class Evil:
    """Unpickled it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def evil(tmp_path):
    """A pickle that works, and where it would leave its mark."""
    marker = tmp_path / "hacked"
    program = pickle.dumps(Evil(marker), 2)
    pickle.loads(program)
    marker.rmdir()
    yield program
    assert not marker.exists()


def read(path):
    return [open_volume(found)[:] for found in expand_inputs([path])]


def refused(path, match):
    with pytest.raises(UserError, match=match):
        read(path)


# ---- pickles

CODECS = [
    ("<u2", {"id": "pickle", "protocol": 2}, None),
    ("<u2", None, [{"id": "pickle", "protocol": 2}]),
    ("|O", None, [{"id": "pickle", "protocol": 2}]),
    ("|O", {"id": "pickle", "protocol": 2}, [{"id": "vlen-utf8"}]),
    ("<u2", {"id": "pickle", "protocol": 2}, [{"id": "json2"}, {"id": "delta", "dtype": "<u2"}]),
]


@pytest.mark.parametrize(("dtype", "compressor", "filters"), CODECS)
def test_zarr_chunks_are_not_unpickled(tmp_path, evil, dtype, compressor, filters):
    path = tmp_path / "v.zarr"
    zarr.create_array(path, shape=(2, 4, 4), chunks=(2, 4, 4), dtype="uint16", zarr_format=2)
    about = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**about, "dtype": dtype, "compressor": compressor, "filters": filters}))
    (path / "0.0.0").write_bytes(evil)
    refused(path, "v.zarr")


def test_arrays_of_objects_are_not_unpickled(tmp_path, evil):
    array = np.empty((2, 4, 4), object)
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    data = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(data[:128] + evil)
    refused(tmp_path / "v.npy", "type object are not supported")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("v", data=np.full((2, 4, 4), np.void(evil)))
    refused(tmp_path / "v.h5", "v.h5")
    np.savez(tmp_path / "v.npz", array=array)
    refused(tmp_path / "v.npz", "not read here")


def sealed(run, name, program):
    """The attacker writes the hashes too."""
    path = run / "checkpoints" / name
    path.write_bytes(program)
    listed = {file.name: sha256(file) for file in path.parent.glob("*.pth")}
    (path.parent / "manifest.json").write_text(json.dumps({"epochs": {"3": listed}, "last": [sha256(path)]}))


@pytest.mark.parametrize("inside", [False, True])
def test_weights_are_not_unpickled(tmp_path, evil, inside):
    run = make_run(tmp_path / "D" / "P", "IsoREF")
    if inside:  # a sound file of torch's with another pickle in it
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
            for name, data in (("data.pkl", evil), ("version", b"3\n"), ("byteorder", b"little")):
                file.writestr(f"w/{name}", data)
        evil = (tmp_path / "w.pth").read_bytes()
    sealed(run, "net_g_model_epoch_3.pth", evil)
    with pytest.raises(UserError, match=r"net_g_model_epoch_3.pth cannot be read \(these are no weights|damaged"):
        Run.load(run)


def test_a_training_goes_on_from_no_pickle(workspace, evil):
    run = workspace.train("one")
    sealed(run.path, "last.ckpt", evil)
    with pytest.raises(UserError, match=r"last\.ckpt"):
        workspace.train("one", "--resume")
    torch.save({"state_dict": Evil(workspace.root / "hacked")}, run.last)
    sealed(run.path, "last.ckpt", run.last.read_bytes())
    with pytest.raises(UserError, match=r"last\.ckpt"):
        workspace.train("one", "--resume")


def test_the_source_in_a_runs_folder_is_never_imported(tmp_path, monkeypatch):
    run = make_run(tmp_path / "D" / "P", "IsoREF")
    for name in ("IsoREF", "models", "torch", "sitecustomize", "utils"):
        (run / f"{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'hacked')!r})\n")
    monkeypatch.chdir(run)
    Run.load(run)
    settings = json.loads((run / "0.json").read_text())
    for name in ("../D/P/IsoREF", str(run / "IsoREF"), "IsoREF.py", "os", "..", "base"):
        (run / "0.json").write_text(json.dumps({**settings, "models": name}))
        with pytest.raises(UserError, match="models"):
            Run.load(run)
    assert not (tmp_path / "hacked").exists()


# ---- names and links that lead elsewhere


@pytest.mark.parametrize("name", ["../outside/b.ome.tif", "{root}/outside/b.ome.tif"])
def test_a_set_of_tiffs_lies_in_one_folder(tmp_path, name):
    for folder in ("inside", "outside"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "b.ome.tif", VALUES[:2], ome=True, metadata={"axes": "ZYX"})
    path = tmp_path / "inside" / "b.ome.tif"
    blocks = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{file}">urn:uuid:0000000{z}</UUID></TiffData>'
        for z, file in enumerate(("b.ome.tif", name.format(root=tmp_path)))
    )
    text = tifffile.tiffcomment(path)
    start, end = text.index("<TiffData"), text.index("</Pixels>")
    tifffile.tiffcomment(path, (text[:start] + blocks + text[end:]).encode())
    by_tifffile = "1 pages .* are not in its description"  # from 2026.5 on it does not follow them itself
    refused(path, f"names .*outside/b.ome.tif, outside of its folder|{by_tifffile}")


@pytest.mark.parametrize("how", ["chunk", "folder", "dangling", "whole array"])
def test_links_of_a_zarr_folder_stay_in_it(tmp_path, how):
    for name in ("v.ome.zarr", "other.ome.zarr"):
        ome_zarr(tmp_path / name)
    part = {"chunk": "0/c/0/0/0", "dangling": "0/c/0/0/0", "folder": "0/c", "whole array": "0"}[how]
    place, elsewhere = tmp_path / "v.ome.zarr" / part, tmp_path / "other.ome.zarr" / part
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to("nowhere" if how == "dangling" else elsewhere)
    refused(tmp_path / "v.ome.zarr", "link|missing|outside")


def test_a_chunk_that_is_a_link_to_nothing_is_no_zero(tmp_path):
    """As of an image whose content git-annex has not fetched."""
    ome_zarr_4(tmp_path / "v.ome.zarr")
    chunk = next(file for file in (tmp_path / "v.ome.zarr" / "0").iterdir() if file.name[0] != ".")
    chunk.unlink()
    chunk.symlink_to("nowhere")
    refused(tmp_path / "v.ome.zarr", f"{chunk.name}.*a link to nothing")


def test_hdf5_files_do_not_lead_to_others(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["v"] = VALUES
    (tmp_path / "raw").write_bytes(VALUES.tobytes())
    layout = h5py.VirtualLayout(VALUES.shape, "uint16")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "v", VALUES.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", VALUES.shape, "uint16", external=[(str(tmp_path / "raw"), 0, VALUES.nbytes)])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_virtual_dataset("v", layout)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["v"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/v")
    for name in "abc":
        refused(tmp_path / f"{name}.h5", "lies in other files|without an array")


def test_a_zip_file_leaves_nothing_anywhere(tmp_path):
    zipped(tmp_path / "v.ome.zarr.zip")
    shutil.rmtree(tmp_path / "to_zip.ome.zarr")
    with zipfile.ZipFile(tmp_path / "v.ome.zarr.zip", "a") as file:
        for name in ("../outside", "/tmp/outside", "a/../../outside"):
            file.writestr(f"{name}/.zattrs", "{}")
    read(tmp_path / "v.ome.zarr.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["v.ome.zarr.zip"]


def test_names_of_inputs_do_not_lead_outputs_elsewhere(tmp_path):
    run = make_run(tmp_path / "D" / "P", "IsoREF")
    (tmp_path / "in").mkdir()
    for name in ("a..tif", "-rf.tif", "a\x1b[2J\n.tif"):
        write_tiff(tmp_path / "in" / name, grey((3, 32, 32)))
    (tmp_path / "out").mkdir()
    command("enhance", "--run", run, "--input", tmp_path / "in", "--output", tmp_path / "out", "--format", ".tif")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in (tmp_path / "in").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"D", "in", "out"}


# ---- markup and terminals


def test_a_model_card_holds_no_markup_of_names(tmp_path):
    run = Run.load(make_run(tmp_path / "D" / "<script>alert(1)</script>"))
    name = "<img src=x onerror=alert(1)>\n# title.tif"
    write_tiff(tmp_path / name, grey((3, 32, 32)))
    encode(tmp_path / name, run, tmp_path / "x.codes.zarr")
    page = (export(tmp_path / "x.codes.zarr", tmp_path / "out") / "README.md").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;img src=x" in page
    assert [line for line in page.splitlines() if line.startswith("# ")] == [page.splitlines()[0]]


def test_nothing_in_a_file_or_its_name_commands_the_terminal(tmp_path, capfd, monkeypatch):
    run, evil = make_run(tmp_path / "D" / "P", "IsoREF"), "\x1b]0;evil\x07\x1b[2J"
    monkeypatch.setattr(logging.getLogger(), "handlers", [Messages()])
    logging.captureWarnings(True)  # as the scripts do
    image = nibabel.Nifti1Image(grey((32, 32, 3)), np.eye(4))
    nibabel.save(image, tmp_path / f"a{evil}.nii")
    data = bytearray((tmp_path / f"a{evil}.nii").read_bytes())
    data[344:348] = b"\x1b[2J"
    data[252:256] = b"\xff\x7f\xff\x7f"
    (tmp_path / f"a{evil}.nii").write_bytes(data)
    said = "ImageJ=1\nunit=\x1b[2J\nspacing=2\nimages=3\nslices=3\n"
    tifffile.imwrite(tmp_path / f"b{evil}.tif", grey((3, 32, 32)), description=said, metadata=None, photometric="minisblack")
    for name in ("a", "b"):
        suffix = ".nii" if name == "a" else ".tif"
        try:
            out = tmp_path / f"out_{name}{evil}.tif"
            command("enhance", "--run", run, "--input", tmp_path / f"{name}{evil}{suffix}", "--output", out, "--ignore-voxels")
            command("info", out)
            command("verify", out)
        except UserError:
            pass  # the message is made printable where it is shown
        except SystemExit as end:  # of verify: whole
            assert end.code == 0
    shown = "".join(capfd.readouterr())
    assert "evil" in shown and "\x1b]" not in shown and "\x07" not in shown and "\x1b[2J" not in shown


# ---- little that claims to be much


def deflated(path):
    """A strip of 2**27 bytes where one of 480 belongs."""
    tifffile.imwrite(path, VALUES, compression="zlib", rowsperstrip=10, metadata=None)
    with tifffile.TiffFile(path) as file:
        tags = [(page.tags[273], page.tags[279]) for page in file.pages]
    data, bomb = bytearray(path.read_bytes()), zlib.compress(bytes(BOMB), 1)
    for offsets, counts in tags:
        for tag, value in ((offsets, len(data)), (counts, len(bomb))):
            code = {3: "<H", 4: "<I"}[tag.dtype]
            np.frombuffer(data, code[0] + {"H": "u2", "I": "u4"}[code[1]], len(tag.value), tag.valueoffset)[:] = (
                value if tag.dtype == 4 else 2**16 - 1
            )
    path.write_bytes(data + bomb)


def packed_extension(path):
    """A NIfTI file whose extension is 2**27 bytes of zeros, packed."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((24, 20, 6))
    header["magic"], header["vox_offset"] = header.single_magic, 352 + BOMB
    extension = b"\1\0\0\0" + int(BOMB).to_bytes(4, "little") + (6).to_bytes(4, "little")
    path.write_bytes(gzip.compress(header.binaryblock + extension + bytes(BOMB), 1))


def entry(path, name):
    zipped(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(name, bytes(BOMB))


def chunk(path, codec):
    """A chunk that is compressed to little, of what its array has no room for."""
    array = zarr.create_array(path, shape=(6, 20, 24), chunks=(6, 20, 24), dtype="uint16", zarr_format=2, compressors=codec)
    array[:] = VALUES
    (path / "0.0.0").write_bytes(codec.encode(bytes(BOMB)))


def picture(path):
    path.mkdir()
    for k in range(2):
        Image.new("L", (2**14, 2**14)).save(path / f"{k}.png")
        data = bytearray((path / f"{k}.png").read_bytes())
        (path / f"{k}.png").write_bytes(data[:5000])


def entities(path):
    """Nine times ten times ten … in the description."""
    tifffile.imwrite(path, VALUES, ome=True, metadata={"axes": "ZYX"})
    text = tifffile.tiffcomment(path).partition("?>")[2]
    names = "abcdefghij"
    lines = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise(names))
    bomb = f'<!DOCTYPE OME [<!ENTITY a "{"a" * 100}">{lines}]>' + text.replace('Name="Image0"', 'Name="&j;"')
    tifffile.tiffcomment(path, bomb.encode())


def numcodec(name):
    import numcodecs

    return {"zlib": numcodecs.Zlib(1), "zstd": numcodecs.Zstd(1), "blosc": numcodecs.Blosc("zstd", 1)}[name]


BOMBS = {
    "deflated strips": ("v.tif", deflated),
    "a packed extension": ("v.nii.gz", packed_extension),
    "metadata in a zip file": ("v.ome.zarr.zip", lambda path: entry(path, "0/.zarray")),
    "a chunk in a zip file": ("v.ome.zarr.zip", lambda path: entry(path, "0/0.0.0")),
    "slices": ("slices", picture),
    "entities": ("v.ome.tif", entities),
    "a chunk by zstd": ("v.zarr", lambda path: chunk(path, numcodec("zstd"))),
    "a chunk by blosc": ("v.zarr", lambda path: chunk(path, numcodec("blosc"))),
    "a chunk by zlib": ("v.zarr", lambda path: chunk(path, numcodec("zlib"))),
}


@measures_memory
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb, tmp_path):
    name, make = BOMBS[bomb]
    make(tmp_path / name)
    with limited(MOST) as peak:
        try:
            read(tmp_path / name)
        except UserError as error:
            assert name in str(error) or "slices" in str(error)
    assert peak[0] < MOST


ODD = [None, "x", 7, [[1]], {"origin": 3}, {"files": "x"}, {"core": 0}, float("inf")]
KEYS = ("place", "slices", "input", "lattice", "axial_taps", "intensities", "region", "seams", "thick", "run")
FINE = {("run", 1), ("lattice", 4), ("lattice", 5), ("lattice", 6), ("seams", 4), ("seams", 6), ("thick", 1)}


def test_a_record_that_nobody_wrote_is_not_used(tmp_path, caplog):
    for key in KEYS:
        for number, value in enumerate(ODD):
            path = tmp_path / f"{key}{number}.ome.tif"
            write_volume(path, VALUES, attributes={**RECORD, key: value})
            caplog.clear()
            attributes = open_volume(path).attributes
            assert (attributes == {} and f"({key})" in caplog.text) == ((key, number) not in FINE), (key, value)
    write_volume(tmp_path / "sound.ome.tif", VALUES, attributes=RECORD)
    assert open_volume(tmp_path / "sound.ome.tif").attributes == RECORD


def test_a_crafted_store_names_the_run_that_it_is_decoded_by(tmp_path):
    """It cannot make a stranger's run be taken for the user's: the weights are compared by their hash."""
    run = make_run(tmp_path / "D" / "P")
    store = encode(grey((3, 32, 32)), Run.load(run), tmp_path / "x.codes.zarr")
    other = make_run(tmp_path / "D" / "Q", codebook={"levels": 2})
    assert RunFolder(other).epochs()
    about = json.loads((store.path / "zarr.json").read_text())
    about["attributes"]["isoscope_codes"]["run_path"] = str(other)
    about["attributes"].pop("isoscope_checksums")
    (store.path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="weights"):
        decode(CodeStore.open(store.path))
