"""Weights of trained children: between a traced network's slots, morphisms, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.run import write_npz
from jaxnas import morphisms, training
from jaxnas.conv_chains import ConvChain
from jaxnas.morphisms import Morphable
from jaxnas.networks import TracedMorphableNetwork
from jaxnas.training import TrainState


def extract(network: TracedMorphableNetwork, state: TrainState, chain: ConvChain) -> Morphable:
    """Return what a morphism transforms, on the host."""
    state = jax.device_get(state)
    arch = network.slots.arch(chain)
    variables = network.extract(
        {"params": state.params, "batch_stats": state.batch_stats}, arch)
    kept = tuple(network.extract({"params": tree}, arch)["params"]
                 for tree in morphisms.moments(state.optimizer_state, state.params))
    return Morphable(chain, variables["params"], variables["batch_stats"], kept)


def insert(network: TracedMorphableNetwork, child: Morphable,
           optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state from which a child's training starts.

    Schedules start anew, moments go on.
    """
    variables = network.insert(
        {"params": child.params, "batch_stats": child.batch_stats}, child.chain)
    params = variables["params"]
    trees = [network.insert({"params": tree}, child.chain)["params"]
             for tree in child.optimizer_state]
    fresh = training.zeros(jax.eval_shape(optimizer.init, params))
    return TrainState(params, variables["batch_stats"],
                      morphisms.replace_moments(fresh, params, trees), jnp.int32(0))


def save(path: Path, child: Morphable) -> None:
    """Write a child's weights; readers see the whole file or none."""
    trees = {"params": child.params, "batch_stats": child.batch_stats}
    trees |= {f"moment{number}": tree for number, tree in enumerate(child.optimizer_state)}
    path.parent.mkdir(exist_ok=True)
    write_npz(path, {jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf)
                     for place, leaf in jax.tree_util.tree_leaves_with_path(trees)})


def load(path: Path, chain: ConvChain) -> Morphable:
    """Read what `save` wrote of a chain."""
    trees: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            kind, *parts = name.split("/")
            tree = trees.setdefault(kind, {})
            for part in parts[:-1]:
                tree = tree.setdefault(part, {})
            tree[parts[-1]] = file[name]
    kept = tuple(trees[f"moment{number}"] for number in range(len(trees) - 2))
    return Morphable(chain, trees["params"], trees["batch_stats"], kept)
