"""evaluate.py through its command line: results, alignment, bad input and the report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import evaluate
import evaluation.run
from evaluation.run import plain
from evaluation.verdict import verdict
from utils.errors import UserError

SHAPE = (40, 34, 36)


def scene(shape=SHAPE, seed=0):
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def save(path, array, voxel=None, position=None):
    """A TIFF; with voxel size and position (z, y, x in µm) an OME-TIFF."""
    if voxel is None:
        tifffile.imwrite(path, array, imagej=True, metadata={"axes": "ZYX"})
        return path
    metadata = {"axes": "ZYX"}
    for axis, size in zip("ZYX", voxel, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    if position is not None:
        metadata["Plane"] = {
            f"Position{axis}": [place + (k * voxel[0] if axis == "Z" else 0) for k in range(len(array))]
            for axis, place in zip("ZYX", position, strict=True)
        } | {f"Position{axis}Unit": ["µm"] * len(array) for axis in "ZYX"}
    tifffile.imwrite(path, array, ome=True, metadata=metadata)
    return path


def run(tmp_path, *arguments):
    evaluate.main([*map(str, arguments), "--output", str(tmp_path / "out")])
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def numbers(tmp_path, *arguments):
    """As run(), without the figures, which take most of the time."""
    options = evaluate.build_parser().parse_args([*map(str, arguments), "--output", str(tmp_path)])
    return json.loads(json.dumps(plain(evaluation.run.numbers(evaluate.request_of(options), tmp_path)[1]), allow_nan=False))


def refused(capsys, tmp_path, *arguments):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err.split("\r")[-1]  # after the progress bars
    assert message.startswith("error: ") and "Traceback" not in message
    assert not (tmp_path / "out" / "metrics.json").exists()
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    truth = scene()
    save(path / "truth.tif", truth)
    better = 0.5 * truth + 0.5 * gaussian_filter(truth.astype(float), (2, 0, 0))
    save(path / "recon.tif", np.rint(better).astype(np.uint8))
    save(path / "thin.tif", truth[4::8])
    return path


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    arguments = [
        "--reconstruction",
        folder / "recon.tif",
        "--truth",
        folder / "truth.tif",
        "--thin",
        "8",
        "--voxel",
        "0.01,0.01,0.01",
    ]
    return run(output, *arguments), output / "out"


def test_report_is_complete(report):
    document, output = report
    assert sorted(path.name for path in output.iterdir()) == [
        "fsc.png",
        "metrics.json",
        "planes.png",
        "report.html",
        "spectra.png",
    ]
    assert list(document["volumes"]) == ["reconstruction", "nearest", "linear", "cubic", "truth"]
    assert document["data_range"] == {"low": 0, "high": 255, "width": 255, "rule": "full range of uint8"}
    assert document["sampling"]["central_box_is_whole_region"] is True
    assert document["alignment"]["input"]["first_plane"] == 4
    assert any("MS-SSIM" in note for note in document["notes"])


def test_report_needs_nothing_beside_it(report):
    _, output = report
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in (
        "Better than interpolation",
        "PSNR, dB",
        "SSIM, XZ planes",
        "Resolution along z, FSC 0.143",
        "full range of uint8",
    ):
        assert text in page


def test_numbers_agree_with_each_other(report):
    document, _ = report
    own, linear = document["volumes"]["reconstruction"], document["volumes"]["linear"]
    assert own["psnr_db"] > linear["psnr_db"] + 3
    assert own["ssim"]["xz"] > linear["ssim"]["xz"]
    assert own["fsc"]["z"]["at_0.5"]["cycles_per_voxel"] is None or (
        own["fsc"]["z"]["at_0.5"]["cycles_per_voxel"] > linear["fsc"]["z"]["at_0.5"]["cycles_per_voxel"]
    )
    limit = linear["fsc"]["z"]["at_0.5"]
    assert limit["cycles_per_um"] == pytest.approx(limit["cycles_per_voxel"] / 0.01)
    assert limit["period_um"] == pytest.approx(0.01 / limit["cycles_per_voxel"])
    assert linear["consistency"]["pick"] == {"rmse": 0, "psnr_db": None, "sections": 5}
    assert document["volumes"]["truth"].keys() & {"psnr_db", "fsc"} == set()


def test_input_file_gives_what_simulation_gives(folder, report, tmp_path):
    document, _ = report
    arguments = ("--reconstruction", folder / "recon.tif", "--truth", folder / "truth.tif", "--input", folder / "thin.tif")
    stated = numbers(tmp_path, *arguments, "--input-position", "pick", "--factor", "8")
    for name in ("reconstruction", "nearest", "linear", "cubic"):
        assert stated["volumes"][name]["psnr_db"] == document["volumes"][name]["psnr_db"]
        assert stated["volumes"][name]["ssim"] == document["volumes"][name]["ssim"]


def test_baselines_alone(folder, tmp_path):
    document = numbers(tmp_path, "--truth", folder / "truth.tif", "--average", "4", "--codec", "jpeg2000", "--bpp", "2")
    assert list(document["volumes"]) == ["nearest", "linear", "cubic", "jpeg2000 + linear", "jpeg2000 + cubic", "truth"]
    assert document["alignment"]["codec"]["bits_per_pixel"] <= 2
    assert document["volumes"]["jpeg2000 + linear"]["psnr_db"] < document["volumes"]["linear"]["psnr_db"]
    assert document["verdict"]["headline"] == "The bar to pass"


def test_without_truth(folder, tmp_path):
    arguments = (
        "--reconstruction",
        folder / "recon.tif",
        "--input",
        folder / "thin.tif",
        "--input-position",
        "pick",
        "--factor",
        "8",
    )
    document = numbers(tmp_path, *arguments)
    own = document["volumes"]["reconstruction"]
    assert "psnr_db" not in own and "truth" not in document["volumes"]
    assert own["consistency"]["pick"]["psnr_db"] > 20
    assert set(own["decorrelation"]) == {"z", "y", "x"}
    assert abs(own["anisotropy_db"]) < abs(document["volumes"]["cubic"]["anisotropy_db"])
    assert document["verdict"]["headline"] == "No truth: more isotropic than interpolation"
    assert "ssim" not in document["sampling"]["central_box_metrics"]


def test_reconstruction_alone_says_what_is_missing(folder, tmp_path, capsys):
    message = refused(capsys, tmp_path, "--truth", folder / "truth.tif")
    assert "--thin F" in message
    document = numbers(tmp_path, "--reconstruction", folder / "recon.tif", "--truth", folder / "truth.tif")
    assert any("--input I" in note for note in document["notes"])
    assert list(document["volumes"]) == ["reconstruction", "truth"]


def test_region_and_sample(folder, tmp_path):
    arguments = ("--reconstruction", folder / "recon.tif", "--truth", folder / "truth.tif", "--thin", "4")
    document = numbers(tmp_path, *arguments, "--region", "5:37,2:34,:", "--sample", "24")
    assert document["grid"] == {"shape": [32, 32, 36], "region": [[5, 37], [2, 34], [0, 36]], "voxel_um": None}
    assert document["sampling"]["central_box"] == [[9, 33], [6, 30], [6, 30]]
    assert "central box only" in document["sampling"]["statement"]
    assert document["alignment"]["input"]["first_plane"] == 6
    truth, recon = (tifffile.imread(folder / name)[5:37, 2:34].astype(float) for name in ("truth.tif", "recon.tif"))
    assert document["volumes"]["reconstruction"]["rmse"] == pytest.approx(np.sqrt(np.mean((truth - recon) ** 2)))


# Alignment -----------------------------------------------------------------------------------------------------------


def test_translation_lays_a_shorter_volume_where_it_belongs(tmp_path):
    truth = scene()
    save(tmp_path / "t.ome.tif", truth, (0.2, 0.2, 0.2), (0, 0, 0))
    save(tmp_path / "r.ome.tif", truth[5:33, 3:30, 4:], (0.2, 0.2, 0.2), (1.0, 0.6, 0.8))
    document = numbers(tmp_path, "--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "8")
    assert document["grid"]["region"] == [[5, 33], [3, 30], [4, 36]]
    assert document["volumes"]["reconstruction"]["rmse"] == 0
    assert document["verdict"]["headline"] == "Better than interpolation"


def test_translation_of_half_a_plane_is_interpolated_and_said(tmp_path):
    z = np.indices((30, 20, 20))[0].astype(np.float32)
    ramp = 100 + 50 * np.sin(z / 6)
    save(tmp_path / "t.ome.tif", ramp, (0.1, 0.1, 0.1), (0, 0, 0))
    save(tmp_path / "r.ome.tif", 100 + 50 * np.sin((z + 0.5) / 6), (0.1, 0.1, 0.1), (0.05, 0, 0))
    document = numbers(tmp_path, "--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "4")
    assert document["alignment"]["reconstruction"]["first_plane"] == 0.5
    assert document["grid"]["region"][0] == [1, 30]
    assert document["volumes"]["reconstruction"]["rmse"] < 0.05
    assert any("cubic spline" in note for note in document["notes"])


def test_input_is_placed_by_its_translation(tmp_path):
    truth = scene()
    save(tmp_path / "t.ome.tif", truth, (0.1, 0.1, 0.1), (0, 0, 0))
    averaged = truth.reshape(5, 8, *SHAPE[1:]).mean(1).astype(np.float32)
    save(tmp_path / "i.ome.tif", averaged, (0.8, 0.1, 0.1), (0.35, 0, 0))
    document = numbers(tmp_path, "--truth", tmp_path / "t.ome.tif", "--input", tmp_path / "i.ome.tif")
    assert document["alignment"]["input"]["first_plane"] == 3.5
    simulated = numbers(tmp_path, "--truth", tmp_path / "t.ome.tif", "--average", "8")
    assert document["volumes"]["cubic"]["psnr_db"] == pytest.approx(simulated["volumes"]["cubic"]["psnr_db"], abs=1e-6)
    assert list(document["volumes"]["cubic"]["consistency"]) == ["average"]


@pytest.mark.parametrize(
    ("voxel", "position", "expected"),
    [
        ((0.2, 0.3, 0.2), (0, 0, 0), "voxel sizes along Y differ"),
        ((0.2, 0.2, 0.2), (0, 0.07, 0), "whole voxels"),
        ((0.2, 0.2, 0.2), (90, 0, 0), "do not overlap"),
        ((1.6, 0.2, 0.2), (0, 0, 0), "name it with --input"),
    ],
)
def test_metadata_that_cannot_be_laid_together(tmp_path, capsys, voxel, position, expected):
    save(tmp_path / "t.ome.tif", scene(), (0.2, 0.2, 0.2), (0, 0, 0))
    save(tmp_path / "r.ome.tif", scene(), voxel, position)
    arguments = ("--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "8")
    assert expected in refused(capsys, tmp_path, *arguments)


def test_equal_shapes_with_unequal_voxels_are_refused(tmp_path, capsys):
    save(tmp_path / "t.ome.tif", scene(), (0.2, 0.2, 0.2))
    save(tmp_path / "r.ome.tif", scene(), (0.3, 0.2, 0.2))
    arguments = ("--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "8")
    assert "same shape but voxel sizes" in refused(capsys, tmp_path, *arguments)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--truth", "truth.tif", "--input", "thin.tif"], "--factor 8 with --input-position pick"),
        (["--truth", "truth.tif", "--input", "thin.tif", "--input-position", "pick"], "needs --factor F"),
        (["--truth", "truth.tif", "--input", "thin.tif", "--input-position", "pick", "--factor", "4"],
         "factor that fits is about 8"),
        (["--truth", "truth.tif", "--input", "thin.tif", "--factor", "8"], "add --input-position"),
        (["--truth", "truth.tif", "--input", "thin.tif", "--thin", "8"], "drop one"),
        (["--truth", "truth.tif", "--thin", "30"], "lower --thin"),
        (["--truth", "truth.tif", "--thin", "0"], "at least 1"),
        (["--reconstruction", "recon.tif", "--thin", "8"], "name --truth T"),
        (["--reconstruction", "thin.tif", "--truth", "truth.tif", "--thin", "8"], "voxel size and translation only"),
        (["--reconstruction", "turned.tif", "--truth", "truth.tif", "--thin", "8"], "axes look permuted"),
        (["--reconstruction", "turned.tif", "--input", "thin.tif"], "rows and columns (Y, X) must agree"),
        (["--reconstruction", "recon.tif", "--input", "yzx.tif"], "the axes look permuted; store it as (Z, Y, X)"),
        (["--reconstruction", "recon.tif", "--input", "cut.tif"], "cut both to the same field of view"),
        (["--reconstruction", "constant.tif", "--truth", "truth.tif", "--thin", "8"], "reconstruction holds one value only (7)"),
        (["--reconstruction", "recon.tif", "--truth", "constant.tif", "--thin", "8"], "the truth holds one value only (7)"),
        (["--reconstruction", "nan.tif", "--truth", "truth.tif", "--thin", "8"], "NaN or infinite"),
        (["--reconstruction", "absent.tif"], "absent.tif"),
        (["--reconstruction", "empty"], "is an empty folder"),
        (["--truth", "truth.tif", "--thin", "8", "--region", "0:50,:,:"], "must lie within 0:40"),
        (["--truth", "truth.tif", "--thin", "8", "--region", "0:20"], "must look like z0:z1,y0:y1,x0:x1"),
        (["--truth", "truth.tif", "--thin", "8", "--planes", "4"], "must look like start:stop"),
        (["--truth", "truth.tif", "--thin", "8", "--data-range", "big"], "must be auto, dtype, reference or a positive number"),
        (["--truth", "truth.tif", "--thin", "8", "--voxel", "1,2"], "--voxel"),
        (["--truth", "truth.tif", "--thin", "8", "--sample", "4"], "at least 16"),
        (["--thin", "8"], "nothing to evaluate"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_remedy(folder, tmp_path, capsys, options, expected):
    extra = {"turned.tif": scene((36, 40, 34)), "constant.tif": np.full(SHAPE, 7, np.uint8)}
    extra |= {"yzx.tif": scene()[4::8].transpose(1, 0, 2).copy(), "cut.tif": scene()[4::8, :30]}
    for name, array in extra.items():
        save(tmp_path / name, array)
    holes = scene().astype(np.float32)
    holes[3, 4, 5] = np.nan
    save(tmp_path / "nan.tif", holes)
    (tmp_path / "empty").mkdir()
    known = {path.name: path for place in (folder, tmp_path) for path in place.iterdir()}
    assert expected in refused(capsys, tmp_path, *(known.get(option, option) for option in options))


def test_earlier_evaluation_is_kept_without_overwrite(folder, tmp_path, capsys):
    arguments = ("--truth", folder / "truth.tif", "--thin", "8")
    run(tmp_path, *arguments)
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before
    run(tmp_path, "--reconstruction", folder / "recon.tif", "--overwrite")
    assert not (tmp_path / "out" / "fsc.png").exists()  # of the earlier evaluation, which had a truth
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_failure_leaves_no_temporary_files(folder, tmp_path, capsys):
    save(tmp_path / "constant.tif", np.full(SHAPE, 7, np.uint8))
    refused(capsys, tmp_path, "--truth", tmp_path / "constant.tif", "--thin", "8")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "dtype", "expected"),
    [
        ("auto", np.uint16, (28, 255)),
        ("dtype", np.uint16, (0, 65535)),
        ("reference", np.uint8, (28, 255)),
        ("100", np.uint8, (0, 100)),
    ],
)
def test_data_range(tmp_path, wanted, dtype, expected):
    truth = np.clip(scene(), 28, None).astype(dtype)
    save(tmp_path / "t.tif", truth)
    document = numbers(tmp_path, "--truth", tmp_path / "t.tif", "--thin", "8", "--data-range", wanted)
    assert (truth.min(), truth.max()) == (28, 255)
    assert (document["data_range"]["low"], document["data_range"]["high"]) == expected
    psnr = 20 * np.log10((expected[1] - expected[0]) / document["volumes"]["linear"]["rmse"])
    assert document["volumes"]["linear"]["psnr_db"] == pytest.approx(psnr)


def test_help_needs_no_torch():
    code = (
        "import evaluate, sys\ntry: evaluate.main(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(evaluate.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--input-position" in done.stdout


def test_debug_shows_the_error_itself(folder, tmp_path):
    with pytest.raises(UserError):
        run(tmp_path, "--reconstruction", folder / "absent.tif", "--debug")


# Verdict -------------------------------------------------------------------------------------------------------------


def made_up(psnr, limit, power, correlation):
    curve = {
        "at_0.143": {"cycles_per_voxel": limit, "cycles_per_um": None},
        "cycles_per_voxel": [0.05, 0.1, 0.2, 0.4], "correlation": [1.0, correlation, correlation, 0.0],
    }  # fmt: skip
    return {
        "psnr_db": psnr, "ssim": {"xz": psnr / 100, "yz": psnr / 100}, "fsc": {"z": curve},
        "power_over_truth": {"z": {"1/16-1/8": power, "1/8-1/4": power}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("psnr", "limit", "headline"),
    [
        (27, 0.15, "Better than interpolation"),
        (27, 0.10, "Better than interpolation"),
        (26, 0.10, "As good as interpolation, not better"),
        (25, 0.15, "Finer true detail along z than interpolation, at the price of larger voxel-wise errors"),
        (27, 0.05, "Closer voxel by voxel than interpolation, but with less true detail along z"),
        (25, 0.05, "Not better than interpolation"),
        (25, 0.10, "Not better than interpolation"),
    ],
)
def test_headline_weighs_error_against_detail(psnr, limit, headline):
    volumes = {"reconstruction": made_up(psnr, limit, 0.4, 0.5), "linear": made_up(26, 0.10, 0.1, 0.5), "truth": {}}
    assert verdict(volumes)["headline"] == headline


def test_power_without_agreement_is_called_invented():
    honest = {"reconstruction": made_up(27, 0.15, 0.9, 0.5), "linear": made_up(26, 0.1, 0.1, 0.5), "truth": {}}
    invented = {"reconstruction": made_up(27, 0.15, 0.9, 0.05), "linear": made_up(26, 0.1, 0.1, 0.5), "truth": {}}
    assert not any("invented" in sentence for sentence in verdict(honest)["sentences"])
    assert sum("invented" in sentence for sentence in verdict(invented)["sentences"]) == 2


# The published figures ----------------------------------------------------------------------------------------------

NAMES = ("nearest", "linear", "cubic", "jpeg2000 + linear", "jpeg2000 + cubic")
PUBLISHED = {  # PSNR of the whole cube, and SSIM of every 8th XZ plane from plane 4 on
    ("dev", "average", 8): ((25.05, 0.596), (25.70, 0.631), (26.21, 0.651), (24.68, 0.535), (25.01, 0.551)),
    ("dev", "thin", 8): ((23.41, 0.542), (24.85, 0.611), (24.44, 0.597), (24.44, 0.552), (24.26, 0.553)),
    ("dev", "average", 4): ((28.67, 0.772), (29.89, 0.804), (30.88, 0.831), (26.84, 0.646), (27.12, 0.662)),
    ("dev", "thin", 4): ((26.83, 0.710), (29.33, 0.793), (29.26, 0.794), (26.95, 0.662), (27.02, 0.672)),
    ("quickstart", "average", 8): ((24.54, 0.599), (25.20, 0.638), (25.70, 0.658), (23.90, 0.522), (24.18, 0.537)),
    ("quickstart", "thin", 8): ((22.89, 0.546), (24.37, 0.620), (23.94, 0.606), (23.60, 0.532), (23.40, 0.534)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("cube", "how", "factor"), sorted(PUBLISHED))
def test_published_figures_are_reproduced(tmp_path, cube, how, factor):
    if "ISOSCOPE_SAMPLES" not in os.environ:
        pytest.skip("ISOSCOPE_SAMPLES is not set: no real volumes")
    file = Path(os.environ["ISOSCOPE_SAMPLES"]) / f"fibsem_fib25_{cube}.tif"
    region = ",".join(["0:248" if cube == "dev" else "0:192"] * 3)
    document = run(tmp_path, "--truth", file, f"--{how}", factor, "--region", region, "--codec", "jpeg2000", "--planes", "4::8")
    for name, (psnr, ssim) in zip(NAMES, PUBLISHED[cube, how, factor], strict=True):
        assert document["volumes"][name]["psnr_db"] == pytest.approx(psnr, abs=0.1), name
        assert document["volumes"][name]["ssim"]["xz"] == pytest.approx(ssim, abs=0.005), name
    if (how, factor) == ("thin", 8):  # interpolation passes through thinned sections: this is the codec alone
        sections = document["volumes"]["jpeg2000 + linear"]["consistency"]["pick"]["psnr_db"]
        assert sections == pytest.approx({"dev": 27.8, "quickstart": 26.3}[cube], abs=0.1)
