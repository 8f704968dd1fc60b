"""The toy of tests/test_child_search.py for workers, who import what they run by name."""

import os

from tests.test_child_search import Config, formula, make_system  # noqa: F401


def make_train(stage, config, dataset, examples):
    """Give metrics by formula, and say who did."""
    def train(archs):
        return [formula(arch) | {"worker": float(os.getpid())} for arch in archs]
    return train
