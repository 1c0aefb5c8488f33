"""A header that promises more than the file has is refused before anything of that size is made."""

import struct
import tracemalloc

import mrcfile
import numpy as np
import pytest
from format_volumes import VALUES, nifti

from utils.errors import UserError
from volumes.open import open_volume


def mrc(path):
    mrcfile.new(path, VALUES).close()


LIES = {
    "sections": (mrc, "v.mrc", 8, struct.pack("<i", 2**31 - 1)),
    "extended header": (mrc, "v.mrc", 92, struct.pack("<i", 2**31 - 1)),
    "negative header": (mrc, "v.mrc", 92, struct.pack("<i", -4)),
    "negative rows": (mrc, "v.mrc", 4, struct.pack("<i", -45)),
    "columns": (mrc, "v.mrc", 0, struct.pack("<i", 2**30)),
    "depth": (nifti, "v.nii", 46, struct.pack("<h", 32767)),
    "start": (nifti, "v.nii", 108, struct.pack("<f", 2e9)),
    "array": (lambda path: np.save(path, VALUES), "v.npy", None, b"(7000000000, 45, 53), }"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_promise_too_much(lie, tmp_path):
    make, name, place, value = LIES[lie]
    make(tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    place = data.index(b"(7, 45, 53), }") if place is None else place  # spaces follow, which fill the header
    data[place : place + len(value)] = value
    (tmp_path / name).write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError, match=name):
        open_volume(tmp_path / name)[:]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e7
