"""evaluate.py compress: what it writes, numbers that are those of the bytes on disc and the decoded volumes, what is refused."""

import json

import numpy as np
import pytest
from infer_runs import grey, make_run
from PIL import Image

import evaluate
import infer
from codes.store import CodeStore
from evaluation.compression import CODINGS
from inference import Options, Run, decode
from inference.operating_points import KeptPlanes, operating_points
from taming.quantize import ResidualVectorQuantizer
from tests.unit.volumes.target_volumes import write_volume
from tests.walk import walk
from volumes.open import open_volume
from writing.write import write_tiff

FACTOR = 8
TRUTH = grey((40, 34, 36), high=4000)


def compress(folder, run, *more):
    evaluate.main(["compress", "--run", str(run), "--output", str(folder), *map(str, more)])
    return json.loads((folder / "compression.json").read_text())


def point(document, codec, stream, limit=None):
    [found] = [p for p in document["points"] if (p["codec"], p["stream"]) == (codec, stream) and limit in (None, p.get("limit"))]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "D" / "P", l1how="dsp", pooled=(0.0, 4000.0))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    voxel = (0.1, 0.1, 0.1)
    write_volume(folder / "truth.ome.tif", TRUTH, voxel_um=voxel, translation_um=(0, 0, 0))
    thinned = (FACTOR * voxel[0], *voxel[1:])
    write_volume(folder / "thin.ome.tif", TRUTH[4::8], voxel_um=thinned, translation_um=(0.4, 0, 0))
    return folder


