"""Random search on a table: the baseline of every other experiment.

  python -m experiments.random_search --num-seeds 500
  python -m experiments.random_search --table my.npz --metric accuracy

NAS-Bench-201, CIFAR-10, 12,000 s of simulated time: 93.70 +- 0.36 % (from memory).
"""

import dataclasses

from experiments import common, table_search
from experiments.strategies import RandomSearch
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Random search on a table."""


PRESETS = {"nasbench201": Config(), "macro": Config(table="nasbench_macro")}
SMOKE = Config(evaluations=20, num_seeds=3)


def run(config: Config) -> None:
    """Search and report."""
    table_search.run(config, "random_search", "Random search", {"random": RandomSearch()})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
