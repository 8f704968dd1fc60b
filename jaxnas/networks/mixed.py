"""The mixed cell: every operation on every edge, weighted (DARTS, section 2.2).

A cell has one of two forms, which have the same parameters and give the same numbers. As one loop
over its edges, it is a small program with little memory: an edge's arrays fit into the caches of a
CPU core. Unrolled and batched by *source*, all edges that leave a node read the same input, so its
ReLU and its two pools are computed once, its depthwise convolutions run for all destinations in one
loop, and so do the pointwise ones: few and wide kernels, as an accelerator likes them.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import PyTree
from jaxnas.networks import edge_loop, pooling, primitives
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.own_operations import OwnOperations, apply_edges, has_parameters, initial_edges

# kernel size, dilation, blocks of [ReLU, depthwise, pointwise, BN]
CONVOLUTIONS = {
    "sep_conv_3x3": (3, 1, 2),
    "sep_conv_5x5": (5, 1, 2),
    "sep_conv_7x7": (7, 1, 2),
    "dil_conv_3x3": (3, 2, 1),
    "dil_conv_5x5": (5, 2, 1),
}
POOLS = {"max_pool_3x3": pooling.max_pool, "avg_pool_3x3": pooling.avg_pool}
MIXABLE = ("none", "skip_connect", *POOLS, *CONVOLUTIONS)

_EDGE_AXES = (1, 2, 3)  # N, H, W of [E, N, H, W, C]


def edge_index(node: int, source: int) -> int:
    """Return the row of `alphas` for the edge from state `source` (0 .. node + 1) to `node`."""
    return node * (node + 3) // 2 + source


def num_edges(num_nodes: int) -> int:
    """Return the edges of a cell: 2 + 3 + ... + (num_nodes + 1)."""
    return edge_index(num_nodes, 0)


def shared_terms(
    x: jax.Array,
    *,
    operations: tuple[str, ...],
    stride: int,
    axis_name: str | None = None,
    method: str = "shifts",
    forward_mode: bool = False,
) -> dict[str, jax.Array]:
    """Pool a source, as all edges that leave it do alike: a pool has no parameters.

    Args:
      x, operations, stride, axis_name, method, forward_mode: as in `mixed_edges`.

    Returns:
      Pool -> [N, H / stride, W / stride, C], normalised.
    """
    pooled = {name: pool(x, stride, method=method, forward_mode=forward_mode)
              for name, pool in POOLS.items() if name in operations}
    return {name: primitives.normalize(value, axis_name=axis_name)
            for name, value in pooled.items()}


def mixed_edges(
    params: dict[str, dict[str, jax.Array]],
    x: jax.Array,
    weights: jax.Array,
    *,
    operations: tuple[str, ...],
    stride: int,
    axis_name: str | None = None,
    method: str = "shifts",
    forward_mode: bool = False,
    own: OwnOperations = (),
    shared: dict[str, jax.Array] | None = None,
) -> jax.Array:
    """Apply every operation to one source for all its E outgoing edges, and sum them weighted.

    Args:
      params: operation -> name -> [E, ...]; see `MixedCell`.
      x: [N, H, W, C], the source.
      weights: [E, O], one column an operation.
      operations: the O names, in the order of the columns.
      stride: 1, or 2 (input of a reduction cell).
      axis_name: of synchronised batch statistics, or None.
      method, forward_mode: of `depthwise`; in forward mode an own operation is given "conv".
      own: operations among them that are not the library's.
      shared: `shared_terms` of x, if they are known, as in a loop over edges.

    Returns:
      [E, N, H / stride, W / stride, C].
    """
    edges = weights.shape[0]
    normalize = functools.partial(primitives.normalize, axes=_EDGE_AXES, axis_name=axis_name)
    rectified = jax.nn.relu(x)[None]
    weights = weights.astype(jnp.promote_types(x.dtype, jnp.float32))  # their gradients are sums
    looped = shared is not None
    if shared is None:
        shared = shared_terms(x, operations=operations, stride=stride, axis_name=axis_name,
                              method=method, forward_mode=forward_mode)

    def column(name: str) -> jax.Array:
        return weights[:, operations.index(name)][:, None, None, None, None]

    def block(name: str, inputs: jax.Array, number: int, stride: int) -> jax.Array:
        _, dilation, _ = CONVOLUTIONS[name]
        kernel, mixing = (params[name][f"{kind}_{number}"] for kind in ("depthwise", "pointwise"))
        convolve: Callable = functools.partial(
            depthwise, stride=stride, dilation=dilation, method=method, forward_mode=forward_mode)
        if looped and forward_mode and number == 0:
            convolve = functools.partial(_apart, convolve)
        return normalize(primitives.pointwise(convolve(inputs, kernel), mixing))

    terms = [column(name) * value[None] for name, value in shared.items()]
    if "skip_connect" in operations:
        if stride == 1:
            terms.append(column("skip_connect") * x[None])
        else:
            reduced = primitives.factorized_reduce(rectified[0], params["skip_connect"]["kernel"])
            terms.append(column("skip_connect") * normalize(reduced))
    for name in operations:
        if name in CONVOLUTIONS:
            value = block(name, rectified, 0, stride)
            if CONVOLUTIONS[name][2] == 2:
                value = block(name, jax.nn.relu(value), 1, 1)
            terms.append(column(name) * value)
    for name, kind in dict(own).items():
        value = apply_edges(params[name], kind, x, stride=stride, axis_name=axis_name,
                            method="conv" if forward_mode else method)
        terms.append(column(name) * value)
    if not terms:
        raise ValueError(f"operations must hold more than 'none', got {operations}.")
    return jnp.broadcast_to(sum(terms), (edges, *terms[-1].shape[1:])).astype(x.dtype)


def _apart(function: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Keep XLA from fusing the gradients of a function into what uses them.

    With tangents, all gradients to one x would become one kernel, which its CPU backend does not
    vectorise (15 instead of 2 ms); without, they are few enough.
    """
    value = kernel.ravel()[0]
    true = (value == value) | (value != value)
    return edge_loop.apart(function, true, jax.eval_shape(function, x, kernel))(x, kernel)


