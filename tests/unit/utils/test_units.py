"""Sizes and lengths as messages say them."""

import pytest

from utils.units import as_length, as_size


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (164, "164 bytes"),
        (999.6, "1 kB"),
        (164_000, "164 kB"),
        (1_234_567, "1.23 MB"),
        (2**30, "1.07 GB"),
        (999.6e9, "1 TB"),
        (31.4e12, "31.4 TB"),
    ],
)
def test_a_size_has_three_digits_and_its_unit(count, said):
    assert as_size(count) == said


@pytest.mark.parametrize(
    ("um", "said"), [(0.05, "0.05 µm"), (500, "500 µm"), (999.4, "999 µm"), (999.6, "1 mm"), (2000, "2 mm"), (12_345, "12.3 mm")]
)
def test_a_length_is_in_millimetres_from_one_on(um, said):
    assert as_length(um) == said
