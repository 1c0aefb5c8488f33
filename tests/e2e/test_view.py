"""The page of ``infer.py view``: what it serves, to whom, and that codes are decoded only where one looks."""

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from infer_commands import VOXEL, command, quiet, read, refused
from infer_runs import ROOT, grey
from PIL import Image

from codes.store import CodeStore
from inference import Options, decode
from inference.decoding import IsotropicField
from sharing.view import Layer, Place, opened, page
from volumes.open import open_volume
from writing.write import write_tiff

pytest.importorskip("neuroglancer")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """An input, its output with what consistency says, and its codes."""
    folder = tmp_path_factory.mktemp("files")
    write_tiff(folder / "in.tif", grey((6, 72, 80)), voxel_um=VOXEL)
    write_tiff(folder / "bare.tif", grey((6, 72, 80)))
    for name in ("in", "bare"):
        command(
            "enhance",
            "--run",
            run,
            "--input",
            folder / f"{name}.tif",
            "--output",
            folder / f"{name}_out.ome.zarr",
            "--consistency",
        )
        command("encode", "--run", run, "--input", folder / f"{name}.tif", "--output", folder / f"{name}.codes.zarr")
    thick = ["--thick", "x", "--run", run, "--input", folder / "bare.tif"]
    command("encode", *thick, "--output", folder / "thick.codes.zarr")
    return folder


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def chunk(viewer, name, box):
    """What the page gets of a layer."""
    start, stop = (",".join(str(getattr(part, end)) for part in box) for end in ("start", "stop"))
    server = viewer.get_viewer_url().split("/v/")[0]
    packed = get(f"{server}/neuroglancer/npz/{key(viewer, name)}/1,1,1/{start}/{stop}")
    return np.load(io.BytesIO(zlib.decompress(packed)))


def key(viewer, name):
    (url,) = (layer["source"][0]["url"] for layer in viewer.state.to_json()["layers"] if layer["name"] == name)
    return url.removeprefix("python://volume/")


def where(viewer, name, voxel):
    """The place of a voxel's centre by axis, in µm or voxels of the input, as neuroglancer computes it."""
    (layer,) = (layer for layer in viewer.state.to_json()["layers"] if layer["name"] == name)
    moved = layer["source"][0]["transform"]
    sides = zip(moved["outputDimensions"].items(), moved["matrix"], voxel, strict=True)
    micro = {"m": 1e6, "": 1}
    return {axis: (n + 0.5 + row[3]) * size * micro[unit] for (axis, (size, unit)), row, n in sides}


BOX = (slice(1, 4), slice(3, 40), slice(70, 80))


def test_every_layer_gives_the_values_of_its_file(files):
    store = CodeStore.open(files / "in.codes.zarr")
    wanted = {name: read(files / f"{name}.{end}") for name, end in (("in", "tif"), ("in_out", "ome.zarr"))}
    wanted["in_out_consistency"] = read(files / "in_out_consistency.ome.zarr")
    wanted["in.codes decoded"] = decode(store)
    box = (slice(0, 2), slice(1, 9), slice(2, 10))
    with page(opened([files / name for name in ("in.tif", "in_out.ome.zarr", "in.codes.zarr")])) as viewer:
        assert [layer.name for layer in viewer.state.layers] == [*wanted, "in.codes"]
        for name, values in wanted.items():
            served = chunk(viewer, name, BOX)
            assert served.dtype == values.dtype and np.array_equal(served, values[BOX]), name
        assert np.array_equal(chunk(viewer, "in.codes", box), store.read(box).codes)
        shown = {layer.name for layer in viewer.state.layers if layer.visible}
    assert shown == {"in", "in_out", "in.codes decoded"}


