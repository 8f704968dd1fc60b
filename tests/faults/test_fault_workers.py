"""Gate 8: a farm of workers that are killed, stopped and poisoned; the fire is tests/farms'."""

import functools
import sys
from pathlib import Path

import pytest

from jaxnas import farms

pytestmark = [pytest.mark.gate(8), pytest.mark.slow]  # the reduced form is tests/farms'
FARMS = {  # and seconds that a trial waits: Ray takes longer to begin another worker
    "local": (functools.partial(farms.local_farm, workers=4, lease_seconds=2.5), {}),
    "ray": (functools.partial(farms.ray_farm, workers=4, lease_seconds=10.0, num_cpus=0.25),
            {"pause": 0.1}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of Ray, about GPUs that are not there
@pytest.mark.parametrize("kind", ["local", pytest.param(
    "ray", marks=pytest.mark.skipif(not farms.has_ray(), reason="no Ray"))])
def test_a_farm_under_fire(kind, monkeypatch, tmp_path, gate):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "farms"))
    monkeypatch.delitem(sys.modules, "farm_gate", raising=False)
    import farm_gate

    make, options = FARMS[kind]
    figures = farm_gate.run(make, tmp_path, count=200, kills=20, **options)
    assert (figures.done, figures.failed) == (201, 1)  # the stopped worker's trial; the poison
    assert figures.most_retries <= farms.MAX_RETRIES and figures.kills >= 18
    assert figures.poison.startswith("4 workers died of it")
    gate(f"{kind}: {figures.kills} kills, 1 stopped: {figures.done} done, 0 lost, 0 twice, "
         f"{figures.repeated} begun again, at most {figures.most_retries} retries, poison failed")
