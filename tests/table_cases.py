"""What the tests of the experiments on tables share: how they are run, and a small own table."""

import numpy as np

from experiments import common, compare, evolution, local_search, ppo, random_search, reinforce

STRATEGIES = {random_search: (), evolution: ("evolution",), local_search: ("local",),
              reinforce: ("reinforce",), ppo: ("ppo",),
              compare: ("evolution", "reinforce", "ppo", "local", "bayesian", "pnas")}
VALID, TEST = "cifar10_valid_accuracy_e12", "cifar10_test_accuracy_e200"
CHOICES = (3, 4, 2)


def name_of(module):
    return module.__name__.rpartition(".")[2]


def call(module, *arguments):
    arguments = ["--quiet", *map(str, arguments)]
    return common.main(module.Config, module.PRESETS, module.SMOKE, module.run, arguments)


def save_table(path):
    """Write a product of 3 x 4 x 2 with 20 of 24 rows: path, archs [20, 3], metrics by name."""
    generator = np.random.default_rng(1)
    archs = np.stack(np.unravel_index(generator.permutation(24)[:20], CHOICES), -1)
    metrics = {"accuracy": generator.permutation(20) + 70.0,
               "latency_ms": generator.permutation(20) + 5.0,
               "hours": generator.integers(1, 9, 20).astype(np.float64)}
    metrics["accuracy"][3] = np.nan  # a failure that is in the table
    np.savez(path, archs=archs.astype(np.int16), num_choices=CHOICES, **metrics)
    return path, archs, metrics


def spread(table_file, name):
    """A metric of such a table as an array [3, 4, 2], NaN where there is no row."""
    _, archs, metrics = table_file
    values = np.full(CHOICES, np.nan)
    values[tuple(archs.T)] = metrics[name]
    return values


def lookup(values, archs):
    return values[tuple(np.moveaxis(archs.astype(int), -1, 0))]
