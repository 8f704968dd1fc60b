"""Gate: 200 trials, 4 workers, 20 of them killed; 200 done, none lost, none twice, 3 retries."""

import functools
import sys
from pathlib import Path

import pytest

from jaxnas import farms

needs_ray = pytest.mark.skipif(not farms.has_ray(), reason="no Ray")


@pytest.fixture
def gate(monkeypatch):
    """The module, importable by workers too, who have this process's path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delitem(sys.modules, "farm_gate", raising=False)
    import farm_gate
    return farm_gate


@pytest.mark.parametrize("count, kills, workers", [
    (20, 3, 2), pytest.param(200, 20, 4, marks=pytest.mark.slow)])
def test_local_workers_under_fire(gate, tmp_path, count, kills, workers, capsys):
    figures = gate.run(
        functools.partial(farms.local_farm, workers=workers, lease_seconds=3.0), tmp_path,
        count=count, kills=kills)
    check(figures, count, kills)
    with capsys.disabled():
        print(figures) if count == 200 else None


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of Ray, about GPUs that are not there
def test_ray_workers_under_fire(gate, tmp_path, capsys):
    figures = gate.run(
        functools.partial(farms.ray_farm, workers=4, lease_seconds=10.0, num_cpus=0.25), tmp_path,
        count=200, kills=20, pause=0.1)
    check(figures, 200, 20)
    with capsys.disabled():
        print(figures)


def check(figures, count, kills):
    assert (figures.done, figures.failed) == (count + 1, 1)  # the stopped one too; the poison
    assert figures.most_retries <= farms.MAX_RETRIES
    assert figures.kills >= kills - 2  # one may have ended just before
    assert figures.poison.startswith("4 workers died of it")
