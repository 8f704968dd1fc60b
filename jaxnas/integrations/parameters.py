"""The decisions of a search space by name, with a word for every choice.

An `arch` [L] int32 is what our searchers speak; dashboards and tuners speak of categorical
parameters with names. A space that is not known here, such as `Product`, has the names
"decision_0", "decision_1", ... and the choices "0", "1", ...
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxnas.base import SearchSpace
from jaxnas.conv_chains import KINDS
from jaxnas.networks import mobile_grid, nasbench201
from jaxnas.networks.recurrent_tree import ACTIVATIONS, COMBINERS
from jaxnas.search_spaces import (DARTS, DARTSRNN, ENASRNN, NASRL, NASRLRNN, ENASMacro, GrowingPNAS,
                                  MnasNet, MorphableCNN, NASBench101, NASBench201, NASBenchMacro,
                                  NATSSize, PairCellSpace, mnasnet, nasbench101, nasbench_macro,
                                  nats_size, pair_cells, pnas_growing)


class Decision(NamedTuple):
    """One decision."""

    name: str                 # unique in its space
    choices: tuple[str, ...]  # distinct; choice i is the integer i of an arch


def decisions(space: SearchSpace) -> tuple[Decision, ...]:
    """Return the L decisions of a space, in the order of an arch."""
    return _listed(cast(Any, space))


def choices(space: SearchSpace, arch: jax.Array | np.ndarray | Sequence[int]) -> dict[str, str]:
    """Return name -> word of an arch [L].

    Raises:
      ValueError: a wrong length, or a decision out of range.
    """
    names = decisions(space)
    values = np.asarray(arch)
    if values.shape != (len(names),) or values.dtype.kind not in "iu":
        raise ValueError(f"arch must be {len(names)} integers, got {values.dtype} {values.shape}.")
    for decision, value in zip(names, values.tolist()):
        if not 0 <= value < len(decision.choices):
            raise ValueError(f"{decision.name} must be in [0, {len(decision.choices) - 1}], got "
                             f"{value}.")
    return {decision.name: decision.choices[value]
            for decision, value in zip(names, values.tolist())}


def read_choices(space: SearchSpace, chosen: Mapping[str, object]) -> np.ndarray:
    """Return the arch [L] int32 of name -> word; other names are left out of account.

    Raises:
      ValueError: a decision is missing, or its word is none of its choices.
    """
    arch = []
    for decision in decisions(space):
        word = chosen.get(decision.name)
        if word not in decision.choices:
            raise ValueError(f"{decision.name} must be one of {', '.join(decision.choices)}, got "
                             f"{word!r:.40}.")
        arch.append(decision.choices.index(str(word)))
    return np.array(arch, np.int32)


@functools.cache
def _listed(space: Any) -> tuple[Decision, ...]:  # spaces can be hashed, their protocol is silent
    return tuple(_decisions(space))


def _decisions(space: SearchSpace) -> Iterator[Decision]:
    if isinstance(space, (PairCellSpace, GrowingPNAS)):
        yield from _pair_cells(space)
    elif isinstance(space, DARTS):
        for cell in ("normal", "reduction"):
            for node in range(space.num_nodes):
                for edge in ("a", "b"):
                    yield Decision(f"{cell}_node{node}_operation_{edge}", space.choices)
                    yield Decision(f"{cell}_node{node}_source_{edge}", _states(node, "node"))
    elif isinstance(space, NASBench201):
        for i, j in nasbench201.EDGES:
            yield Decision(f"edge_{i}_to_{j}", nasbench201.OPERATIONS)
    elif isinstance(space, NASBench101):
        for i, j in nasbench101.EDGES:
            yield Decision(f"edge_{i}_to_{j}", ("absent", "present"))
        for vertex in range(1, nasbench101.NUM_VERTICES - 1):
            yield Decision(f"vertex_{vertex}", nasbench101.OPERATIONS)
    elif isinstance(space, NATSSize):
        for layer in range(len(space.num_choices)):
            yield Decision(f"channels_{layer}", tuple(map(str, nats_size.CHANNELS)))
    elif isinstance(space, NASBenchMacro):
        for layer in range(len(space.num_choices)):
            yield Decision(f"layer_{layer}", nasbench_macro.OPERATIONS)
    elif isinstance(space, MnasNet):
        for stage in range(space.grid.num_stages):
            for name, words in zip(mobile_grid.DECISIONS, mnasnet.WORDS, strict=True):
                yield Decision(f"stage{stage}_{name}", tuple(words))
    elif isinstance(space, (ENASMacro, NASRL)):
        yield from _chain(space)
    elif isinstance(space, (DARTSRNN, ENASRNN)):
        for node in range(1, space.num_nodes + 1):
            row = (Decision(f"node{node}_activation", space.choices),
                   Decision(f"node{node}_source", tuple(map(str, range(node)))))
            yield from reversed(row) if space.source_first else row
    elif isinstance(space, NASRLRNN):
        places = tuple(map(str, range(space.num_nodes)))
        for place in (*places, "injection"):
            yield Decision(f"node{place}_combiner", COMBINERS)
            yield Decision(f"node{place}_activation", ACTIVATIONS)
        yield Decision("second_state_read_by", places)
        yield Decision("second_state_from", places)
    elif isinstance(space, MorphableCNN):
        yield from _morphable(space)
    else:
        for number, count in enumerate(space.num_choices):
            yield Decision(f"decision_{number}", tuple(map(str, range(count))))


def _states(count: int, kind: str) -> tuple[str, ...]:
    """Name the states that node or block `count` may read: the two inputs, and those before."""
    return ("cell_k-2", "cell_k-1", *(f"{kind}_{number}" for number in range(count)))


def _pair_cells(space: PairCellSpace | GrowingPNAS) -> Iterator[Decision]:
    growing = isinstance(space, GrowingPNAS)
    whole = space.largest if isinstance(space, GrowingPNAS) else space
    operations = (*whole.operations, *([pnas_growing.ABSENT] if growing else []))
    for cell in ("normal", "reduction") if whole.num_cells == 2 else ("cell",):
        for block in range(whole.num_blocks):
            halves = {pair_cells.SOURCE: iter("ab"), pair_cells.OPERATION: iter("ab")}
            for column in whole.columns:
                if column == pair_cells.CONSTANT:
                    yield Decision(f"{cell}_block{block}_combination", ("add",))
                else:
                    words = (operations if column == pair_cells.OPERATION
                             else _states(block, "block"))
                    yield Decision(f"{cell}_block{block}_{column}_{next(halves[column])}", words)


def _chain(space: ENASMacro | NASRL) -> Iterator[Decision]:
    """Name the own decisions of a layer, and then which earlier ones it reads besides."""
    macro = isinstance(space, ENASMacro)
    names: Sequence[str] = ("operation",)
    if not macro:
        names = ("height", "width", "filters")
        if len(space.words) == 5:
            names = ("height", "width", "stride_height", "stride_width", "filters")
    sources = [f"layer{number}" for number in range(space.num_layers)]
    if macro:  # its first bit is the stem's, and the layer just before has none
        sources.insert(0, "stem")
    for layer in range(space.num_layers):
        for name, words in zip(names, space.words, strict=True):
            yield Decision(f"layer{layer}_{name}", tuple(word.lstrip("xs") if not macro else word
                                                         for word in words))
        for source in sources[:layer]:
            yield Decision(f"layer{layer}_reads_{source}", ("no", "yes"))


def _morphable(space: MorphableCNN) -> Iterator[Decision]:
    slots = space.slots
    kernels = tuple(map(str, slots.kernels))
    for slot in range(slots.num_slots):
        absent = ("absent",) if slot % slots.max_layers else ()
        yield Decision(f"slot{slot}_kernel", (*kernels, *absent))
        yield Decision(f"slot{slot}_width", tuple(map(str, slots.widths)))
    for target in range(slots.num_slots):
        for source in range(target):
            yield Decision(f"skip_{source}_to_{target}", ("none", *KINDS))