def test_nothing_is_served_without_the_token_nor_beyond_this_computer(files):
    with page(opened([files / "in.tif"])) as viewer:
        url = viewer.get_viewer_url()
        server, token = url.removesuffix("/").split("/v/")
        assert len(token) >= 32 and not viewer.allow_credentials and b"<html" in get(url).lower()
        info = f"{server}/neuroglancer/info/{key(viewer, 'in')}"
        assert json.loads(get(info))["shape"] == [6, 72, 80]
        wrong = "0" * len(token)
        for other in (server, url.replace(token, wrong), info.replace(token, wrong), info.replace(token + ".", "")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(other)
        host, port = server.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        with pytest.raises(OSError, match="refused"):  # would answer if the page were bound to all addresses
            socket.create_connection(("127.0.0.2", int(port)), timeout=5)
    with pytest.raises(OSError, match="refused"):
        get(url)


def test_codes_are_decoded_only_where_one_looks(files, monkeypatch):
    made, compute = [], IsotropicField.compute
    monkeypatch.setattr(IsotropicField, "compute", lambda self, tiles, seen: made.extend(tiles) or compute(self, tiles, seen))
    name = "in.codes decoded"
    with page(opened([files / "in.codes.zarr"], options=Options(tile=32))) as viewer:
        assert not made and not viewer.state.show_slices
        chunk(viewer, "in.codes", (slice(0, 6), slice(0, 9), slice(0, 10)))
        assert not made
        chunk(viewer, name, (slice(0, 16),) * 3)
        assert len(made) == 1
        chunk(viewer, name, (slice(16, 32),) * 3)  # of the same tile
        assert len(made) == 1
        results = {}
        sides = (slice(0, 16), slice(0, 16), slice(24, 40)), (slice(0, 16), slice(24, 40), slice(24, 40))
        threads = [threading.Thread(target=lambda box=box: results.update({str(box): chunk(viewer, name, box)})) for box in sides]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == len(set(made)) == 4 < 18  # tiles of the whole volume
    whole = decode(CodeStore.open(files / "in.codes.zarr"), options=Options(tile=32))
    assert all(np.array_equal(results[str(box)], whole[box]) for box in sides)


def test_layers_lie_where_their_files_say(files):
    paths = [files / name for name in ("in.tif", "in_out.ome.zarr", "in.codes.zarr")]
    codes = open_volume(paths[2])
    with page(opened(paths)) as viewer:
        for path, layers in zip(paths[:2], (["in"], ["in_out", "in.codes decoded"]), strict=True):
            volume = open_volume(path)
            centre = [t + v * n for t, v, n in zip(volume.translation_um or (0,) * 3, volume.voxel_um, (2, 3, 5), strict=True)]
            for name in layers:
                assert where(viewer, name, (2, 3, 5)) == pytest.approx(dict(zip("zyx", centre, strict=True)), abs=1e-6)
        at = dict(zip("zyx", codes.translation_um, strict=True))
        assert where(viewer, "in.codes", (0, 0, 0)) == pytest.approx(at, abs=1e-6)
        assert viewer.state.dimensions.to_json()["x"][0] == pytest.approx(1e-7)


def test_without_voxel_sizes_layers_lie_in_voxels_of_the_input(files, caplog):
    with page(opened([files / "bare_out.ome.zarr", files / "bare.tif", files / "thick.codes.zarr"])) as viewer:
        origin, step = (open_volume(files / "bare_out.ome.zarr").attributes["place"][key] for key in ("origin", "step"))
        at = dict(zip("zyx", [o + s * n for o, s, n in zip(origin, step, (9, 3, 5), strict=True)], strict=True))
        assert where(viewer, "bare_out", (9, 3, 5)) == pytest.approx(at)
        assert where(viewer, "bare", (1, 3, 5)) == {"z": 1, "y": 3, "x": 5}
        thick = CodeStore.open(files / "thick.codes.zarr").about["slices"]
        assert where(viewer, "thick.codes", (2, 0, 0)) == {"x": thick["first"] + 2 * thick["spacing"], "y": 3.5, "z": 3.5}
        x, y, z = slice(0, 20), slice(5, 30), slice(1, 5)
        assert np.array_equal(
            chunk(viewer, "thick.codes decoded", (x, y, z)), np.swapaxes(decode(files / "thick.codes.zarr")[z, y, x], 0, 2)
        )
    assert not caplog.messages
    with page(opened([files / "in.tif", files / "bare.tif"])) as viewer:
        assert where(viewer, "in", (1, 0, 0))["z"] == 1
    assert "no voxel size is stated of bare" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tornado leaves the socket that it cannot bind
def test_what_cannot_be_shown_is_refused(files, run, monkeypatch):
    refused("is a run; view shows volumes", "view", run)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused("--port .* cannot be used", "view", files / "in.tif", "--no-browser", "--port", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    refused(r"needs the package neuroglancer.*\.venv/bin/pip install -e '\.\[view\]'", "view", files / "in.tif")


def test_a_damaged_chunk_is_named_in_the_terminal(files, tmp_path, caplog):
    shutil.copytree(files / "in_out.ome.zarr", tmp_path / "a.ome.zarr")
    layers = opened([tmp_path / "a.ome.zarr"])
    for file in (tmp_path / "a.ome.zarr").rglob("c/*/*/*"):
        file.write_bytes(file.read_bytes()[:50])
    with page(layers) as viewer, pytest.raises(urllib.error.HTTPError, match="400"):
        chunk(viewer, "a", BOX)
    assert "a.ome.zarr" in caplog.text


def test_the_command_opens_the_browser_and_ends_with_ctrl_c(files):
    words = [sys.executable, "infer.py", "view", files / "in.tif"]
    plain = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    environment = {**quiet(), "BROWSER": "echo visited %s", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, **plain) as process:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines[0].startswith("http://127.0.0.1:") and lines[2] == f"visited {lines[0]}"
        assert b"<html" in get(lines[0]).lower()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.splitlines() == ["closed"]


def test_differences_that_are_all_zero_are_drawn_as_none():
    def read(box):
        return np.zeros([part.stop - part.start for part in box], np.float32)

    layer = Layer("same", "signed", (2, 2, 2), np.dtype(np.float32), read, None, Place(), (-0.0, 0.0))
    with page([layer]) as viewer:
        assert "range=[-1.0, 1.0]" in viewer.state.layers["same"].layer.shader


@contextmanager
def browser(url, profile):
    words = ["--headless", "--no-sandbox", f"--user-data-dir={profile}", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([CHROMIUM, *words, url], **silent) as process:
        try:
            yield
        finally:
            process.terminate()


def picture(viewer, name, layout, position):
    """A layer on the page of a browser, at 4 pixels per voxel of the finest layer, with the position in its middle."""
    with viewer.txn() as state:
        state.layout, state.position, state.cross_section_scale = layout, position, 0.25
        state.show_axis_lines = state.show_scale_bar = state.show_default_annotations = False
        for layer in state.layers:
            layer.visible = layer.name == name
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(viewer.screenshot(size=[400, 400])), daemon=True)
    waiting.start()
    waiting.join(120)
    return np.asarray(Image.open(io.BytesIO(taken[0].screenshot.image)))[..., :3].astype(int)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_every_voxel_in_its_place(files, tmp_path):
    layers = opened([files / "in.tif", files / "in_out.ome.zarr", files / "in.codes.zarr"])
    read_by_name = {layer.name: layer for layer in layers}
    with page(layers) as viewer, browser(viewer.get_viewer_url(), tmp_path):
        for name in ("in", "in_out", "in.codes decoded"):
            layer = read_by_name[name]
            values, thickness = layer[tuple(slice(0, n) for n in layer.shape)].astype(float), round(layer.um.step[0] / 0.1)
            low, high = layer.limits
            grey = np.rint(255 * np.clip((values - low) / (high - low), 0, 1))
            z0 = round(layer.um.first[0] / 0.1 - 0.5 * thickness + 0.5, 6)  # the centre of the uppermost plane of 0.1 µm
            planes = np.repeat(grey, thickness, axis=0)
            for layout, of in (("xy", lambda a: a[20]), ("xz", lambda a: a[:, 36])):
                shown = picture(viewer, name, layout, [40, 36, z0 + 20])
                wanted = of(planes)
                down = 36 if layout == "xy" else 20
                rows = 200 + 4 * (np.arange(wanted.shape[0]) - down)
                columns = 200 + 4 * (np.arange(wanted.shape[1]) - 40)
                assert np.abs(shown[np.ix_(rows, columns)] - wanted[..., None]).max() <= 2, (name, layout)
                assert wanted.std() > 1
        colours = picture(viewer, "in.codes", "xy", [40, 36, 16])
        codes = CodeStore.open(files / "in.codes.zarr").read((slice(2, 3), slice(0, 9), slice(0, 10))).codes[0]
        at = [200 + 4 * (8 * np.arange(n) + 3 - middle) for n, middle in zip(codes.shape, (36, 40), strict=True)]
        seen = {code: {tuple(c) for c in colours[np.ix_(*at)][codes == code]} for code in np.unique(codes)}
        assert all(len(one) == 1 for one in seen.values()) and len(set.union(*seen.values())) == len(seen)
