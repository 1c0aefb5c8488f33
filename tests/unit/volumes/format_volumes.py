"""The volume that the tests of the file formats read back, and how they compare it."""

import pickle

import nibabel
import numpy as np

SHAPE = (7, 45, 53)
VALUES = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)


def check(volume, values=VALUES):
    """The volume reads exactly, whole and in part, also after pickling."""
    assert (volume.shape, volume.dtype) == (values.shape, values.dtype)
    for this in (volume, pickle.loads(pickle.dumps(volume))):
        np.testing.assert_array_equal(this[:], values)
        np.testing.assert_array_equal(this[1:7:2, 3:40, 5:9], values[1:7:2, 3:40, 5:9])
        np.testing.assert_array_equal(this[2:3, 17:44, 30:53], values[2:3, 17:44, 30:53])
        assert this[:].dtype.isnative and this[:].flags.c_contiguous
    for box in volume.blocks(1000):
        np.testing.assert_array_equal(volume[box], values[box])


def nifti(path, values=VALUES, affine=None, unit="mm", kind=nibabel.Nifti1Image, **header):
    image = kind(values.T, np.diag([4e-4, 5e-4, 2e-3, 1]) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path
