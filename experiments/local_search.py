"""Local search on a table (White et al., 2021, https://arxiv.org/abs/2005.02960).

  python -m experiments.local_search --num-seeds 500
  python -m experiments.local_search --table my.npz --metric accuracy --move first

There is no figure for it in the NAS-Bench-201 paper.
"""

import dataclasses
from typing import Annotated

import tyro

from experiments import common, table_search
from experiments.strategies import LocalSearch, RandomSearch
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Local search on a table, random search beside it."""

    strategy: Annotated[LocalSearch, tyro.conf.arg(name="")] = LocalSearch()


PRESETS = {"nasbench201": Config(), "macro": Config(table="nasbench_macro")}
SMOKE = Config(evaluations=20, num_seeds=3)


def run(config: Config) -> None:
    """Search and report."""
    table_search.run(
        config, "local_search", "Local search",
        {"random": RandomSearch(), "local": config.strategy})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
