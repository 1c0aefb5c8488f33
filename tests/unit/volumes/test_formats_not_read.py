"""A file of another format is called by its name, with the way to convert it; one that is read is known by its first bytes."""

import gzip
import shutil
import struct

import mrcfile
import numpy as np
import pytest
import tifffile
from format_volumes import VALUES, check, nifti

from utils.errors import UserError
from volumes.open import open_volume

REFUSED = {
    "x.mha": (b"ObjectType = Image\nNDims = 3\n", "MetaImage.* SimpleITK"),
    "misnamed.tif": (b"NDims = 3\n", "MetaImage"),
    "x.dcm": (bytes(128) + b"DICM" + bytes(100), "DICOM.* dcm2niix"),
    "IM0001": (bytes(128) + b"DICM" + bytes(100), "DICOM"),
    "x.companion.ome": (b'<?xml version="1.0"?><OME/>', "description of a set of OME-TIFF files.* name one of these"),
    "x.img": (bytes(500), "Analyze file or NIfTI pair.* nibabel"),
    "x.hdr": (bytes(344) + b"ni1\0", "Analyze file or NIfTI pair"),
    "x.mgz": (gzip.compress(bytes(500)), "FreeSurfer.* mri_convert"),
    "x.tif.gz": (gzip.compress(bytes(500)), "a packed file.* unpack it"),
    "x.zip": (b"PK\3\4" + bytes(100), "a packed file"),
    "x.npz": (b"PK\3\4" + bytes(100), "several arrays.* one array"),
    "x.oib": (b"\xd0\xcf\x11\xe0" + bytes(100), "microscope's own format.* bfconvert"),
    "x.raw": (bytes(500), "values without a description.* Fiji"),
    "x.mp4": (bytes(500), "a lossy film"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_formats_are_called_by_their_name(name, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*{message}.*Read are TIFF, OME-Zarr, .*\.nii\.gz") as caught:
        open_volume(tmp_path / name)
    assert "copy it again" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.czi", "x.lif", "x.nd2", "x.mrc", "x.h5", "x.lsm", "x.oib", "x.dcm", "x"])
@pytest.mark.parametrize("how", [{}, {"byteorder": ">", "bigtiff": True}])
def test_a_tiff_is_one_under_any_name(name, how, tmp_path):
    tifffile.imwrite(tmp_path / name, VALUES, photometric="minisblack", **how)
    check(open_volume(tmp_path / name), VALUES)


def test_names_of_another_format_that_is_read(tmp_path):
    with mrcfile.new(tmp_path / "x.mrc", VALUES) as file:
        file.voxel_size = 2
    shutil.copy(tmp_path / "x.mrc", tmp_path / "x.czi")
    check(open_volume(tmp_path / "x.czi"), VALUES)


def test_names_that_say_something_else(tmp_path):
    packed = gzip.compress(nifti(tmp_path / "v.nii").read_bytes())
    (tmp_path / "packed.nii").write_bytes(packed)
    shutil.copy(tmp_path / "v.nii", tmp_path / "plain.nii.gz")
    shutil.copy(tmp_path / "v.nii", tmp_path / "v.dat")
    for name in ("packed.nii", "plain.nii.gz", "v.dat"):
        check(open_volume(tmp_path / name))
        assert open_volume(tmp_path / name).voxel_um == pytest.approx((2, 0.5, 0.4))
    tifffile.imwrite(tmp_path / "v.lsmx", VALUES)
    tifffile.imwrite(tmp_path / "v.scn", VALUES)
    np.save(tmp_path / "v", VALUES)
    shutil.move(tmp_path / "v.npy", tmp_path / "v.array")
    for name in ("v.lsmx", "v.scn", "v.array"):
        check(open_volume(tmp_path / name))


@pytest.mark.parametrize("name", ["v.mrc", "v.ali", "v.ccp4", "v.mrc.gz", "v.volume"])
def test_mrc_under_its_names(name, tmp_path):
    mrcfile.new(tmp_path / "v.mrc", VALUES).close()
    data = (tmp_path / "v.mrc").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    check(open_volume(tmp_path / name))


@pytest.mark.parametrize(("place", "value"), [(212, bytes(4)), (208, bytes(4))], ids=["no stamp", "no MAP"])
def test_mrc_headers_of_older_programs(place, value, tmp_path, caplog):
    mrcfile.new(tmp_path / "v.mrc", VALUES).close()
    data = bytearray((tmp_path / "v.mrc").read_bytes())
    data[place : place + 4] = value
    (tmp_path / "v.mrc").write_bytes(data)
    check(open_volume(tmp_path / "v.mrc"))
    assert "v.mrc: " in caplog.text  # what mrcfile has to say
    data[12:16] = struct.pack("<i", 101)
    (tmp_path / "v.mrc").write_bytes(data)
    with pytest.raises(UserError, match="mode 101, 4 bits per voxel: newstack -mode 0"):
        open_volume(tmp_path / "v.mrc")
