"""What the environment of this machine says of runs and data does not count in tests."""

import pytest


@pytest.fixture(autouse=True)
def no_machine(monkeypatch):
    monkeypatch.delenv("LOGS", raising=False)
    monkeypatch.delenv("DATASET", raising=False)
