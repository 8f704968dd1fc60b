"""Gate 8: a farm of workers that are killed, stopped and poisoned; the fire is tests/farms'."""

import functools
import sys
from pathlib import Path

import pytest

from jaxnas import farms

pytestmark = [pytest.mark.gate(8), pytest.mark.slow]  # the reduced form is tests/farms'


def test_a_farm_under_fire(monkeypatch, tmp_path, gate):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "farms"))
    monkeypatch.delitem(sys.modules, "farm_gate", raising=False)
    import farm_gate

    figures = farm_gate.run(functools.partial(farms.local_farm, workers=4, lease_seconds=2.5),
                            tmp_path, count=200, kills=20)
    assert (figures.done, figures.failed) == (201, 1)  # the stopped worker's trial; the poison
    assert figures.most_retries <= farms.MAX_RETRIES and figures.kills >= 18
    assert figures.poison.startswith("4 workers died of it")
    gate(f"{figures.kills} kills, 1 stopped: {figures.done} done, 0 lost, 0 twice, "
         f"{figures.repeated} begun again, at most {figures.most_retries} retries, poison failed")
