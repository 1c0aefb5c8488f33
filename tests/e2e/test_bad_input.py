"""Mistakes a user makes: one clear message before any training, naming file and remedy; nothing is written."""

import numpy as np
import pytest
import tifffile

from utils.errors import UserError


def refused(workspace, match, *options):
    with pytest.raises(UserError, match=match):
        workspace.train("one", *options)
    assert not workspace.run("one").manifest.trained()


def volume(workspace, name="a.tif", direction="x3d0"):
    return workspace.data / "train" / direction / name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--cropz", 5), "not a cube.*Try cropz=4"),
        (("--cropsiz", 32, "--strict"), "--strict refuses abbreviations.*--cropsize"),
        (("--lamda", 1), "lamda.*lamb"),
        (("--netD", "patch_5"), "patch_5.*patch_16"),
        (("--gan_mode", "wgangp"), "wgangp.*vanilla"),
        (("--precision", "16-mixed"), "16-mixed.*bf16-mixed"),
        (("--strategy", "fsdp"), "fsdp"),
        (("--env", "nowhere"), "nowhere.*local"),
        (("--direction", "x3d0_x3d1"), "x3d1"),
        (("--cropz", 16, "--cropsize", 128), "a.tif"),
        (("--nm", "00"), r"a.tif.*nm.?11"),
        (("--perceptual_weight", 1), "vgg16-397923af.pth.*--perceptual_weight 0"),
        (("--init", "nothing"), "neither nothing nor"),
        (("--resume",), "not a training's folder"),
        (("--ldmyaml", "vqgan"), "ngf"),
        (("--models", "unet"), "unet.*ae0iso0tccutvqq"),
    ],
)
def test_settings(workspace, monkeypatch, tmp_path, options, match):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    refused(workspace, f"(?s){match}", *options)


def test_missing_experiment(workspace):
    (workspace.root / "tiny.json").unlink()
    refused(workspace, "tiny.json")


def test_broken_experiment(workspace):
    (workspace.root / "tiny.json").write_text('{"train": {"ngf": 4,}}')
    refused(workspace, "tiny.json")


def test_unknown_key(workspace):
    workspace.settings(cropsise=32)
    refused(workspace, "tiny.json.*cropsise.*cropsize")


def test_missing_data_folder(workspace):
    refused(workspace, "data folder .* does not exist.*--data_root", "--data_root", workspace.root / "elsewhere")


def test_empty_folder(workspace):
    for name in ("a.tif", "b.tif"):
        volume(workspace, name).unlink()
    refused(workspace, "x3d0")


def test_unpaired_files(workspace):
    target = volume(workspace, direction="x3d1")
    target.parent.mkdir()
    target.write_bytes(volume(workspace).read_bytes())
    refused(workspace, "b.tif", "--direction", "x3d0_x3d1")


def test_unequal_shapes(workspace):
    for name in ("a.tif", "b.tif"):
        target = volume(workspace, name, "x3d1")
        target.parent.mkdir(exist_ok=True)
        tifffile.imwrite(target, np.zeros((12, 48, 44), np.uint16))
    refused(workspace, r"\(12, 48, 40\).*\(12, 48, 44\)", "--direction", "x3d0_x3d1")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((48, 40), np.uint16), "a.tif"),
        (np.zeros((48, 40, 3), np.uint8), "a.tif"),
        (np.full((12, 48, 40), np.nan, np.float32), "a.tif.*NaN"),
        (np.full((12, 48, 40), np.inf, np.float32), "a.tif.*infinite"),
        (np.zeros((3, 48, 40), np.uint16), "a.tif.*cropz"),
        (np.zeros((12, 24, 40), np.uint16), "a.tif.*cropsize"),
    ],
)
def test_unusable_volumes(workspace, array, match):
    colour = "rgb" if array.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(volume(workspace), array, photometric=colour)
    refused(workspace, f"(?s){match}")


def test_truncated_tiff(workspace):
    path = volume(workspace)
    path.write_bytes(path.read_bytes()[:-5000])
    refused(workspace, "a.tif.*(truncated|incomplete|ends)")
