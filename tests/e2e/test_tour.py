"""The notebook of docs/ runs from its first cell to its last, and shows what it says."""

from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_the_tour(monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    tour = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(tour, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(DOCS)}}).execute()
    outputs = [output for cell in tour.cells for output in cell.get("outputs", ())]
    said = [output["data"]["text/plain"] for output in outputs if output["output_type"] == "execute_result"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    (shapes, psnr, sizes, layers, verdict) = said
    assert shapes == "((16, 160, 160), (128, 160, 160))" and "on disc" in sizes
    assert eval(psnr)["lateral"] > eval(psnr)["linear"] + 0.5  # 1.0 as measured
    assert "'sections', 'lateral'" in layers and "Better than interpolation" in verdict
