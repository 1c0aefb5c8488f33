"""What a TIFF file says besides its values: voxel size and position (OME-XML, ImageJ's description), our own attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import tifffile

from volumes.units import MICROMETRES
from volumes.volume import Choice, Triple, positive

NAMESPACE = "isoscopexx/run"  # of the annotation in which our files say how they were made
_CENTIMETRE = 3  # value of the tag ResolutionUnit


def stated_in(tif: tifffile.TiffFile, choice: Choice) -> tuple[Triple | None, Triple | None, dict[str, Any]]:
    """Voxel size of the first image and position of the chosen first plane, (z, y, x) in µm; what our writer kept of the run.

    Sizes and position are None where the file does not state all three, attributes empty for other programs' files.
    """
    if tif.is_ome and tif.ome_metadata:
        try:
            root = ElementTree.fromstring(tif.ome_metadata)
        except ElementTree.ParseError:
            return None, None, {}
        return positive(_ome_sizes(root)), _ome_position(root, choice), _run_attributes(root)
    if tif.is_imagej and tif.imagej_metadata:
        return positive(_imagej_sizes(tif.imagej_metadata, tif.pages.first)), None, {}
    return None, None, {}


def _ome_sizes(root: ElementTree.Element) -> Sequence[float | None]:
    pixels = root.find(".//{*}Pixels")
    stated = {} if pixels is None else pixels.attrib
    sizes = [(stated.get(f"PhysicalSize{axis}"), stated.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"]
    return [float(size) * MICROMETRES[unit] if size and unit in MICROMETRES else None for size, unit in sizes]


def _ome_position(root: ElementTree.Element, choice: Choice) -> Triple | None:
    wanted = ("0", str(choice.channel or 0), str(choice.time or 0))
    for plane in root.iterfind(".//{*}Plane"):
        if (plane.get("TheZ"), plane.get("TheC"), plane.get("TheT")) == wanted:
            stated = [(plane.get(f"Position{axis}"), plane.get(f"Position{axis}Unit", "")) for axis in "ZYX"]
            if all(value and unit in MICROMETRES for value, unit in stated):
                z, y, x = (float(value) * MICROMETRES[unit] for value, unit in stated if value)
                return z, y, x
            return None
    return None


def _run_attributes(root: ElementTree.Element) -> dict[str, Any]:
    for annotation in root.iterfind(".//{*}MapAnnotation"):
        if annotation.get("Namespace") == NAMESPACE:
            try:
                return {str(entry.get("K")): json.loads(entry.text or "null") for entry in annotation.iterfind(".//{*}M")}
            except ValueError:
                return {}  # written by another program under our name
    return {}


def _imagej_sizes(description: Mapping[str, Any], page: tifffile.TiffPage) -> Sequence[float | None]:
    unit = str(description.get("unit", "")).replace("\\u00B5", "µ").strip('"').lower()
    scale = MICROMETRES.get(unit)
    if scale is None:
        return [None, None, None]
    # As ImageJ reads it: resolution per cm beside a unit of µm.
    in_plane = MICROMETRES["cm"] if page.tags.valueof(296) == _CENTIMETRE and scale == 1.0 else scale
    pixels = [page.tags.valueof(tag) for tag in (283, 282)]  # YResolution, XResolution: pixels per unit
    sizes = [in_plane * value[1] / value[0] if value and value[0] else None for value in pixels]
    return [float(description.get("spacing", 1.0)) * scale, *sizes]  # ImageJ leaves a spacing of 1 out
