"""evaluate.py through its command line: results, the report, the published figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from evaluate_files import numbers, refused, run, save, scene

import evaluate
from evaluation import grid
from utils.errors import UserError


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


def test_a_file_of_one_channel_is_taken_beside_one_of_two(tmp_path, capsys):
    truth = scene()
    both = np.stack([truth // 2, truth])
    tifffile.imwrite(tmp_path / "both.tif", both, ome=True, metadata={"axes": "CZYX"}, photometric="minisblack")
    words = ("--truth", save(tmp_path / "truth.tif", truth), "--thin", 4, "--channel", 1)
    found = numbers(tmp_path, "--reconstruction", tmp_path / "both.tif", *words)
    assert found["volumes"]["reconstruction"]["rmse"] == 0
    assert "channel 1 of 1; " in refused(capsys, tmp_path, "--reconstruction", tmp_path / "truth.tif", *words)


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
    assert linear["consistency"]["pick"] == {"rmse": 0, "psnr_db": None, "data_range": 255, "sections": 5}
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


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Where torch hub would look for the weights of LPIPS."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    path = tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(("content", "expected"), [(None, "weights not found: vgg16-397923af.pth"), (b"x", "damaged")])
def test_lpips_is_left_out_without_whole_weights_and_the_report_says_so(folder, tmp_path, weights, content, expected):
    if content is not None:
        weights.write_bytes(content)
    document = numbers(tmp_path, "--truth", folder / "truth.tif", "--thin", "8", "--sample", "16")
    assert document["volumes"]["linear"]["lpips"] is None
    assert any(note.startswith("LPIPS was left out") and expected in note for note in document["notes"])


def voxels_read(monkeypatch):
    """How many voxels of each file are read from now on."""
    counts, opened = {}, grid.open_volume

    def counting(path, **choice):
        volume = opened(path, **choice)
        read = volume._read

        def counted(planes, rows, columns):
            result = read(planes, rows, columns)
            counts[path.name] = counts.get(path.name, 0) + result.size
            return result

        volume._read = counted
        return volume

    monkeypatch.setattr(grid, "open_volume", counting)
    return counts


CODEC = ("--codec", "jpeg2000", "--bpp", "2")
PLACED = ("--input-position", "pick", "--factor", "8")


@pytest.mark.parametrize("more", [PLACED, (*PLACED, *CODEC), ("--thin", "8"), ("--average", "8")], ids=lambda more: more[-2])
def test_every_file_is_read_once_whatever_is_asked_for(folder, tmp_path, monkeypatch, more):
    counts = voxels_read(monkeypatch)
    monkeypatch.setattr("evaluation.sweep.DEEPEST", 4)  # several blocks along z ...
    monkeypatch.setattr("evaluation.sweep.blocks.__defaults__", (4 * 18 * 36, 1))  # ... in two bands of rows
    given = ["--input", folder / "thin.tif"] if "--factor" in more else []
    run(tmp_path, "--reconstruction", folder / "recon.tif", "--truth", folder / "truth.tif", *given, *more)
    border = (34 + 1) / 34  # one row is part of both bands
    sizes = {"recon.tif": 40 * border, "truth.tif": 40 * border}
    if given:
        sizes["thin.tif"] = 5 * (1 if "--codec" in more else border)  # what went through a codec was copied
    assert counts == {name: round(planes * 34 * 36) for name, planes in sizes.items()}
