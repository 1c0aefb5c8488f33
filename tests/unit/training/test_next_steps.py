"""The files that a finished training names for its next steps."""

import json
from types import SimpleNamespace

import pytest

from training.messages import _raw


@pytest.mark.parametrize(
    ("files", "channel", "count", "found"),
    [
        (["both.tif", "both.tif"], [0, 1], 2, ["both.tif", "both.tif"]),  # one file, whose channels are those of the run
        (["a.tif", "b.tif"], None, 2, ["a.tif", "b.tif"]),
        (["both.tif", "both.tif"], [1, 0], 2, []),
        (["a.tif", "b.tif"], [0, 1], 2, []),  # each of them has several
        (["both.tif", "both.tif"], [0, 1], 1, []),  # a translation of the first to the second
        (["a.tif", "gone.tif"], None, 2, []),
        (["a.tif"], None, 1, ["a.tif"]),
    ],
)
def test_raw_files_are_named_where_they_are_read_without_options(tmp_path, files, channel, count, found):
    for name in ("a.tif", "b.tif", "both.tif"):
        (tmp_path / name).touch()
    names = [f"x3d{k}" for k in range(len(files))]
    made = {
        direction: {"settings": {"channel": channel}, "sources": [{"path": str(tmp_path / name)}]}
        for direction, name in zip(names, files, strict=True)
    }
    (tmp_path / "dataset.json").write_text(json.dumps({"version": 1, "directions": made}))
    assert _raw(SimpleNamespace(root=tmp_path / "train", directions=names), count) == [str(tmp_path / name) for name in found]
