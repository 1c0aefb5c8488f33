"""Small volumes on disc, and evaluate.py applied to them."""

import json

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import evaluate
from evaluation import measure
from evaluation.report import plain

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
    return json.loads(json.dumps(plain(measure.numbers(evaluate.request_of(options), tmp_path)[0]), allow_nan=False))


def refused(capsys, tmp_path, *arguments):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err.split("\r")[-1]  # after the progress bars
    assert message.startswith("error: ") and "Traceback" not in message
    assert not (tmp_path / "out" / "metrics.json").exists()
    return message