class MixedCell(nn.Module):
    """All operations on all edges: inputs [N, H, W, C] twice, weights [E, O] -> [N, H', W', nC].

    Its parameters are stacked over the edges: `{operation}_{depthwise|pointwise}_{block}`
    [E, K, K, C] and [E, C, C], and in a reduction cell `skip_connect_kernel` [2 * nodes, 2, C,
    C / 2] for the edges of stride 2, ordered by node and source.

    Attributes:
      features: C, even.
      operations: the O operations, in the order of the columns of `weights`.
      num_nodes: intermediate nodes, all concatenated into the output.
      reduction: whether the edges from the two inputs have stride 2.
      scan_edges: run one loop over the edges instead of one piece of program a source: compiles in
        a fraction of the time.
      remat: recompute the operations of an edge (or source) in the backward pass instead of keeping
        them: in the loop they would be copied to a stack and back, which costs more. The loop's
        derivatives are then those of `edge_loop`; without, JAX's.
      forward_mode: the loops' derivatives may be taken once in forward mode and then in reverse,
        and no longer in reverse alone; for products of second derivatives.
      axis_name, method, own: as in `mixed_edges`; the parameters of an own operation are
        `own_{operation}`, a dictionary of [E, ...].
    """

    features: int
    operations: tuple[str, ...]
    num_nodes: int = 4
    reduction: bool = False
    scan_edges: bool = False
    remat: bool = False
    forward_mode: bool = False
    axis_name: str | None = None
    method: str = "shifts"
    own: OwnOperations = ()

    def _parameters(self) -> dict[str, dict[str, jax.Array]]:
        edges, channels = num_edges(self.num_nodes), self.features
        uniform = primitives.torch_uniform
        params: dict[str, dict[str, jax.Array]] = {}
        for name in self.operations:
            if name in CONVOLUTIONS:
                size, _, blocks = CONVOLUTIONS[name]
                params[name] = {}
                for number in range(blocks):
                    for kind, shape, fan_in in (
                        ("depthwise", (edges, size, size, channels), size * size),
                        ("pointwise", (edges, channels, channels), channels),
                    ):
                        label = f"{kind}_{number}"
                        params[name][label] = self.param(f"{name}_{label}", uniform(fan_in), shape)
            elif name == "skip_connect" and self.reduction:
                shape = (2 * self.num_nodes, 2, channels, channels // 2)
                kernel = self.param("skip_connect_kernel", uniform(channels), shape)
                params[name] = {"kernel": kernel}
        for name, own in dict(self.own).items():
            initial = functools.partial(initial_edges, kind=own, edges=edges, features=channels)
            params[name] = self.param(f"own_{name}", initial) if has_parameters(own) else {}
        return params

    @nn.compact
    def __call__(self, s0: jax.Array, s1: jax.Array, weights: jax.Array) -> jax.Array:
        allowed = (*MIXABLE, *dict(self.own))
        for name in self.operations:
            if name not in allowed:
                raise ValueError(f"operations must be among {allowed}, got {name!r}.")
        params = self._parameters()
        walk = self._scan if self.scan_edges else self._unroll
        nodes = walk(params, jnp.stack([s0, s1]), weights)
        return jnp.concatenate(list(nodes), -1)

    def _options(self, stride: int) -> dict:
        return {"operations": self.operations, "stride": stride, "axis_name": self.axis_name,
                "method": self.method, "forward_mode": self.forward_mode}

    def _unroll(self, params, inputs, weights):
        """Run the sources one after the other, each for all its destinations."""
        states: list = [inputs[0], inputs[1]] + [0.0] * self.num_nodes
        for j in range(self.num_nodes + 1):
            nodes = range(max(0, j - 1), self.num_nodes)
            stride = 2 if self.reduction and j < 2 else 1
            edges = [(node, j) for node in nodes]
            rows = np.array([edge_index(*edge) for edge in edges])
            source: Callable = functools.partial(
                mixed_edges, own=self.own, **self._options(stride))
            if self.remat:
                source = jax.checkpoint(source)
            outputs = source(_pick(params, edges, stride), states[j], weights[rows])
            for node, output in zip(nodes, outputs):
                states[2 + node] += output
        return states[2:]

    def _scan(self, params, inputs, weights):
        """Loop over the edges by node and source, so that a state is complete when it is read."""
        edges = [(node, j) for node in range(self.num_nodes) for j in range(node + 2)]
        shape = inputs.shape[1:]
        if not self.reduction:
            blank = jnp.zeros((self.num_nodes, *shape), inputs.dtype)
            states = jnp.concatenate([inputs, blank])
            return self._loop(params, weights, edges, 1, states, None, (2, 0))[2:]
        # Two loops, as the edges from the inputs have another shape; the order of a sum is free.
        shape = (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
        nodes = jnp.zeros((self.num_nodes, *shape), inputs.dtype)
        outer = [edge for edge in edges if edge[1] < 2]
        inner = [edge for edge in edges if edge[1] >= 2]
        nodes = self._loop(params, weights, outer, 2, inputs, nodes, (0, 0))
        return self._loop(params, weights, inner, 1, nodes, None, (0, -2)) if inner else nodes

    def _loop(self, params, weights, edges, stride: int, states, nodes, shift: tuple[int, int]):
        """Add edges (node, source) to the states, or where those have other shapes to the nodes.

        `shift` makes rows of the arrays out of a node and a source.
        """
        options = self._options(stride)

        def edge(arguments, x, shared):
            picked, mixing = jax.tree.map(lambda a: a[None], arguments)
            return mixed_edges(picked, x, mixing, own=self.own, shared=shared, **options)[0]

        node_rows, source_rows = (np.array(edges) + shift).T.tolist()
        plan = edge_loop.Plan(edge, functools.partial(shared_terms, **options),
                              tuple(source_rows), tuple(node_rows), recursive=nodes is None)
        rows = np.array([edge_index(*edge) for edge in edges])
        arguments = (_pick(params, edges, stride), weights[rows])
        return edge_loop.run(plan, arguments, states, nodes, recompute=self.remat,
                             forward_mode=self.forward_mode)


def _pick(params: PyTree, edges: list[tuple[int, int]], stride: int) -> PyTree:
    """Take the parameters [E, ...] of some edges (node, source)."""
    skips = [2 * node + source for node, source in edges] if stride == 2 else []
    rows = [edge_index(*edge) for edge in edges]

    def take(array: jax.Array, rows: list[int]) -> jax.Array:
        if rows == list(range(len(array))):
            return array
        # A product with a 0-1 matrix: the transpose of a gather is a scatter, which XLA's CPU
        # backend compiles into a loop of its own, eleven a cell.
        chosen = np.equal.outer(rows, np.arange(len(array))).astype(array.dtype)
        flat = jnp.matmul(chosen, array.reshape(len(array), -1), precision="highest")
        return flat.reshape(len(rows), *array.shape[1:])

    return {
        name: jax.tree.map(functools.partial(take, rows=rows), arrays)
        if name != "skip_connect"
        else jax.tree.map(functools.partial(take, rows=skips), arrays) if skips else {}
        for name, arrays in params.items()
    }
