"""Proximal policy optimisation on a table, as NASNet and MnasNet search.

  python -m experiments.ppo --num-seeds 500
  python -m experiments.ppo --preset nasnet --evaluations 2000 --num-seeds 20

There is no published figure on NAS-Bench-201.
"""

import dataclasses
from typing import Annotated

import tyro

from experiments import common, table_search
from experiments.strategies import PPO, RandomSearch
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """PPO on a table, random search beside it."""

    strategy: Annotated[PPO, tyro.conf.arg(name="")] = PPO()


PRESETS = {
    "nasbench201": Config(),
    "macro": Config(table="nasbench_macro"),
    "nasnet": Config(  # its search had 20,000 evaluations
        evaluations=2000, num_seeds=20,
        strategy=PPO(policy="lstm", learning_rate=3.5e-4, batch_size=20)),
}
SMOKE = Config(evaluations=20, num_seeds=3)


def run(config: Config) -> None:
    """Search and report."""
    table_search.run(config, "ppo", "PPO", {"random": RandomSearch(), "ppo": config.strategy})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
