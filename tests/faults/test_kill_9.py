"""Gate 1: runs of every family of searchers, killed at random moments, end as if they were not."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxnas import checkpoints, reporting

pytestmark = pytest.mark.gate(1)
TABLES = ("--evaluations", 60, "--block", 3)
FAMILIES = {  # experiment, flags on top of --smoke
    "small evolution": ("evolution", ("--evaluations", 30, "--block", 3)),
    "random search": ("random_search", ("--evaluations", 100, "--block", 3)),
    "evolution": ("evolution", TABLES), "local search": ("local_search", TABLES),
    "REINFORCE": ("reinforce", TABLES), "PPO": ("ppo", TABLES),
    "Bayesian optimisation": ("bayesian_optimization", ("--evaluations", 40, "--block", 2)),
    "PNAS": ("pnas_table", ("--evaluations", 40, "--block", 2)),
    "NSGA-II and islands": ("pareto", ("--block", 10)),
    "DARTS": ("darts", ("--epochs", 4, "--checkpoint-steps", 1, "--num-seeds", 1,
                        "--retrain-epochs", 2)),
    "ENAS": ("enas", ("--epochs", 8, "--num-seeds", 1)),
    "children": ("nasrl", ("--evaluations", 8, "--num-seeds", 1, "--limit", 160)),
    "retraining": ("retrain", ("--retrain-epochs", 6)),
}


def steps_of(path: Path) -> int:
    return checkpoints.latest_step(path / "checkpoints") or 0


class Chain:
    """A run that is killed again and again; what was seen is counted."""

    def __init__(self, start, experiment, arguments, draw, pace):
        self.start, self.experiment, self.arguments = start, experiment, arguments
        self.draw, self.stride, self.gap, self.warm_up = draw, *pace
        self.kills = self.saving = self.repeated = 0

    def life(self, path: Path) -> bool:
        """Start or resume; kill at a random moment; return whether it ended before that."""
        before = steps_of(path)
        life = self.start(self.experiment, path, *self.arguments)
        wait = self.draw.randint(0, self.stride)  # completed checkpoints; then a moment more
        moment = self.draw.random() * (2 * self.gap if wait else self.warm_up)
        status = None
        while wait and steps_of(path) < before + wait and status is None:
            status = life.status(0.003)
        status = life.status(moment) if status is None else status
        if status is None:
            os.kill(life.pid, signal.SIGKILL)
            status = life.status(60.0)
        if status != -signal.SIGKILL:
            assert status == 0, life.log.read_text()[-3000:]
            return True
        self.kills += 1
        self.look(path, before)
        return False

    def look(self, path: Path, before: int) -> None:
        """Count what the dead one left."""
        if not (path / "checkpoints").exists():
            return
        names = [entry.name for entry in (path / "checkpoints").iterdir()]
        self.saving += any(name.startswith((".saving-", ".deleting-")) for name in names)
        last, offset = 0, 0
        if any(name.isdigit() for name in names):
            last, found = checkpoints.read_metadata(path / "checkpoints")
            offset = found["metrics_offset"]
        assert last >= before and last == steps_of(path)
        log = path / "metrics.jsonl"
        after = log.read_bytes()[offset:].split(b"\n")[:-1] if log.exists() else []
        for kind in (b'"kind": "step"', b'"kind": "epoch"'):
            self.repeated = max(self.repeated, sum(kind in line for line in after))


@pytest.mark.parametrize("family, kills", [
    ("small evolution", 2), *(
        pytest.param(family, 20, marks=pytest.mark.slow) for family in list(FAMILIES)[1:])])
def test_killed_runs_end_bit_equal(family, kills, nursery, whole_run, assert_equal_runs,
                                   tmp_path, gate):
    experiment, arguments = FAMILIES[family]
    whole = whole_run(experiment, *arguments)
    seconds = [row["seconds"] for row in reporting.read_metrics(whole / "metrics.jsonl")
               if row["kind"] in ("step", "epoch")]
    # checkpoints between two kills at most, seconds of one, seconds of a start at least
    pace = (max(2, 2 * steps_of(whole) // (kills + 1)), np.diff(seconds).mean(), 1 + seconds[0])
    chain = Chain(nursery, experiment, arguments, random.Random(kills), pace)
    number, path = 0, tmp_path / "run0"
    while chain.kills < kills:
        if chain.life(path):  # ended before it could be killed
            assert_equal_runs(path, whole)
            number += 1
            path = tmp_path / f"run{number}"
    nursery(experiment, path, *arguments).finish()
    assert_equal_runs(path, whole)
    assert chain.repeated <= 1
    gate(f"{family}: {chain.kills} kills ({chain.saving} while saving), 0 failed restarts, "
         f"{number + 1} runs bit-equal, {chain.repeated} interval repeated")
