"""The page of an evaluation: what is marked, and that nothing from outside becomes markup."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from evaluate_files import run, save, scene
from matplotlib.figure import Figure

from evaluation.compression import draw_rates
from evaluation.figures import between_sections
from evaluation.report import table_line
from evaluation.sections import Sections


def test_names_with_markup_are_text(tmp_path):
    hostile = "<img src=x onerror=alert(1)>&'\".tif"
    save(tmp_path / hostile, scene())
    save(tmp_path / "truth.tif", np.roll(scene(), 1, axis=1))
    run(tmp_path, "--reconstruction", tmp_path / hostile, "--truth", tmp_path / "truth.tif", "--thin", "8")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&amp;&#39;&#34;.tif") == 3  # title, heading, files


def line(values, **changes):
    options = {"key": "a b", "form": "{:.2f}", "best": "high", "bound": None} | changes
    cells = table_line({name: {"a": {"b": value}} for name, value in values.items()}, **options)
    return {cell["name"]: ("*" if cell["best"] else "") + cell["text"] for cell in cells}


def test_the_best_value_is_marked_and_the_truth_competes_with_nobody():
    values = {"reconstruction": 1.0, "linear": 0.999, "cubic": 0.2, "truth": 5.0}
    assert line(values) == {"reconstruction": "*1.00", "linear": "*1.00", "cubic": "0.20", "truth": "5.00"}
    assert line(values, best="low")["cubic"] == "*0.20"
    assert not any(text.startswith("*") for text in line(values, best="").values())
    assert line({"reconstruction": 1.0, "truth": 2.0}) == {"reconstruction": "1.00", "truth": "2.00"}
    assert line({"reconstruction": np.inf, "linear": 3.0}) == {"reconstruction": "*∞", "linear": "3.00"}


def test_a_limit_that_is_never_reached_is_better_than_any_that_is():
    assert line({"reconstruction": None, "linear": 0.2}, bound=0.5) == {"reconstruction": "*≥ 0.50", "linear": "0.20"}
    assert line({"reconstruction": None, "linear": 0.9}, bound=0.4, best="low") == {"reconstruction": "*≤ 0.40", "linear": "0.90"}


def test_lines_without_numbers_are_left_out():
    assert table_line({"linear": {}, "cubic": {"a": None}}, "a b", "{}", "high", 0.5) == []
    assert line({"linear": np.nan}) == {}


@pytest.mark.parametrize(
    ("first", "step", "region", "depth", "plane"),
    [
        (0, 8.0, (0, 48), 48, 28),
        (3.5, 8.0, (0, 48), 48, 24),
        (0, 8.0, (10, 60), 32, 17),
        (0, 1.0, (0, 48), 48, 24),
        (0, 8.0, (0, 3), 3, 2),
    ],
)
def test_the_xy_plane_lies_half_way_between_two_sections(first, step, region, depth, plane):
    sections = Sections(np.zeros((6, 4, 4), np.float32), first, step)
    shown = between_sections(SimpleNamespace(sections=sections, region=(slice(*region),)), depth)
    assert shown == plane


def test_the_legend_of_the_rates_lies_within_the_figure(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (figure.canvas.draw(), drawn.append(figure)))
    kinds = [*product(("jpeg2000", "jpegxl", "avif", "zstd"), ("all", "slice")), ("codes", "store")]
    found = {"limit": 0.1, "bits_per_pixel": 0.1, "slices": {"psnr_db": 30.0, "ssim": 0.8}}
    draw_rates([{"codec": codec, "stream": stream, **found} for codec, stream in kinds], "rates", tmp_path / "rates.png")
    box = drawn[0].legends[0].get_window_extent()
    assert 0 <= box.x0 and box.x1 <= drawn[0].bbox.x1
