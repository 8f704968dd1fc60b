"""Regularised evolution on a table (Real et al., 2019, https://arxiv.org/abs/1802.01548).

  python -m experiments.evolution --num-seeds 500
  python -m experiments.evolution --table my.npz --metric accuracy --population-size 50

NAS-Bench-201, CIFAR-10, 12,000 s of simulated time: 93.92 +- 0.30 % (from memory).
"""

import dataclasses
from typing import Annotated

import tyro

from experiments import common, table_search
from experiments.strategies import Evolution, RandomSearch
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Regularised evolution on a table, random search beside it."""

    strategy: Annotated[Evolution, tyro.conf.arg(name="")] = Evolution()


PRESETS = {
    "nasbench201": Config(),
    "macro": Config(table="nasbench_macro"),
    "amoebanet": Config(
        evaluations=1000, strategy=Evolution(population_size=100, tournament_size=25)),
}
SMOKE = Config(evaluations=20, num_seeds=3)


def run(config: Config) -> None:
    """Search and report."""
    table_search.run(
        config, "evolution", "Regularised evolution",
        {"random": RandomSearch(), "evolution": config.strategy})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
