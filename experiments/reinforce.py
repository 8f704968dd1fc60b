"""REINFORCE on a table (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578).

  python -m experiments.reinforce --num-seeds 500
  python -m experiments.reinforce --preset nasrl --evaluations 1000 --num-seeds 20

NAS-Bench-201, CIFAR-10, 12,000 s of simulated time: 93.85 +- 0.37 % (plain logits).
"""

import dataclasses
from typing import Annotated

import tyro

from experiments import common, table_search
from experiments.strategies import RandomSearch, Reinforce
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """REINFORCE on a table, random search beside it."""

    strategy: Annotated[Reinforce, tyro.conf.arg(name="")] = Reinforce()


PRESETS = {
    "nasbench201": Config(),
    "macro": Config(table="nasbench_macro"),
    "nasrl": Config(  # rate and batch of the CNN search; it had 12,800 evaluations
        evaluations=1600, num_seeds=20,
        strategy=Reinforce(policy="lstm", learning_rate=6e-4, batch_size=8)),
}
SMOKE = Config(evaluations=20, num_seeds=3)


def run(config: Config) -> None:
    """Search and report."""
    table_search.run(
        config, "reinforce", "REINFORCE",
        {"random": RandomSearch(), "reinforce": config.strategy})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
