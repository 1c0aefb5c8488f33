"""setuptools, but for ``pip install .`` without ``-e``: the checkout is the program, and a copy in site-packages would not work.

A wheel would hold neither ldm/*.yaml nor env/ nor the scripts, and packages called ``utils`` and ``models`` at its top.
"""

from setuptools.build_meta import *  # noqa: F403 (the hooks of PEP 517 and 660 that stay as they are)

REMEDY = "IsoScopeXX is used from its checkout: ./run.sh there, or pip install --editable '.[test]' --constraint constraints.txt"


def build_wheel(*_: object, **__: object) -> str:
    """Refuses, before anything is installed."""
    raise SystemExit(REMEDY)
