"""The sentences that sum an evaluation up."""

import pytest

from evaluation.report import verdict


def made_up(psnr, limit, power, correlation, strict=0.04, error=0.005):
    curve = {
        "at_0.143": {"cycles_per_voxel": limit, "cycles_per_um": None, "standard_error": error},
        "at_0.5": {"cycles_per_voxel": strict},
        "cycles_per_voxel": [0.05, 0.1, 0.2, 0.4],
        "correlation": [1.0, correlation, correlation, 0.0],
    }
    return {
        "psnr_db": psnr,
        "ssim": {"xz": psnr / 100, "yz": psnr / 100},
        "fsc": {"z": curve},
        "power_over_truth": {"z": {"1/16-1/8": power, "1/8-1/4": power}},
    }


@pytest.mark.parametrize(
    ("psnr", "limit", "headline"),
    [
        (27, 0.15, "Better than interpolation"),
        (27, 0.10, "Better than interpolation"),
        (26, 0.10, "As good as interpolation, not better"),
        (25, 0.15, "Finer true detail along z than interpolation, at the price of larger voxel-wise errors"),
        (27, 0.05, "Closer voxel by voxel than interpolation, but with less true detail along z"),
        (25, 0.05, "Not better than interpolation"),
        (25, 0.10, "Not better than interpolation"),
    ],
)
def test_headline_weighs_error_against_detail(psnr, limit, headline):
    volumes = {"reconstruction": made_up(psnr, limit, 0.4, 0.5), "linear": made_up(26, 0.10, 0.1, 0.5), "truth": {}}
    assert verdict(volumes)["headline"] == headline


@pytest.mark.parametrize(
    ("limit", "strict", "error", "said"),
    [
        (0.0873, 0.04, 0.005, "no difference beyond 2 standard errors"),  # two trainings of one quickstart
        (0.0822, 0.04, 0.005, "no difference beyond 2 standard errors"),
        (0.0996, 0.04, 0.005, "11.8 ± 0.7 voxels (Fourier shell correlation 0.143; shorter is finer)."),
        (0.0996, 0.039, 0.005, "25.6 against 25.0 voxels), so that its true detail is not called finer"),
        (0.0996, 0.04, 0.02, "no difference beyond 2 standard errors"),
    ],
)
def test_finer_detail_is_said_only_where_it_is_significant(limit, strict, error, said):
    volumes = {"reconstruction": made_up(25, limit, 0.4, 0.5, strict, error), "linear": made_up(26, 0.085, 0.1, 0.5), "truth": {}}
    found = verdict(volumes)
    assert any(said in sentence for sentence in found["sentences"])
    assert found["headline"].startswith("Finer") == (said[0] == "1")


def test_power_without_agreement_is_called_invented():
    honest = {"reconstruction": made_up(27, 0.15, 0.9, 0.5), "linear": made_up(26, 0.1, 0.1, 0.5), "truth": {}}
    invented = {"reconstruction": made_up(27, 0.15, 0.9, 0.05), "linear": made_up(26, 0.1, 0.1, 0.5), "truth": {}}
    assert not any("invented" in sentence for sentence in verdict(honest)["sentences"])
    assert sum("invented" in sentence for sentence in verdict(invented)["sentences"]) == 2


@pytest.mark.parametrize(("voxel_um", "period"), [(0.25, "(1.67 µm)"), (1000, "(6.67 mm)")])
def test_periods_are_told_in_a_unit_that_suits_them(voxel_um, period):
    own = made_up(27, 0.15, 0.4, 0.5)
    own["fsc"]["z"]["at_0.143"]["cycles_per_um"] = 0.15 / voxel_um
    found = verdict({"reconstruction": own, "linear": made_up(26, 0.10, 0.1, 0.5), "truth": {}})
    assert any(f"periods of 6.7 ± 0.2 voxels {period}" in sentence for sentence in found["sentences"])


def test_without_a_truth_the_steps_of_nearest_are_no_rival_in_isotropy():
    def seen(tilt):
        detail = {axis: {"half_width": 4.0, "lobe": 0.0} for axis in "zyx"} | {"profile_undone": False}
        shape = {"decorrelation": {axis: {"period_voxels": 5.0} for axis in "zyx"}, "detail": detail, "axial_power_db": {}}
        return {"anisotropy_db": tilt, "consistency": {}, **shape}

    volumes = {"reconstruction": seen(4.9), "nearest": seen(3.3), "linear": seen(7.2), "cubic": seen(21.0)}
    found = verdict(volumes)
    assert found["headline"] == "No truth: more isotropic than interpolation"
    said = "(0 is isotropic; nearest 3.3 dB, whose steps pass for detail; linear 7.2 dB; cubic 21.0 dB)"
    assert any(said in sentence for sentence in found["sentences"])
    volumes["linear"] = seen(3.0)
    assert verdict(volumes)["headline"] == "No truth: less isotropic than interpolation"
