"""Our parameters as those of `torch_darts`, and back: every number is moved, none is changed.

    params = supernet_to_torch(variables, net)      # Flax variables -> dictionary of tensors
    variables = supernet_from_torch(params, net)

In a supernet, ours are stacked over the cells of a stage and over the edges of a cell, ordered by
node; PyTorch's are one tensor a cell and source. Float32 and float64 are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.torch_darts import FORMATS, Tensors, TorchSupernet
from jaxnas.networks.mixed import CONVOLUTIONS, edge_index
from jaxnas.networks.supernet import reduction_layers

Arrays = dict[str, Any]  # a tree of arrays with string keys


def to_torch(array: Any, memory_format: str = "contiguous") -> torch.Tensor:
    """Copy an array; one of four axes, [N, H, W, C], becomes [N, C, H, W].

    Args:
      array: of floats or integers.
      memory_format: of the four axes in memory, a key of `torch_darts.FORMATS`.
    """
    if memory_format not in FORMATS:
        raise ValueError(f"memory_format must be one of {tuple(FORMATS)}, got {memory_format!r}.")
    array = np.array(array)
    return _tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array, memory_format)


class _Entry(NamedTuple):
    """Where a tensor of `TorchSupernet` lies in our tree."""

    name: str                     # PyTorch's
    path: tuple[str, ...]         # ours
    layout: str
    cell: int | None = None       # place in a stage, or None where ours is not stacked over cells
    rows: tuple[int, ...] | None = None  # edges, or None where ours is not stacked over edges


def supernet_to_torch(
    variables: Arrays, net: TorchSupernet, memory_format: str = "channels_last"
) -> Tensors:
    """Return the parameters of `TorchSupernet` from the variables of a `Supernet` of equal sizes.

    Args:
      variables: {"params": ...} as `Supernet.init` gives them, without own operations.
      net: says which tensors there are.
      memory_format: of the kernels, a key of `torch_darts.FORMATS`.
    """
    params = {}
    for entry in _entries(net):
        array = variables["params"]
        for key in entry.path:
            array = array[key]
        array = np.asarray(array)
        array = array if entry.cell is None else array[entry.cell]
        array = array if entry.rows is None else array[list(entry.rows)]
        params[entry.name] = _tensor(_forward(entry.layout, array), memory_format)
    return params


def supernet_from_torch(params: Tensors, net: TorchSupernet) -> Arrays:
    """Return {"params": ...} of a `Supernet`, NumPy arrays; the inverse of `supernet_to_torch`."""
    parts: dict[tuple[str, ...], dict[int | None, dict[int, np.ndarray]]] = {}
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for entry in _entries(net):
        array = params[entry.name].detach().contiguous().numpy()
        if entry.rows is None:
            flat[entry.path] = _backward(entry.layout, array)
        else:
            rows = _backward(entry.layout, array, len(entry.rows))
            cell = parts.setdefault(entry.path, {}).setdefault(entry.cell, {})
            cell.update(zip(entry.rows, rows))
    for path, cells in parts.items():
        stacked = [np.stack([rows[row] for row in sorted(rows)]) for rows in cells.values()]
        flat[path] = stacked[0] if None in cells else np.stack(stacked)
    return {"params": _nest(flat)}


def network_to_torch(variables: Arrays, memory_format: str = "channels_last") -> Tensors:
    """Return the parameters of `TorchNetwork` or `operation` from the variables of ours."""
    return {"/".join(path): _tensor(_forward(_layout(path, array.ndim), array), memory_format)
            for path, array in _leaves(variables.get("params", {}))}


def network_from_torch(params: Tensors) -> Arrays:
    """Return {"params": ...} of a `Network`; the inverse of `network_to_torch`."""
    flat = {}
    for name, tensor in params.items():
        path = tuple(name.split("/"))
        # PyTorch's kernels have one or two axes of size 1 more than ours.
        rank = {5: 3, 4: 2}.get(tensor.ndim, tensor.ndim)
        array = tensor.detach().contiguous().numpy()
        layout = _layout(path, rank)
        flat[path] = _backward(layout, array, 1)[0] if layout == "depthwise" else _backward(
            layout, array)
    return {"params": _nest(flat)}


def _entries(net: TorchSupernet) -> Iterator[_Entry]:
    yield _Entry("stem_kernel", ("stem_kernel",), "dense")
    for name in ("stem_scale", "stem_bias"):
        yield _Entry(name, (name,), "same")
    yield _Entry("head_kernel", ("head", "kernel"), "transposed")
    yield _Entry("head_bias", ("head", "bias"), "same")
    reductions, first = reduction_layers(net.num_layers), 0
    for layer in range(net.num_layers):
        reduction, reduced = layer in reductions, layer - 1 in reductions
        if reduced:
            first = layer
        for which in (0, 1):
            name = f"preprocess_{layer}_{which}"
            # In a stage's loop these kernels belong to the network, not to a module of their own.
            alone = reduction or (which == 0 and layer == first)
            path = (name, "kernel") if alone else (f"{name}_kernel",)
            yield _Entry(name, path, "halves" if reduced and which == 0 else "pointwise")
        for source in range(net.num_nodes + 1):
            yield from _source_entries(net, layer, source, reduction, first)


def _source_entries(
    net: TorchSupernet, layer: int, source: int, reduction: bool, first: int
) -> Iterator[_Entry]:
    prefix = (f"reduction_{layer}",) if reduction else (f"normal_{first}", "cell")
    cell = None if reduction else layer - first
    nodes = net.destinations(source)
    edges = tuple(edge_index(node, source) for node in nodes)
    for name in net.operations:
        for block in range(CONVOLUTIONS[name][2] if name in CONVOLUTIONS else 0):
            for kind in ("depthwise", "pointwise"):
                label = f"{name}_{kind}_{block}"
                layout = kind if kind == "depthwise" else "pointwise_rows"
                yield _Entry(
                    f"cell_{layer}_{source}_{label}", (*prefix, label), layout, cell, edges)
        if name == "skip_connect" and reduction and source < 2:
            rows = tuple(2 * node + source for node in nodes)
            path = (*prefix, "skip_connect_kernel")
            yield _Entry(
                f"cell_{layer}_{source}_skip_connect_kernel", path, "halves_rows", cell, rows)


def _forward(layout: str, array: np.ndarray) -> np.ndarray:
    """Lay one of our arrays out as PyTorch's; of "..._rows" and "depthwise", R rows lead."""
    if layout == "same":
        return array
    if layout == "transposed":  # [C, F] -> [F, C]
        return array.T
    if layout == "dense":       # [K, J, C, F] -> [F, C, K, J]
        return array.transpose(3, 2, 0, 1)
    if layout == "pointwise":   # [C, F] -> [F, C, 1, 1]
        return array.T[:, :, None, None]
    if layout == "halves":      # [2, C, F / 2] -> [2, F / 2, C, 1, 1]
        return array.swapaxes(1, 2)[..., None, None]
    if layout == "depthwise":   # [R, K, K, C] -> [R C, 1, K, K]
        array = array if array.ndim == 4 else array[None]
        return array.transpose(0, 3, 1, 2).reshape(-1, 1, *array.shape[1:3])
    if layout == "pointwise_rows":  # [R, C, F] -> [R F, C, 1, 1]
        return array.swapaxes(1, 2).reshape(-1, array.shape[1], 1, 1)
    # "halves_rows": [R, 2, C, F / 2] -> [2, R F / 2, C, 1, 1]
    return array.transpose(1, 0, 3, 2).reshape(2, -1, array.shape[2], 1, 1)