@pytest.fixture(scope="module")
def document(run, volumes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress")
    return compress(folder, run, "--input", volumes / "thin.ome.tif", "--truth", volumes / "truth.ome.tif"), folder


def test_everything_is_written_and_nothing_else(document):
    found, folder = document
    assert sorted(path.name for path in folder.iterdir()) == ["codes.codes.zarr", "compression.json", "compression.png"]
    assert found["schema"] == "isoscopexx.compression/1"
    assert found["slices"] == {"shape": [5, 34, 36], "dtype": "uint16"}
    with Image.open(folder / "compression.png") as picture:
        assert min(picture.size) > 500


def test_rate_is_that_of_the_bytes_on_disc(document):
    found, folder = document
    size = sum(file.stat().st_size for file in (folder / "codes.codes.zarr").rglob("*") if file.is_file())
    ours = point(found, "codes", "store")
    assert ours["bytes"] == size
    assert ours["bits_per_pixel"] == pytest.approx(8 * size / (5 * 34 * 36))


def test_codecs_stay_within_the_same_bytes(document):
    found, _ = document
    rate = point(found, "codes", "store")["bits_per_pixel"]
    for codec, stream in CODINGS:
        limits = [p["limit"] for p in found["points"] if (p["codec"], p["stream"]) == (codec, stream)]
        np.testing.assert_allclose(limits, [rate * n for n in (0.5, 1, 2, 4, 8)])
        for p in (p for p in found["points"] if p["stream"] == stream and p["codec"] == codec and p["bytes"] is not None):
            assert p["bits_per_pixel"] <= p["limit"] * (1 + 1e-12)
    at_ours = point(found, "jpeg2000", "all", rate)
    assert set(at_ours["isotropic"]) == {"linear", "cubic"}


def test_distortion_is_that_of_the_decoded_volumes(document, run):
    found, folder = document
    store, opened = CodeStore.open(folder / "codes.codes.zarr"), Run.load(run)
    ours = point(found, "codes", "store")

    def psnr(volume, truth, width):
        return 20 * np.log10(width / np.sqrt(np.mean((volume.astype(float) - truth) ** 2)))

    slices = decode(store, opened, grid="raw")
    width = float(TRUTH[4::8].max()) - float(TRUTH[4::8].min())
    assert ours["slices"]["psnr_db"] == pytest.approx(psnr(slices, TRUTH[4::8], width), abs=1e-4)
    volume = decode(store, opened)
    width = float(TRUTH.max()) - float(TRUTH.min())
    assert ours["isotropic"]["decoded"]["psnr_db"] == pytest.approx(psnr(volume, TRUTH, width), abs=1e-4)


def test_positions_agree_with_evaluate(document, run, volumes, tmp_path):
    """The geometry of the run places the volume where the file's own metadata say that it is."""
    found, _ = document
    volume, thin, truth = tmp_path / "iso.ome.tif", volumes / "thin.ome.tif", volumes / "truth.ome.tif"
    infer.main([*map(str, ["enhance", "--run", run, "--input", thin, "--output", volume])])
    files = ["--reconstruction", volume, "--truth", truth, "--input", thin, "--output", tmp_path / "report"]
    evaluate.main([*map(str, files), "--planes", "4::8"])
    measured = json.loads((tmp_path / "report" / "metrics.json").read_text())["volumes"]
    ours = point(found, "codes", "store")["isotropic"]["decoded"]
    assert ours["psnr_db"] == pytest.approx(measured["reconstruction"]["psnr_db"], abs=1e-4)
    ssim = measured["reconstruction"]["ssim"]
    assert ours["ssim"] == pytest.approx((ssim["xz"] + ssim["yz"]) / 2, abs=1e-5)
    uncoded = point(found, "none", "slices as they are")["isotropic"]
    for method in ("linear", "cubic"):
        assert uncoded[method]["psnr_db"] == pytest.approx(measured[method]["psnr_db"], abs=1e-4)


def test_a_run_that_thins_is_given_the_isotropic_volume(volumes, run, tmp_path):
    """dsp 8 (planes 8k + 4) and usp 2: the codes are of twice as many slices, the codecs' of the kept ones."""
    thins = make_run(tmp_path / "D" / "Q", l1how="dsp", pooled=(0.0, 4000.0), dsp=8, cropz=16, usp=2.0)
    found = compress(tmp_path / "out", thins, "--input", volumes / "truth.ome.tif", "--truth", volumes / "truth.ome.tif")
    assert found["slices"]["shape"] == [5, 34, 36]
    assert any("10 encoded slices for 5 slices" in note for note in found["notes"])
    best = point(found, "jpeg2000", "all", max(p["limit"] for p in found["points"] if p.get("limit")))
    assert best["isotropic"]["linear"]["psnr_db"] > 12 and best["slices"]["psnr_db"] > 40


def test_without_a_truth_only_the_slices_are_compared(run, volumes, tmp_path):
    found = compress(tmp_path, run, "--input", volumes / "thin.ome.tif")
    assert all(p.get("isotropic") is None for p in found["points"])
    assert found["files"]["truth"] is None


def test_residual_codes_give_a_point_per_number_of_levels(run, volumes, tmp_path):
    opened = Run.load(run)
    quantizer = ResidualVectorQuantizer(3, 256, 4)
    for level in quantizer.levels:
        level.embedding.weight.data.mul_(300)
    opened.model.G["quantize"] = quantizer.requires_grad_(False).eval()
    kept, sizes, decoded = KeptPlanes(opened, volumes / "thin.ome.tif", Options()), [], []
    for found in operating_points(opened, kept, Options(), tmp_path / "s.codes.zarr", tmp_path):
        sizes.append(found.bytes)
        decoded.append(open_volume(found.slices.path)[:])
        assert found.levels == len(sizes)
        assert (found.slices.first, found.slices.step) == (0, 1)
        assert (found.isotropic.first, found.isotropic.step) == (-0.5, 0.125)
    store = CodeStore.open(tmp_path / "s.codes.zarr")
    assert len(sizes) == store.about["levels"] == 3
    assert np.diff(sizes).tolist() == [store.bytes_of("codes_1"), store.bytes_of("codes_2")]
    np.testing.assert_array_equal(decoded[-1], decode(store, opened, grid="raw"))
    assert not np.array_equal(decoded[0], decoded[1]) and not np.array_equal(decoded[1], decoded[2])
    assert [path.name for path in tmp_path.iterdir()] == ["s.codes.zarr"]


def test_few_steps_to_the_first_slices(run, volumes, tmp_path):
    files = ["--input", volumes / "thin.ome.tif", "--truth", volumes / "truth.ome.tif"]
    steps = walk(lambda: compress(tmp_path / "out", run, *files), "Sections.read")
    assert len(steps) <= 25, "\n".join(steps)


BAD = {
    "float": (lambda f: write_tiff(f / "x.tif", TRUTH[4::8].astype(np.float32)), [], "8 or 16 bit"),
    "constant": (lambda f: write_tiff(f / "x.tif", np.full((5, 34, 36), 7, np.uint16)), [], "one value only"),
    "position": (lambda f: write_tiff(f / "x.tif", TRUTH[4::8]), ["--truth"], "--input-position pick"),
    "region": (lambda f: write_tiff(f / "x.tif", TRUTH[4::8]), ["--region", "0:8"], "z0:z1,y0:y1,x0:x1"),
    "sample": (lambda f: write_tiff(f / "x.tif", TRUTH[4::8]), ["--sample", "4"], "at least 16"),
    "missing": (lambda f: None, [], "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_anything_is_written(case, run, volumes, tmp_path, capsys):
    write, more, message = BAD[case]
    write(tmp_path)
    more = [*more, volumes / "truth.ome.tif"] if more == ["--truth"] else more
    with pytest.raises(SystemExit) as end:
        compress(tmp_path / "out", run, "--input", tmp_path / "x.tif", *more)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_runs_without_codes_and_earlier_results_are_refused(run, volumes, tmp_path, capsys, document):
    _, folder = document
    isoref = make_run(tmp_path / "D" / "R", "IsoREF", pooled=(0.0, 4000.0))
    for arguments, message in (((folder, run), "--overwrite"), ((tmp_path / "out", isoref), "makes no codes")):
        with pytest.raises(SystemExit):
            compress(*arguments, "--input", volumes / "thin.ome.tif")
        assert message in capsys.readouterr().err


def test_a_thick_axis_that_is_not_z(document, run, volumes, tmp_path):
    """Distortions are those of the volumes with z thick."""
    for name in ("thin", "truth"):
        volume = open_volume(volumes / f"{name}.ome.tif")
        known = [side[::-1] for side in (volume.voxel_um, volume.translation_um)]
        write_volume(tmp_path / f"{name}.ome.tif", volume[:].transpose(2, 1, 0), voxel_um=known[0], translation_um=known[1])
    files = ("--input", tmp_path / "thin.ome.tif", "--truth", tmp_path / "truth.ome.tif")
    found = compress(tmp_path / "out", run, *files, "--thick", "x")
    for codec, stream in (("codes", "store"), ("none", "slices as they are")):
        expected, there = (point(one, codec, stream) for one in (document[0], found))
        assert (there["slices"], there["isotropic"]) == (expected["slices"], expected["isotropic"])
    assert point(found, "codes", "store")["slices"]["psnr_db"] > 0
