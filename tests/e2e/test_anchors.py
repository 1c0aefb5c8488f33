"""Interpolation and JPEG2000 on two real FIB-SEM cubes, through the command line, against figures computed without this code.

Rows: how sections are made, planes per section, dB and SSIM (every 8th XZ plane from the fourth). The JPEG2000 sections take at
most 0.125 bit per pixel each; those of the thinned cubes have 27.8 (dev) and 26.3 dB (quickstart). Slow: minutes for each row.
"""

import os
from pathlib import Path

import pytest

import evaluate
from evaluation.run import numbers

SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SAMPLES, reason="ISOSCOPE_SAMPLES names the folder of real volumes"),
]
DB, SSIM = 0.1, 0.005
METHODS = ("nearest", "linear", "cubic", "jpeg2000 + linear", "jpeg2000 + cubic")
DEV, QUICKSTART = "fibsem_fib25_dev.tif", "fibsem_fib25_quickstart.tif"
ROWS = [
    (DEV, "--average", 8, (25.05, 25.70, 26.21, 24.68, 25.01), (0.596, 0.631, 0.651, 0.535, 0.551)),
    (DEV, "--thin", 8, (23.41, 24.85, 24.44, 24.44, 24.26), (0.542, 0.611, 0.597, 0.552, 0.553)),
    (DEV, "--average", 4, (28.67, 29.89, 30.88, 26.84, 27.12), (0.772, 0.804, 0.831, 0.646, 0.662)),
    (DEV, "--thin", 4, (26.83, 29.33, 29.26, 26.95, 27.02), (0.710, 0.793, 0.794, 0.662, 0.672)),
    (QUICKSTART, "--average", 8, (24.54, 25.20, 25.70, 23.90, 24.18), (0.599, 0.638, 0.658, 0.522, 0.537)),
    (QUICKSTART, "--thin", 8, (22.89, 24.37, 23.94, 23.60, 23.40), (0.546, 0.620, 0.606, 0.532, 0.534)),
]
SECTIONS_DB = {DEV: 27.8, QUICKSTART: 26.3}


@pytest.mark.parametrize(("cube", "how", "factor", "psnr", "ssim"), ROWS, ids=[f"{r[0][14:-4]}{r[1]}-{r[2]}" for r in ROWS])
def test_published_figures(cube, how, factor, psnr, ssim, tmp_path):
    side = 248 if cube == DEV else 192
    arguments = ["--truth", Path(SAMPLES) / cube, how, factor, "--region", ",".join([f"0:{side}"] * 3), "--planes", "4::8"]
    arguments += ["--codec", "jpeg2000", "--bpp", 0.125, "--output", tmp_path]
    options = evaluate.build_parser().parse_args([str(a) for a in arguments])
    measured = numbers(evaluate.request_of(options), tmp_path)[1]["volumes"]
    for method, db, similarity in zip(METHODS, psnr, ssim, strict=True):
        assert measured[method]["psnr_db"] == pytest.approx(db, abs=DB), method
        assert measured[method]["ssim"]["xz"] == pytest.approx(similarity, abs=SSIM), method
    if how == "--thin" and factor == 8:
        sections = measured["jpeg2000 + linear"]["consistency"]["pick"]["psnr_db"]
        assert sections == pytest.approx(SECTIONS_DB[cube], abs=DB)