def _backward(layout: str, array: np.ndarray, rows: int = 1) -> np.ndarray:
    """Undo `_forward` of `rows` rows."""
    if layout == "same":
        return array
    if layout == "transposed":
        return array.T
    if layout == "dense":
        return array.transpose(2, 3, 1, 0)
    if layout == "pointwise":
        return array[:, :, 0, 0].T
    if layout == "halves":
        return array[..., 0, 0].swapaxes(1, 2)
    if layout == "depthwise":
        return array.reshape(rows, -1, *array.shape[2:]).transpose(0, 2, 3, 1)
    if layout == "pointwise_rows":
        return array.reshape(rows, -1, array.shape[1]).swapaxes(1, 2)
    return array.reshape(2, rows, -1, array.shape[2]).transpose(1, 0, 3, 2)


def _layout(path: tuple[str, ...], rank: int) -> str:
    """Return the layout of a leaf of a fixed network; `rank` is that of our array."""
    name = path[-1]
    if name.startswith("depthwise"):
        return "depthwise"
    if name.startswith("pointwise"):
        return "pointwise"
    if name.startswith("kernel_"):
        return "dense"
    if name == "kernel":
        return "transposed" if path[0] == "head" else {2: "pointwise", 3: "halves"}[rank]
    return "same"


def _tensor(array: np.ndarray, memory_format: str) -> torch.Tensor:
    """Copy to a tensor; a kernel of four axes in the given format."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.contiguous(memory_format=FORMATS[memory_format]) if tensor.ndim == 4 else tensor


def _leaves(tree: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), np.asarray(value)


def _nest(flat: Mapping[tuple[str, ...], np.ndarray]) -> Arrays:
    tree: Arrays = {}
    for (*parents, name), value in flat.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
