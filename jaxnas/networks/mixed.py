"""The mixed cell: every operation on every edge, weighted (DARTS, section 2.2).

Work is batched by *source*: all edges that leave a node read the same input, so its ReLU and its
two pools are computed once, its depthwise convolutions run for all destinations in one loop, and
the pointwise ones of all operations and destinations are one batched matrix product.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks import primitives
from jaxnas.networks.depthwise import depthwise

# kernel size, dilation, blocks of [ReLU, depthwise, pointwise, BN]
CONVOLUTIONS = {
    "sep_conv_3x3": (3, 1, 2),
    "sep_conv_5x5": (5, 1, 2),
    "sep_conv_7x7": (7, 1, 2),
    "dil_conv_3x3": (3, 2, 1),
    "dil_conv_5x5": (5, 2, 1),
}
POOLS = {"max_pool_3x3": primitives.max_pool, "avg_pool_3x3": primitives.avg_pool}
MIXABLE = ("none", "skip_connect", *POOLS, *CONVOLUTIONS)

_EDGE_AXES = (1, 2, 3)  # N, H, W of [E, N, H, W, C]


def edge_index(node: int, source: int) -> int:
    """Return the row of `alphas` for the edge from state `source` (0 .. node + 1) to `node`."""
    return node * (node + 3) // 2 + source


def num_edges(num_nodes: int) -> int:
    """Return the edges of a cell: 2 + 3 + ... + (num_nodes + 1)."""
    return edge_index(num_nodes, 0)


def mixed_edges(
    params: dict[str, dict[str, jax.Array]],
    x: jax.Array,
    weights: jax.Array,
    *,
    operations: tuple[str, ...],
    stride: int,
    axis_name: str | None = None,
    method: str = "shifts",
) -> jax.Array:
    """Apply every operation to one source for all its E outgoing edges, and sum them weighted.

    Args:
      params: operation -> name -> [E, ...]; see `MixedCell`.
      x: [N, H, W, C], the source.
      weights: [E, O], one column an operation.
      operations: the O names, in the order of the columns.
      stride: 1, or 2 (input of a reduction cell).
      axis_name: of synchronised batch statistics, or None.
      method: of `depthwise`.

    Returns:
      [E, N, H / stride, W / stride, C].
    """
    edges = weights.shape[0]
    normalize = functools.partial(primitives.normalize, axes=_EDGE_AXES, axis_name=axis_name)
    rectified = jax.nn.relu(x)[None]

    def column(name: str) -> jax.Array:
        return weights[:, operations.index(name)][:, None, None, None, None].astype(x.dtype)

    def block(names: list[str], inputs: dict[str, jax.Array], number: int, stride: int):
        """Run block `number` of several convolutions: one pointwise product, one BN for all."""
        outputs = [
            depthwise(
                inputs[name],
                params[name][f"depthwise_{number}"],
                stride=stride,
                dilation=CONVOLUTIONS[name][1],
                method=method,
            )
            for name in names
        ]
        kernels = [params[name][f"pointwise_{number}"] for name in names]
        mixed = primitives.pointwise(jnp.concatenate(outputs), jnp.concatenate(kernels))
        return dict(zip(names, jnp.split(normalize(mixed), len(names))))

    terms = []
    for name, pool in POOLS.items():
        if name in operations:  # no parameters: the same for every edge
            terms.append(column(name) * normalize(pool(x, stride)[None]))
    if "skip_connect" in operations:
        if stride == 1:
            terms.append(column("skip_connect") * x[None])
        else:
            reduced = primitives.factorized_reduce(rectified[0], params["skip_connect"]["kernel"])
            terms.append(column("skip_connect") * normalize(reduced))
    first = [name for name in operations if name in CONVOLUTIONS]
    if first:
        done = block(first, dict.fromkeys(first, rectified), 0, stride)
        second = [name for name in first if CONVOLUTIONS[name][2] == 2]
        if second:
            done |= block(second, {name: jax.nn.relu(done[name]) for name in second}, 1, 1)
        terms += [column(name) * value for name, value in done.items()]
    if not terms:
        raise ValueError(f"operations must hold more than 'none', got {operations}.")
    return jnp.broadcast_to(sum(terms), (edges, *terms[-1].shape[1:]))


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
      scan_sources: run one loop over the sources, padded to equal width, instead of one piece of
        program a source: compiles in a fraction of the time, does up to 20 / 14 of the work.
      remat: recompute the operations of a source in the backward pass instead of keeping them.
      axis_name, method: as in `mixed_edges`.
    """

    features: int
    operations: tuple[str, ...]
    num_nodes: int = 4
    reduction: bool = False
    scan_sources: bool = False
    remat: bool = False
    axis_name: str | None = None
    method: str = "shifts"

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
        return params

    @nn.compact
    def __call__(self, s0: jax.Array, s1: jax.Array, weights: jax.Array) -> jax.Array:
        for name in self.operations:
            if name not in MIXABLE:
                raise ValueError(f"operations must be among {MIXABLE}, got {name!r}.")
        params = self._parameters()

        def source(params, x, weights, stride):
            return mixed_edges(
                params,
                x,
                weights,
                operations=self.operations,
                stride=stride,
                axis_name=self.axis_name,
                method=self.method,
            )

        if self.remat:
            source = jax.checkpoint(source, static_argnums=(3,))
        walk = self._scan if self.scan_sources else self._unroll
        nodes = walk(source, params, jnp.stack([s0, s1]), weights)
        return jnp.concatenate(list(nodes), -1)

    def _pick(self, params, sources: list[int], nodes: list[int]):
        """Lay out parameters [E, ...] as [S, D, ...] by source and node; 0 where no edge is.

        A product with a 0-1 matrix: the transpose of a gather is a scatter, which XLA's CPU backend
        compiles into a loop of its own, eleven a cell.
        """
        pairs = [(node, source) for source in sources for node in nodes]
        rows = [edge_index(*pair) if pair[1] <= pair[0] + 1 else -1 for pair in pairs]
        skips = [2 * node + source if source < 2 else -1 for node, source in pairs]

        def lay_out(array: jax.Array, rows: list[int]) -> jax.Array:
            chosen = np.equal.outer(rows, np.arange(len(array))).astype(array.dtype)
            flat = jnp.matmul(chosen, array.reshape(len(array), -1), precision="highest")
            return flat.reshape(len(sources), len(nodes), *array.shape[1:])

        return {
            name: {
                label: lay_out(array, skips if name == "skip_connect" else rows)
                for label, array in arrays.items()
            }
            for name, arrays in params.items()
        }

    def _unroll(self, source, params, inputs, weights):
        """Run the sources one after the other, each for exactly its destinations."""
        states: list = [inputs[0], inputs[1]] + [0.0] * self.num_nodes
        for j in range(self.num_nodes + 1):
            nodes = list(range(max(0, j - 1), self.num_nodes))
            picked = jax.tree.map(lambda a: a[0], self._pick(params, [j], nodes))
            rows = np.array([edge_index(node, j) for node in nodes])
            stride = 2 if self.reduction and j < 2 else 1
            outputs = source(picked, states[j], weights[rows], stride)
            for node, output in zip(nodes, outputs):
                states[2 + node] += output
        return states[2:]

    def _scan(self, source, params, inputs, weights):
        """Loop over sources of equal shape; an edge that does not exist has weight 0."""

        def group(sources: list[int], nodes: list[int], stride: int):
            picked = self._pick(params | {"weights": {"": weights}}, sources, nodes)
            return picked, picked.pop("weights")[""], stride  # weights [S, D, O]

        nodes = list(range(self.num_nodes))
        if self.reduction:
            picked, masked, stride = group([0, 1], nodes, 2)
            states = jax.vmap(source, (0, 0, 0, None))(picked, inputs, masked, stride).sum(0)
            first, sources, nodes = 0, list(range(2, self.num_nodes + 1)), nodes[1:]
        else:
            blank = jnp.zeros((self.num_nodes, *inputs.shape[1:]), inputs.dtype)
            states = jnp.concatenate([inputs, blank])
            first, sources = 2, list(range(self.num_nodes + 1))
        if sources:
            picked, masked, stride = group(sources, nodes, 1)
            start = first + nodes[0]

            def add_source(states, xs):
                index, picked, masked = xs
                x = lax.dynamic_index_in_dim(states, index, keepdims=False)
                return states.at[start:].add(source(picked, x, masked, stride)), None

            order = np.array(sources) - 2 + first
            states, _ = lax.scan(add_source, states, (order, picked, masked))
        return states[first:]
