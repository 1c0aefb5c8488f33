"""The specification's own cases of OME-Zarr 0.6: valid images are read, or refused by name; others are refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from utils.errors import UserError
from volumes.open import open_volume

FOLDER = Path(os.environ.get("ISOSCOPE_SAMPLES", "nowhere")).parent / "conformance"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder with the specification's cases beside ISOSCOPE_SAMPLES")
UM = {"micrometer": 1.0, "micron": 1.0}


def cases(kind):
    return [pytest.param(file, id=file.stem) for file in sorted(FOLDER.glob(f"attributes/*/{kind}/image/*.json"))]


def stored(path, attributes):
    """A group of these attributes, with an array of random values wherever one is named; returns these by path."""
    group, arrays = zarr.open_group(str(path), mode="w", zarr_format=3, attributes=attributes), {}
    for image in attributes["ome"].get("multiscales") or []:
        systems = [system for system in image.get("coordinateSystems", ()) if isinstance(system, dict)]
        axes = systems[-1].get("axes", [{}] * 3) if systems else [{}] * 3
        lead = [2 if axis.get("name") == "angle" else 1 for axis in axes[:-3]]
        for number, level in enumerate(image.get("datasets", ())):
            if isinstance(level.get("path"), str):
                shape = [max(1, size >> number) for size in (*lead, *(8, 12, 16)[-min(len(axes), 3) :])]
                values = np.random.default_rng(number).integers(0, 255, shape, np.uint8)
                group.create_array(level["path"], data=values)
                arrays[level["path"]] = values
    return arrays


def in_3d(attributes):
    """The same of an image with an axis z of 2 µm."""
    for image in attributes["ome"]["multiscales"]:
        for system in image["coordinateSystems"]:
            system["axes"] = [{"name": "z", "type": "space", "unit": "micrometer"}, *system["axes"]]
        for level in image["datasets"]:
            for one in level["coordinateTransformations"]:
                for kind, first in (("scale", 2), ("translation", 1)):
                    one |= {kind: [first, *one[kind]]} if kind in one else {}
    return attributes


@pytest.mark.parametrize("file", cases("valid"))
def test_valid_images(file, tmp_path):
    attributes = json.loads(file.read_text())
    attributes.pop("_conformance")
    [image] = attributes["ome"]["multiscales"]
    axes = image["coordinateSystems"][-1]["axes"] if "additional" not in file.stem else image["coordinateSystems"][0]["axes"]
    if len(axes) == 2:
        stored(tmp_path / "flat.ome.zarr", attributes)
        with pytest.raises(UserError, match="a 2-D image"):
            open_volume(tmp_path / "flat.ome.zarr")
        attributes, axes = in_3d(attributes), [{"name": "z", "unit": "micrometer"}, *axes]
    arrays = stored(tmp_path / "v.ome.zarr", attributes)
    if axes[0]["name"] == "angle" or (len(axes) == 3 and axes[0]["name"] == "t"):
        with pytest.raises(UserError, match=r"a 2-D image|not a volume \(Z, Y, X\)|contradicts its 3 axes"):
            open_volume(tmp_path / "v.ome.zarr")
        return
    volume = open_volume(tmp_path / "v.ome.zarr")
    level = image["datasets"][0]
    np.testing.assert_array_equal(volume[:], arrays[level["path"]].reshape(volume.shape))
    [transform] = level["coordinateTransformations"]
    steps = transform.get("transformations", [transform])
    units = [UM.get(axis.get("unit")) for axis in axes[-3:]]
    if None in units:
        assert volume.voxel_um is None
        return
    if "scale" in steps[0]:
        assert volume.voxel_um == pytest.approx([a * b for a, b in zip(steps[0]["scale"][-3:], units, strict=True)])
    place = next((step["translation"] for step in steps if "translation" in step), None)
    assert volume.translation_um == (None if place is None else pytest.approx(place[-3:]))


@pytest.mark.parametrize("file", cases("invalid"))
def test_invalid_images(file, tmp_path):
    attributes = json.loads(file.read_text())
    attributes.pop("_conformance")
    stored(tmp_path / "v.ome.zarr", attributes)
    with pytest.raises(UserError) as refusal:
        open_volume(tmp_path / "v.ome.zarr")
    assert "v.ome.zarr" in str(refusal.value) and "Traceback" not in str(refusal.value)


FLAW = {"empty_transformations", "duplicate_scale", "invalid_path", "missing_path", "no_datasets"}
FLAW |= {f"invalid_multiscale_transform_{end}" for end in ("input", "output", "input_output")} | {"invalid_transformation_type"}


@pytest.mark.parametrize("file", [case for case in cases("invalid") if case.id in FLAW])
def test_flaws_are_not_hidden_by_the_second_dimension(file, tmp_path):
    attributes = json.loads(file.read_text())
    attributes.pop("_conformance")
    stored(tmp_path / "v.ome.zarr", in_3d(attributes))
    with pytest.raises(UserError) as refusal:
        open_volume(tmp_path / "v.ome.zarr")
    assert "2-D" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["rotation", "affine", "mapAxis"])
def test_other_transformations_are_named(kind, tmp_path):
    file = next(FOLDER.glob("attributes/spec/valid/image/multiscales_transform_sequence.json"))
    attributes = json.loads(file.read_text())
    attributes.pop("_conformance")
    steps = attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["transformations"]
    steps[1] = {"type": kind, kind: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    stored(tmp_path / "v.ome.zarr", attributes)
    with pytest.raises(UserError, match=rf"'{kind}'.* is not supported; scale and translation are"):
        open_volume(tmp_path / "v.ome.zarr")


@pytest.mark.parametrize("name", sorted(folder.name for folder in FOLDER.glob("zarr/strict/valid/image/*.zarr")))
def test_groups_that_name_systems_by_their_names_alone_as_the_other_cases_forbid(name):
    with pytest.raises(UserError, match=r"are not those of OME-Zarr 0[.]6"):
        open_volume(FOLDER / "zarr" / "strict" / "valid" / "image" / name)
