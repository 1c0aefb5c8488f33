"""infer.py as its tests call it."""

import os

import pytest
from infer_runs import ROOT

import infer
from utils.errors import UserError
from volumes.open import open_volume

VOXEL = (0.8, 0.1, 0.1)


def command(*arguments):
    infer.main([str(a) for a in arguments])


def read(path):
    found = open_volume(path)
    return found[:]


def quiet():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def refused(match, *words):
    with pytest.raises(UserError, match=match):
        command(*words)
