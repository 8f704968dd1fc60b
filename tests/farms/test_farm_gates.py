"""Workers that are killed, stopped and poisoned: gate 8 of tests/faults in a reduced form."""

import functools
import sys
from pathlib import Path

import pytest

from jaxnas import farms


@pytest.fixture
def gate(monkeypatch):
    """The module, importable by workers too, who have this process's path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delitem(sys.modules, "farm_gate", raising=False)
    import farm_gate
    return farm_gate


def test_local_workers_under_fire(gate, tmp_path):
    figures = gate.run(
        functools.partial(farms.local_farm, workers=2, lease_seconds=3.0), tmp_path,
        count=20, kills=3)
    assert (figures.done, figures.failed) == (21, 1)  # the stopped one too; the poison
    assert figures.most_retries <= farms.MAX_RETRIES
    assert figures.kills >= 1  # some may have ended just before
    assert figures.poison.startswith("4 workers died of it")
