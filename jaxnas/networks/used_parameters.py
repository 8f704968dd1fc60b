"""Which of the shared weights an architecture uses, as masks that may be traced.

A one-shot network holds weights for every choice; an architecture reaches some of them. The masks
here say which, from the architecture alone and by the tables that `extract` cuts by: an entry is
True exactly where `extract` would hand it to the fixed network of that architecture. (A gradient
that is not zero would be no test: ReLU and max pooling stop the gradient of weights in use.)

Leaves are bool and broadcast against the parameters: [6, 1, 1] for a bank [6, F, F] of which one
kernel is read.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import PyTree
from jaxnas.networks.chain_layout import MACRO_OPERATIONS, MACRO_SIZES, unpack
from jaxnas.networks.chain_traced import TracedMacroNetwork, _groups
from jaxnas.networks.extraction import Arrays
from jaxnas.networks.micro_shared import SharedMicroNetwork
from jaxnas.networks.pair_slots import INPUTS, SlotCell, Source
from jaxnas.networks.pair_traced import TracedPairNetwork, _runs


def used_parameters(
    network: TracedMacroNetwork | TracedPairNetwork | SharedMicroNetwork, params: PyTree,
    arch: jax.Array
) -> PyTree:
    """Return which parameters of a one-shot network an architecture uses.

    Args:
      network: `TracedMacroNetwork`, `TracedPairNetwork`, or `SharedMicroNetwork`, whose own `used`
        answers.
      params: its "params", arrays or shapes.
      arch: int32 as the network takes it; may be traced.

    Returns:
      The structure of `params`; leaves bool, of the same rank, each axis as long or 1.

    Raises:
      ValueError: another network.
    """
    if isinstance(network, TracedMacroNetwork):
        return _macro(network, params, arch)
    if isinstance(network, TracedPairNetwork):
        return _pair(network, params, arch)
    if isinstance(network, SharedMicroNetwork):
        return network.used(params, arch)
    raise ValueError("network must be a TracedMacroNetwork, TracedPairNetwork or "
                     f"SharedMicroNetwork, whose slots are known, got {type(network).__name__}.")


def _everywhere(tree: PyTree, needed: jax.Array | bool = True) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.full((1,) * leaf.ndim, needed), tree)


def _rows_of(tree: PyTree, chosen: jax.Array) -> PyTree:
    """Spread chosen [...] over leaves [..., more]."""
    return jax.tree.map(
        lambda leaf: chosen.reshape(*chosen.shape, *(1,) * (leaf.ndim - chosen.ndim)), tree)


def _macro(network: TracedMacroNetwork, params: Arrays, arch: jax.Array) -> Arrays:
    operations = unpack(arch, network.num_layers, 1)[0][:, 0]
    operations = jnp.clip(operations, 0, len(MACRO_OPERATIONS) - 1)
    chosen = jax.nn.one_hot(operations, len(MACRO_OPERATIONS), dtype=bool)  # [L, 6]
    masks = _everywhere(params)
    for first, count in _groups(network.num_layers):
        label, here = f"layers_{first}", chosen[first:first + count]
        layer = dict(masks[label])
        for name in ("kernel_0", "norm_0"):
            layer[name] = _rows_of(params[label][name], here)
        layer["norm_1"] = _rows_of(params[label]["norm_1"], here[:, :len(MACRO_SIZES)])
        for number, operation in enumerate(MACRO_OPERATIONS[:len(MACRO_SIZES)]):
            for kind in ("kernel", "depthwise", "pointwise"):
                name = f"{kind}_{operation}"
                if name in layer:
                    layer[name] = _rows_of(params[label][name], here[:, number])
        masks[label] = layer
    return masks


def _pair(network: TracedPairNetwork, params: Arrays, arch: jax.Array) -> Arrays:
    fixed = network.fixed(np.zeros((2, network.num_blocks, 4), np.int32))
    placements, cells = fixed.placements(), network._cells()
    masks: Arrays = _everywhere({name: params[name] for name in params
                                 if not name.startswith("cells_")})
    loose: list[jax.Array | None] = [None]  # of every output, which states it concatenates
    for first, count in _runs(cells):
        found = []
        for number in range(first, first + count):
            cell = cells[number]
            one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
                               params[f"cells_{first}"])
            sources = (loose[placements[number].previous or 0], loose[-1])
            mask, states = _cell(cell, one, sources, arch[int(cell.reduction)])
            found.append(mask)
            loose.append(states)
        masks[f"cells_{first}"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    if loose[-1] is not None:
        masks["head"] = masks["head"] | {"kernel": _state_rows(cells[-1].output, loose[-1])}
    return masks


def _cell(
    cell: SlotCell, params: Arrays, loose: tuple[jax.Array | None, jax.Array | None],
    rows: jax.Array
) -> tuple[Arrays, jax.Array]:
    """Return the masks of one cell, and which states it concatenates, [S]."""
    highest = np.arange(cell.num_blocks)[:, None] + INPUTS - 1
    reads = jnp.clip(rows[:, :2], 0, highest).reshape(-1)              # [2 B]
    chosen = jnp.clip(rows[:, 2:], 0, len(cell.operations) - 1).reshape(-1)
    free = ~(reads[:, None] == np.arange(cell.num_blocks + INPUTS)).any(0)
    masks: Arrays = {}
    for layers, states, source in zip(
            cell.input_layers, loose, (cell.previous or cell.current, cell.current)):
        for name, (_, _, unless) in layers.items():
            needed: jax.Array | bool = True
            if unless is not None and states is not None:
                needed = states.sum() != unless
            masks[name] = _everywhere(params[name], needed)
            if name != "current_1" and states is not None and "kernel" in params[name]:
                masks[name]["kernel"] = _state_rows(source, states) & needed
    for slot in ("edges", "wide"):
        if slot not in params:
            continue
        wide = (reads == 0) if cell.wide is not None else jnp.zeros_like(reads, bool)
        here = wide if slot == "wide" else ~wide
        masks[slot] = {}
        for number, name in enumerate(cell.operations):
            if name not in params[slot]:
                continue
            taken = here & (chosen == number)
            if name == "skip_connect" and slot == "edges":  # only halving an input takes weights
                taken &= (reads < INPUTS) & cell.reduction
            masks[slot][name] = _rows_of(params[slot][name], taken)
    for state in cell.output_layers:
        masks[f"output_{state}"] = _everywhere(params[f"output_{state}"], free[state])
    return masks, free[-cell.output.states:]  # type: ignore[operator]


def _state_rows(source: Source, states: jax.Array) -> jax.Array:
    """Spread states [S] over the rows of a kernel [S C, F]: [S C, 1]."""
    return jnp.repeat(states, source.width, total_repeat_length=source.channels)[:, None]
