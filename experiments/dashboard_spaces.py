"""Which search space the evaluations of a recorded run are of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (amoebanet, autokeras, autokeras_search, bayesian_optimization, common,
                         compare, darts, darts_rnn, enas, enas_rnn, enas_search, evolution,
                         local_search, mnasnet, nasnet, nasrl, nasrl_rnn, pareto, pnas, pnas_table,
                         ppo, random_search, reinforce, tables)
from experiments.settings import from_json, read_config
from jaxnas import data
from jaxnas.base import SearchSpace
from jaxnas.search_spaces import DARTS, DARTSRNN, ENASRNN, NASRLRNN


class Spaces(NamedTuple):
    """The spaces of a run."""

    stages: Mapping[str, SearchSpace]  # name -> space, of a search in stages
    last: SearchSpace                  # of what is retrained, and of a search without stages

    def of(self, stage: str) -> SearchSpace:
        """Return the space of a stage; "" is the last."""
        return self.stages.get(stage, self.last)


# experiment -> its configuration, and what makes the spaces of one
Known = tuple[Any, Callable[[Any], Spaces]]


def _children(make_system: Callable[[Any, Any], Any]) -> Callable[[Any], Spaces]:
    def spaces(config: Any) -> Spaces:
        # A dry run: nothing is measured or compiled.
        system = make_system(dataclasses.replace(config, dry_run=True),
                             data.load(config.dataset, data_dir=config.data_dir))
        stages = {stage.name: stage.space for stage in system.stages}
        return Spaces(stages, system.stages[-1].space)

    return spaces


def _one(make_space: Callable[[Any], SearchSpace]) -> Callable[[Any], Spaces]:
    return lambda config: Spaces({}, make_space(config))


_table = _one(lambda config: tables.load_task(config).space)
EXPERIMENTS: dict[str, Known] = {
    **{name: (module.Config, _table) for name, module in {
        "bayesian_optimization": bayesian_optimization, "compare": compare, "evolution": evolution,
        "local_search": local_search, "pareto": pareto, "pnas_table": pnas_table, "ppo": ppo,
        "random_search": random_search, "reinforce": reinforce}.items()},
    "amoebanet": (amoebanet.Config, _children(amoebanet.make_system)),
    "autokeras": (autokeras.Config, _one(autokeras_search.make_space)),
    "darts": (darts.Config, _one(lambda config: DARTS())),
    "darts_rnn": (darts_rnn.Config, _one(lambda config: DARTSRNN(config.num_nodes))),
    "enas": (enas.Config, _one(enas_search.make_space)),
    "enas_rnn": (enas_rnn.Config, _one(lambda config: ENASRNN(config.num_nodes))),
    "mnasnet": (mnasnet.Config, _children(mnasnet.make_system)),
    "nasnet": (nasnet.Config, _children(nasnet.make_system)),
    "nasrl": (nasrl.Config, _children(nasrl.make_system)),
    "nasrl_rnn": (nasrl_rnn.Config, _one(lambda config: NASRLRNN(config.num_leaves))),
    "pnas": (pnas.Config, _children(pnas.make_system)),
}


def find(run_directory: Path) -> tuple[str, Spaces]:
    """Return the experiment of a run directory and the spaces of its evaluations.

    Raises:
      InputError: it is no run directory, its configuration is of another version, or its
        experiment evaluates no architectures.
      ValueError: the configuration cannot be used here: its data are missing, for instance.
    """
    recorded = read_config(run_directory)
    experiment = str(recorded.get("experiment"))
    if experiment not in EXPERIMENTS:
        raise common.InputError(f"{run_directory} is a run of {experiment}, whose architectures "
                                f"are not known here; known are {', '.join(sorted(EXPERIMENTS))}.")
    config_class, spaces = EXPERIMENTS[experiment]
    names = {field.name for field in dataclasses.fields(config_class)}
    given = dict(recorded["config"])
    defaults = common.to_json(config_class())
    # A run of an earlier version may lack flags that change no space.
    config = from_json(config_class, {name: given.get(name, defaults[name]) for name in names},
                       f"{run_directory}/config.json: config")
    return experiment, spaces(config)
