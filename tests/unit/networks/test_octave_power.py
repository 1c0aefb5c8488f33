"""The power that is restored in the octave that sections cannot hold."""

import pytest
import torch

from networks.losses import octave_power


def wave(period, amplitude=1.0, rows=128):
    return amplitude * torch.sin(2 * torch.pi * torch.arange(rows) / period)[None, None, :, None].expand(1, 1, rows, 3)


def test_it_is_the_square_of_the_amplitude_at_periods_of_one_to_two_sections():
    texture = wave(3) + wave(40)  # outside the octave: without influence
    share = octave_power(wave(11, 0.5) + 2 * wave(40), wave(11) + texture, 8)
    assert share.item() == pytest.approx(0.25, rel=0.02)
    assert octave_power(wave(11).bfloat16(), wave(11), 8).item() == pytest.approx(1, rel=0.01)


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="7 rows hold no period between 16 and 32"):
        octave_power(torch.ones(1, 1, 7, 3), torch.ones(1, 1, 7, 3), 16)
