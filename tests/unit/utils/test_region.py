"""One reader of --region and --planes for infer.py and evaluate.py."""

import pytest

import evaluate
import infer
from utils.command_line import parse_region, parse_slice
from utils.errors import UserError


def test_numbers_that_are_left_out_reach_to_the_border():
    assert parse_region("2:30, 5:,:7") == (slice(2, 30), slice(5, None), slice(None, 7))
    assert parse_region(None) is None
    assert parse_slice("::4", "--planes") == slice(None, None, 4)


@pytest.mark.parametrize("text", ["0:3", "0:3,1,2:3", "0:3,1:2,-4:3", "0:3,1:2,0:9:2", "a:b,:,:", "", "0:3,1:2,3:4,5:6"])
def test_what_is_no_region_is_shown_the_form(text):
    with pytest.raises(UserError, match="must look like"):
        parse_region(text)


@pytest.mark.parametrize("text", ["3:3,:,:", ":,5:2,:", ":,:,:0"])
def test_empty_regions_are_refused(text):
    with pytest.raises(UserError, match="is empty"):
        parse_region(text)


def test_both_scripts_use_it():
    assert evaluate.parse_region is parse_region and infer.parse_region is parse_region
