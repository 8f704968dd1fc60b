"""Ray Tune searches a table: our space as its `param_space`, any of its searchers and schedulers.

  python -m experiments.tune_table                             # NAS-Bench-201, Tune's random search
  python -m experiments.tune_table --num-samples 200 --table nasbench_macro

It shows how to use `jaxnas.integrations.tune_space`; a trial is one look-up. That Tune costs
milliseconds to seconds a trial does not matter where a trial trains a network.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from typing import Any

from experiments import common, tables
from jaxnas import integrations


@dataclasses.dataclass(frozen=True)
class Config:
    """Search a table with Ray Tune."""

    table: str = "nasbench201"
    """As of the other searches on tables."""
    num_samples: int = 20
    """Trials."""
    concurrent: int = 2
    """Trials at once."""
    seed: int = 0
    """Of Tune's random search."""

    def __post_init__(self) -> None:
        for name, low in (("num_samples", 1), ("concurrent", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise common.InputError(f"{name} must be >= {low}, got {getattr(self, name)}.")


def run(config: Config) -> None:
    """Search, and print the best architecture beside the table's optimum.

    Raises:
      InputError: Ray Tune or the table is missing.
    """
    with common.validation():
        integrations.require_tune()
        task = tables.load_task(tables.TableConfig(table=config.table))
    results = search(task, config)
    best = results.get_best_result()
    arch = integrations.read_choices(task.space, best.config)
    values = task.table.metric(task.metric)
    print(f"{len(results)} trials, {results.num_errors} failed")
    print(f"{task.metric}: {best.metrics[task.metric]:.2f}, optimum {values.max():.2f}")
    print(task.space.decode(arch))


def search(task: tables.Task, config: Config) -> Any:
    """Return Tune's `ResultGrid` of look-ups in a table."""
    import ray
    from ray import tune
    from ray.tune.search import BasicVariantGenerator
    space, metric = task.space, task.metric
    known = dict(zip(map(tuple, task.table.archs.tolist()), task.table.metric(metric).tolist()))

    def look_up(given: dict[str, Any]) -> dict[str, float]:
        arch = integrations.read_choices(space, given)
        return {metric: known[tuple(arch.tolist())]}

    own = not ray.is_initialized()
    if own:
        ray.init("local", include_dashboard=False, num_cpus=config.concurrent,
                 log_to_driver=False, configure_logging=False)
    try:
        # The results are in memory; what Tune writes besides, nobody would look at.
        with tempfile.TemporaryDirectory() as folder:
            return tune.Tuner(
                look_up, param_space=integrations.tune_space(space),
                tune_config=tune.TuneConfig(
                    metric=metric, mode="max", num_samples=config.num_samples,
                    search_alg=BasicVariantGenerator(
                        max_concurrent=config.concurrent, random_state=config.seed)),
                run_config=tune.RunConfig(verbose=0, storage_path=folder)).fit()
    finally:
        if own:
            ray.shutdown()


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code: 0, 2 for bad input."""
    return common.main_plain(Config, run, "tune_table", argv)


if __name__ == "__main__":
    sys.exit(main())
