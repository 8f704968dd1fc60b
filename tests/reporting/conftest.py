"""A run directory for the tests of report and checklist, as a fixture."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxnas import genotypes, reporting

CONFIG = {"experiment": "darts", "config": {"epochs": 2, "inner": {"rate": 0.025}}, "seed": 7,
          "device": {"platform": "cpu", "kind": "Xeon", "count": 1},
          "versions": {"python": "3.11", "jax": "0.5", "jaxlib": "0.5", "flax": "0.10",
                       "optax": "0.2", "jaxnas": "0.1"},
          "dataset": {"name": "digits", "sha256": "ab" * 32, "splits": {"train": 900}}}


def _make(directory: Path, system: str = "DARTS", found: tuple[float, ...] = (94.0, 94.2, 94.4),
          random: tuple[float, ...] | None = (92.0, 92.5, 93.0), complete: bool = True,
          metric: str = "test_accuracy", **more: object) -> reporting.Result:
    """Write config, metrics, genotype, one drawing and the result; return the result."""
    genotype = genotypes.PUBLISHED["DARTS_V2"]
    (directory / "checkpoints").mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "genotype.json").write_text(genotypes.to_json(genotype))
    with reporting.MetricsWriter(directory / "metrics.jsonl") as writer:
        for i in range(3):
            writer.write("epoch", epoch=i, loss=1.0 / (i + 1))
            writer.write("evaluation", arch=[i], fitness=float("nan") if i == 1 else 90.0 + i,
                         failed=i == 1)
    reporting.plot_groups({"found": found}, directory / "groups", "value")
    result = reporting.Result(
        complete=complete, experiment="darts", system=system,
        architecture=reporting.Architecture("darts", genotypes.to_json_dict(genotype), (1, 2)),
        metrics={metric: reporting.Metric(
            reporting.summarize(found), None if random is None else reporting.summarize(random),
            optimum=95.0, published=reporting.Published(97.24, 0.09, "1806.09055, table 1"))},
        evaluations=reporting.Evaluations(3, 3, 1), compilations=2,
        seconds=reporting.Seconds(1.0, 2.0, 3.0, 6.5),
        step_seconds=reporting.StepSeconds(0.01, 0.009, 0.02), seed=7,
        device=reporting.Device("cpu", "Xeon", 1), **more)
    reporting.write_result(directory, result)
    return result


@pytest.fixture
def make_run() -> Callable[..., reporting.Result]:
    """Return `make_run(directory, **changes)`, which fills a run directory."""
    return _make
