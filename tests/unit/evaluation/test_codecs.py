"""Codecs at a chosen rate: what they promise, and that rates and distortions are those of the decoded pixels."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluation.codecs import AVIF, CODECS, JPEG2000, JPEGXL, ZSTD, code, coded_sections, finest_within
from evaluation.sections import Sections
from utils.errors import UserError


def slices(shape=(5, 56, 40), dtype="uint8", low=40, high=220):
    smooth = gaussian_filter(np.random.default_rng(3).normal(size=shape), (0, 2, 2))
    scaled = (smooth - smooth.min()) / np.ptp(smooth)
    return np.rint(low + (high - low) * scaled).astype(dtype)


def psnr(a, b, width):
    return 10 * np.log10(width**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 40, 220), ("uint16", 300, 2700)])
def test_more_bits_more_fidelity(name, dtype, low, high, tmp_path):
    array = slices(dtype=dtype, low=low, high=high)
    found = []
    for rate in (0.6, 1.2, 2.4):
        coded = code(array, CODECS[name], "all", rate, tmp_path / f"{rate}")
        assert coded.decoded.shape == array.shape and coded.decoded.dtype == array.dtype
        assert coded.bits_per_pixel <= rate
        assert coded.bits_per_pixel > {"zstd": 0.5, "avif": 0.7}.get(name, 0.9) * rate  # whose settings are whole numbers
        found.append(psnr(array, coded.decoded, high - low))
    assert found[0] > 18 and found[1] > found[0] + 2 and found[2] > found[1] + 2


@pytest.mark.parametrize("name", sorted(CODECS.keys() - {"avif"}))
def test_lossless_streams_hold_everything(name, tmp_path):
    array = slices(dtype="uint16", high=4000)
    size = code(array, CODECS[name], "all", None, tmp_path / "none").bytes
    assert array.nbytes / 4 < size < array.nbytes  # noise of 12 bits has no short description


def test_one_stream_for_all_beats_one_for_each(tmp_path):
    array = slices((6, 48, 48))
    together, apart = (code(array, JPEG2000, stream, 1.5, tmp_path / stream) for stream in ("all", "slice"))
    assert psnr(array, together.decoded, 255) > psnr(array, apart.decoded, 255) + 0.5


def test_zstd_rounds_to_the_middle_of_its_step():
    array = np.arange(250, 256, dtype=np.uint8).reshape(2, 3)
    decoded = ZSTD.decode(ZSTD.encode(array, 4.0), array, 4.0)
    np.testing.assert_array_equal(decoded, [[250, 250, 254], [254, 254, 254]])
    top = ZSTD.decode(ZSTD.encode(array, 100.0), array, 100.0)
    np.testing.assert_array_equal(top, np.full((2, 3), 250))


def test_dark_pictures_are_not_lost_by_jpegxl(tmp_path):
    dark, bright = slices(dtype="uint16", low=100, high=1100), slices(dtype="uint16", low=0, high=65535)
    found = [code(a, JPEGXL, "all", 2.0, tmp_path / f"{np.ptp(a)}") for a in (dark, bright)]
    of_dark, of_bright = (psnr(a, c.decoded, float(np.ptp(a))) for a, c in zip((dark, bright), found, strict=True))
    assert of_dark == pytest.approx(of_bright, abs=0.5)


def test_avif_takes_images_as_high_as_its_format_allows_and_has_no_lossless_mode(tmp_path):
    array = np.broadcast_to(slices((1, 48, 8)), (700, 48, 8))
    coded = code(array, AVIF, "all", 2.0, tmp_path / "a")  # 33 600 rows; its decoders stop at 32 768
    assert coded.bits_per_pixel <= 2.0 and psnr(array, coded.decoded, 255) > 25
    assert code(array, AVIF, "all", None, tmp_path / "b") is None
    assert code(np.zeros((1, 2, 40000), np.uint8), AVIF, "all", 2.0, tmp_path / "c") is None


def test_volumes_larger_than_one_image_are_coded_in_groups(tmp_path, monkeypatch):
    array = slices((7, 48, 40))
    whole = code(array, JPEG2000, "all", 2.0, tmp_path / "a")
    monkeypatch.setattr("evaluation.codecs.LARGEST", 3 * 48 * 40)
    grouped = code(array, JPEG2000, "all", 2.0, tmp_path / "b")
    assert grouped.bits_per_pixel <= 2.0
    assert psnr(array, grouped.decoded, 255) == pytest.approx(psnr(array, whole.decoded, 255), abs=3)
    assert not np.array_equal(grouped.decoded, whole.decoded)


def test_rates_that_no_setting_reaches(tmp_path):
    assert finest_within(JPEG2000, np.zeros((8, 8), np.uint8), 1) is None
    assert code(slices(), ZSTD, "all", 0.01, tmp_path / "z") is None


def test_coded_sections_lie_where_they_were(tmp_path):
    array = slices((4, 64, 48))
    box = (slice(0, 25), slice(8, 64), slice(0, 40))
    own, coded, rate = coded_sections(Sections(array, 4, 8), box, np.dtype(np.uint8), 1.0, tmp_path)
    assert 0.7 < rate <= 1.0
    assert (own.first, own.step, own.count) == (4, 8, 4)
    np.testing.assert_array_equal(own.read(0, 4, slice(8, 64), slice(0, 40)), array[:, 8:64, :40])
    assert (coded.first, coded.step, coded.count) == (4, 8, 4)
    error = coded.read(0, 4, slice(8, 64), slice(0, 40)) - array[:, 8:64, :40].astype(float)
    assert 1 < error.std() < array.std() / 2


def test_codec_names_what_it_cannot_do(tmp_path):
    box = (slice(0, 9), slice(0, 8), slice(0, 8))
    flat = Sections(np.zeros((2, 8, 8), np.float32), 0, 8)
    with pytest.raises(UserError, match="8 or 16 bit"):
        coded_sections(flat, box, np.dtype(np.float32), 1.0, tmp_path)
    with pytest.raises(UserError, match="raise --bpp"):
        coded_sections(flat, box, np.dtype(np.uint8), 0.125, tmp_path)
