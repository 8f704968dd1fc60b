"""From the slots of a `TracedNetwork` to the variables of the `Network` of one genotype."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnas.genotypes import Genotype
from jaxnas.networks.mixed import CONVOLUTIONS, POOLS

Arrays = dict[str, Any]  # a tree of arrays with string keys


def has_norm(name: str, pool_norm: str | None, large: bool) -> bool:
    """Return whether an operation ends in BN; `large`: it halves the image."""
    if name in POOLS:
        return pool_norm is not None
    return name in CONVOLUTIONS or large


def extract_collection(
    tree: Arrays, genotype: Genotype, groups: list, kind: str, pool_norm: str | None
) -> Arrays:
    """Rename and cut one collection, "params" or "batch_stats"; see `TracedNetwork.extract`."""
    result: Arrays = {name: tree[name] for name in ("stem", "head") if name in tree}
    names = ("scale", "bias") if kind == "params" else ("mean", "var")

    def entry(weights: Arrays, norm: Arrays, suffix: str = "") -> Arrays:
        """Return one operation's dictionary: weights (parameters only) and its BN."""
        return (weights if kind == "params" else {}) | {f"norm{suffix}": norm}

    for first, count, shape in groups:
        for number in range(count):
            cell = jax.tree.map(lambda a, number=number: a[number], tree[f"cells_{first}"])
            found: Arrays = {}
            for which in ("preprocess_0", "preprocess_1"):
                norm = {name: cell[which][name] for name in names}
                found[which] = entry({"kernel": cell[which].get("kernel")}, norm)
            edges = (genotype.reduction if shape.reduction else genotype.normal).edges
            for position, (name, source) in enumerate(edges):
                large = shape.reduction and source < 2
                if not has_norm(name, pool_norm, large):
                    continue
                slot = jax.tree.map(lambda a, position=position: a[position], cell["edges"])
                label = f"edge_{position}"
                norms = [{n: slot[n][half] for n in names} for half in (0, 1)]
                if name in POOLS:
                    found[label] = entry({}, norms[0])
                elif name == "skip_connect":
                    weights = {}
                    if kind == "params":
                        halves = jnp.split(slot["pointwise"][0], 2, -1)
                        weights = {"kernel": jnp.stack(halves)}
                    found[label] = entry(weights, norms[0])
                else:
                    size, _, blocks = CONVOLUTIONS[name]
                    found[label] = {}
                    for half in range(blocks):
                        weights = {}
                        if kind == "params":
                            weights[f"depthwise_{half}"] = slot[f"depthwise_{size}"][half]
                            weights[f"pointwise_{half}"] = slot["pointwise"][half]
                        found[label] |= entry(weights, norms[half], f"_{half}")
            result[f"cell_{first + number}"] = found
    return result
