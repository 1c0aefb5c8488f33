"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from evaluation.table import render_table

CSS = """
:root { color-scheme: light; --ink: #1c2430; --muted: #5d6773; --line: #dfe3e8; --accent: #d1495b; --soft: #f6f7f9; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); max-width: 1180px; margin: 2.2rem auto;
  padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 62rem; } .muted { color: var(--muted); }
.verdict { border-left: 5px solid var(--accent); background: var(--soft); padding: .9rem 1.2rem; margin: 1.2rem 0; }
.verdict strong { font-size: 1.12rem; } .verdict ul { margin: .4rem 0 0; padding-left: 1.2rem; }
figure { margin: .6rem 0; } img { max-width: 100%; height: auto; } figcaption { color: var(--muted); }
table { border-collapse: collapse; width: 100%; } th, td { padding: .42rem .6rem;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { text-align: left; font-weight: 600; } thead th { border-bottom: 2px solid var(--ink); white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.best { font-weight: 700; background: #e6f3ec; }
td.own, th.own { border-left: 2px solid var(--accent); border-right: 2px solid var(--accent); }
tr.group th { background: var(--soft); padding-top: .7rem; } td .muted { font-size: .86rem; display: block; }
.facts th { width: 14rem; } .scroll { overflow-x: auto; }
"""


def _facts(document: dict[str, Any]) -> str:
    lines = []
    for role, file in document["files"].items():
        size = "×".join(str(side) for side in file["shape"])
        voxel = (
            "voxel size not stated"
            if file["voxel_um"] is None
            else "voxel " + "×".join(f"{s:g}" for s in file["voxel_um"]) + " µm"
        )
        lines.append((role.capitalize(), f"{file['path']} · {size} voxels (z, y, x) · {file['dtype']} · {voxel}"))
    region = ", ".join(f"{axis} {a}:{b}" for axis, (a, b) in zip("zyx", document["grid"]["region"], strict=True))
    lines.append(("Compared region", f"{region} of the {document['alignment']['grid']}"))
    for role in ("reconstruction", "input"):
        place = document["alignment"].get(role)
        if place:
            lines.append(
                (
                    f"Position of the {role}",
                    f"plane k at {place['first_plane']:g} + k·{place['planes_per_section']:g} ({place['how']})",
                )
            )
    codec = document["alignment"].get("codec")
    if codec:
        lines.append(
            ("Codec", f"{codec['name']}, {codec['bits_per_pixel']:.4f} bit per pixel of the sections (limit {codec['limit']:g})")
        )
    scope = document["data_range"]
    lines.append(("Data range", f"{scope['low']:g} to {scope['high']:g}: {scope['rule']}"))
    lines.append(("What was sampled", document["sampling"]["statement"] + "."))
    lines += [("Note", note) for note in document["notes"]]
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in lines)
    return f'<table class="facts">{rows}</table>'


def _figure(path: Path, caption: str) -> str:
    data, text = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{path.stem}"><figcaption>{text}</figcaption></figure>'


def render(document: dict[str, Any], figures: dict[str, tuple[Path, str]]) -> str:
    """The report as HTML.

    Args:
        document: what metrics.json holds.
        figures: PNG and caption by name: ``planes``, and ``fsc`` and ``spectra`` where drawn.
    """
    judged = document["verdict"]
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in judged["sentences"])
    sections = [
        f"<h1>Evaluation of {html.escape(document['title'])}</h1>",
        f'<p class="muted">IsoScopeXX {html.escape(document["version"])} · all numbers are in metrics.json beside this file</p>',
        f'<div class="verdict"><strong>{html.escape(judged["headline"])}.</strong><ul>{sentences}</ul></div>',
        "<h2>What it looks like</h2>",
        _figure(*figures["planes"]),
        "<h2>The numbers</h2>",
        "<p>The best value of a line is shaded. No line decides alone: error measures favour blur, sharpness measures favour "
        "invention. A good restoration is at least as close to the truth as interpolation and agrees with it to finer detail.</p>"
        if "fsc" in figures
        else "<p>Without a truth no value is right or wrong in itself; compare the columns with each other.</p>",
        render_table(document["volumes"]),
    ]
    if "fsc" in figures:
        sections += ["<h2>Down to which size is the detail real?</h2>", _figure(*figures["fsc"])]
    sections += ["<h2>How much detail is there at all?</h2>", _figure(*figures["spectra"])]
    sections += ["<h2>What was compared, and how</h2>", _facts(document)]
    head = f'<meta charset="utf-8"><title>Evaluation of {html.escape(document["title"])}</title><style>{CSS}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>\n'
