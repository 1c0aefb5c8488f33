"""What a TIFF file says besides its values: voxel size and position (OME-XML, ImageJ's description), our own attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import tifffile

MICROMETRES: Mapping[str, float] = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "nm": 1e-3,
    "Å": 1e-4,
    "pm": 1e-6,
    "in": 25400.0,
    "inch": 25400.0,
}
NAMESPACE = "isoscopexx/run"  # of the annotation in which our files say how they were made
_CENTIMETRE = 3  # value of the tag ResolutionUnit


def voxel_size_um(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """Voxel size (z, y, x) in µm of the first image, or None where the file does not state all three."""
    if tif.is_ome and tif.ome_metadata:
        sizes = _from_ome(tif.ome_metadata)
    elif tif.is_imagej and tif.imagej_metadata:
        sizes = _from_imagej(tif.imagej_metadata, tif.pages.first)
    else:
        return None
    if any(size is None or not size > 0 for size in sizes):
        return None
    z, y, x = (float(size) for size in sizes if size is not None)
    return z, y, x


def translation_um(tif: tifffile.TiffFile, channel: int = 0, time: int = 0) -> tuple[float, float, float] | None:
    """Position (z, y, x) in µm that OME-XML states for the first plane of a channel and time point; None without all three."""
    root = _ome(tif)
    for plane in () if root is None else root.iterfind(".//{*}Plane"):
        if (plane.get("TheZ"), plane.get("TheC"), plane.get("TheT")) == ("0", str(channel), str(time)):
            values = [(plane.get(f"Position{axis}"), plane.get(f"Position{axis}Unit", "")) for axis in "ZYX"]
            if all(value and unit in MICROMETRES for value, unit in values):
                z, y, x = (float(value) * MICROMETRES[unit] for value, unit in values if value)
                return z, y, x
            return None
    return None


def run_attributes(tif: tifffile.TiffFile) -> dict[str, Any]:
    """What our writer kept about the run that made the file; empty for other files."""
    root = _ome(tif)
    for annotation in () if root is None else root.iterfind(".//{*}MapAnnotation"):
        if annotation.get("Namespace") == NAMESPACE:
            try:
                return {str(entry.get("K")): json.loads(entry.text or "null") for entry in annotation.iterfind(".//{*}M")}
            except ValueError:
                return {}  # written by another program under our name
    return {}


def _ome(tif: tifffile.TiffFile) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(tif.ome_metadata) if tif.is_ome and tif.ome_metadata else None
    except ElementTree.ParseError:
        return None


def _from_ome(xml: str) -> list[float | None]:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return [None]
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        return [None]
    sizes: list[float | None] = []
    for axis in "ZYX":
        size, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        sizes.append(float(size) * MICROMETRES[unit] if size and unit in MICROMETRES else None)
    return sizes


def _from_imagej(description: Mapping[str, Any], page: tifffile.TiffPage) -> list[float | None]:
    unit = str(description.get("unit", "")).replace("\\u00B5", "µ").strip('"').lower()
    scale = MICROMETRES.get(unit)
    if scale is None:
        return [None]
    in_plane = scale
    if page.tags.valueof(296) == _CENTIMETRE and scale == 1.0:
        in_plane = MICROMETRES["cm"]  # as ImageJ reads it: resolution per cm beside a unit of µm
    sizes: list[float | None] = [float(description.get("spacing", 1.0)) * scale]  # ImageJ leaves a spacing of 1 out
    for tag in (283, 282):  # YResolution, XResolution: pixels per unit
        value = page.tags.valueof(tag)
        sizes.append(in_plane * value[1] / value[0] if value and value[0] else None)
    return sizes
