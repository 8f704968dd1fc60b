"""Bayesian optimisation on a table (Snoek et al., 2012, https://arxiv.org/abs/1206.2944).

  python -m experiments.bayesian_optimization --num-seeds 100
  python -m experiments.bayesian_optimization --table my.npz --metric accuracy --acquisition ucb
  python -m experiments.bayesian_optimization --preset bananas --num-seeds 10   # an ensemble's

The surrogate is a Gaussian process over architectures, or an ensemble of networks as in BANANAS
(https://arxiv.org/abs/1910.11858) on the decisions (its path encoding is left out). The
NAS-Bench-201 paper has BOHB in its place: CIFAR-10, 12,000 s of simulated time, 93.61 +- 0.52 %
(from memory).
"""

import dataclasses
from typing import Annotated

import tyro

from experiments import common, table_search
from experiments.strategies import BayesianOptimization, RandomSearch, with_room
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Bayesian optimisation on a table, random search beside it."""

    num_seeds: int = 100
    strategy: Annotated[BayesianOptimization, tyro.conf.arg(name="")] = BayesianOptimization()


PRESETS = {
    "nasbench201": Config(),
    "macro": Config(table="nasbench_macro"),
    "bananas": Config(strategy=BayesianOptimization(
        surrogate="mlp", acquisition="ts", initial=20, batch_size=10)),
}
SMOKE = Config(evaluations=20, num_seeds=3, strategy=BayesianOptimization(initial=10))


def run(config: Config) -> None:
    """Search and report."""
    with common.validation():
        strategy = with_room(config.strategy, config.evaluations)
    table_search.run(config, "bayesian_optimization", "Bayesian optimisation",
                     {"random": RandomSearch(), "bayesian": strategy})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
