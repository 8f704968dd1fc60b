"""Progressive search on a table (Liu et al., 2018, PNAS, https://arxiv.org/abs/1712.00559).

  python -m experiments.pnas_table --num-seeds 100
  python -m experiments.pnas_table --table my.npz --metric accuracy --beam-size 100

The size of an architecture is the number of its decisions that are not the first choice: on
NAS-Bench-201 the edges that are not "none", of which PNAS's search space has none. That is no
published setting, and the NAS-Bench-201 paper has no figure for PNAS. The default surrogate, a
Gaussian process, is deterministic: of a seed depends only the order of the architectures of size 1,
so that seeds differ little or not at all. Not so with `--surrogate mlp`, PNAS's ensemble. On
images, with PNAS's cells: `experiments.pnas`.
"""

import dataclasses
from typing import Annotated

import tyro

from experiments import common, table_search
from experiments.strategies import PNAS, RandomSearch, with_room
from experiments.tables import TableConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Progressive search on a table, random search beside it."""

    num_seeds: int = 100
    strategy: Annotated[PNAS, tyro.conf.arg(name="")] = PNAS()


PRESETS = {"nasbench201": Config(), "macro": Config(table="nasbench_macro")}
SMOKE = Config(evaluations=20, num_seeds=3, strategy=PNAS(level_size=3))


def run(config: Config) -> None:
    """Search and report."""
    with common.validation():
        strategy = with_room(config.strategy, config.evaluations)
    table_search.run(config, "pnas_table", "Progressive search",
                     {"random": RandomSearch(), "pnas": strategy})


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
