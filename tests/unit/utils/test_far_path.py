"""An address as a path: it keeps its two slashes, and nothing of it exists on this machine."""

import json
import os
import pickle
from pathlib import Path

from utils.far import FarPath, path_of


def test_an_address_is_a_path(monkeypatch):
    path = path_of("HTTPS://host/a/x.zarr/")
    file = path / "0" / "zarr.json"
    assert isinstance(file, FarPath) and str(file) == os.fspath(file) == f"{file}" == "https://host/a/x.zarr/0/zarr.json"
    assert (file.name, str(file.parent), str(path.with_name("y.zarr"))) == (
        "zarr.json",
        "https://host/a/x.zarr/0",
        "https://host/a/y.zarr",
    )
    assert str(file.relative_to(path)) == "0/zarr.json" and file.parts[-1] == "zarr.json"
    again = pickle.loads(pickle.dumps(file))
    assert again == file and isinstance(again, FarPath)
    assert path_of(Path("https://host/a/x.zarr")) == path and path_of(path) is path
    assert path.absolute() is path.resolve() is path and not path.exists() and not path.is_dir() and not path.is_symlink()
    monkeypatch.setattr(FarPath, "fetch", lambda self, *part: b'{"a": 1}')
    assert file.is_file() and file.read_bytes() == b'{"a": 1}' and json.loads(file.read_text()) == {"a": 1}


def test_paths_of_this_machine_stay_what_they_are():
    for text in ("x.zarr", "/data/x.zarr", "C:/x.zarr", "a:b/c", "../https/x"):
        assert type(path_of(text)) is type(Path()) and path_of(text) == Path(text)
