"""Operations of a user's own: what one must be, and how it runs on the edges of a mixed cell.

An own operation is a class derived from `layers.Operation`. It travels as a pair (name, class) with
the space, and from there to its networks: nothing is registered, and two spaces may give one name
to different classes. A space and its networks call `own_operations` when they are built, which
traces the class once and refuses what would fail in the middle of a network.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxnas import genotypes
from jaxnas.genotype_json import show
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.layers import Operation

OwnOperations = Mapping[str, type[Operation]] | tuple[tuple[str, type[Operation]], ...]
_COLLECTIONS = ("params", "batch_stats")
_FEATURES, _SIZES = 4, (8, 2)  # of the images on which a class is tried


def own_operations(
    own: OwnOperations, *, among: tuple[str, ...] | None = None, widens: bool = False
) -> tuple[tuple[str, type[Operation]], ...]:
    """Check operations and return them as a tuple, which can be hashed; such a tuple stays so.

    Args:
      own: name -> class derived from `Operation`, or such pairs. A class maps x [N, H, W, C'] to
        [N, H / stride, W / stride, features] for stride 1 and 2, called with `train`. It has
        parameters and "batch_stats" only, of the same shapes for either stride and any image, so
        that one set of weights serves an edge. Its `cost`, if it has one, counts its parameters.
      among: where every name must be, the operations of a space; None is anywhere.
      widens: whether C' may differ from `features`; in cells of pairs it may.

    Returns:
      The pairs, sorted by name.

    Raises:
      ValueError: a name that is taken, cannot stand in a file or is not in `among`; something that
        is no such class, or one that breaks the rules above. Nothing has been compiled.
    """
    if not isinstance(own, (Mapping, tuple)):
        raise ValueError("own must map names to classes derived from networks.Operation, got "
                         f"{type(own).__name__}.")
    try:
        pairs = [(name, kind) for name, kind in (
            own.items() if isinstance(own, Mapping) else own)]
    except (TypeError, ValueError):
        raise ValueError("own must be a mapping or a tuple of pairs (name, class derived from "
                         "networks.Operation), got another tuple.") from None
    names = tuple(name for name, _ in pairs)
    genotypes.cell_rules("own", names)  # refuses some
    missing = [name for name in names if among is not None and name not in among]
    if missing:
        raise ValueError(f"own operations must be among operations, got {missing} that are not; "
                         "add them there.")
    for name, kind in pairs:
        if not isinstance(kind, type) or not issubclass(kind, Operation) or kind is Operation:
            raise ValueError(f"the own operation {name!r} must be a class derived from "
                             f"networks.Operation, got {show(kind)}.")
        for channels in (_FEATURES, _FEATURES + 2)[:1 + widens]:
            _check(name, kind, channels)  # type: ignore[arg-type]  # a class can be hashed
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def own_names(own: OwnOperations) -> tuple[str, ...]:
    """Return the names."""
    return tuple(dict(own))


def has_parameters(kind: type[Operation]) -> bool:
    """Tell whether an operation has parameters."""
    draw = functools.partial(initial_edges, kind=kind, edges=1, features=_FEATURES)
    return bool(jax.eval_shape(lambda: draw(jax.random.key(0))))


@functools.cache
def _check(name: str, kind: type[Operation], channels: int) -> None:
    """Trace an operation for both strides and two sizes of images."""
    first: Any = None
    for size in _SIZES:
        for stride in (1, 2):
            layer = kind(_FEATURES, stride, parent=None)
            y, variables, new = jax.eval_shape(
                functools.partial(_variables_and_output, layer, (2, size, size, channels)))
            wanted = (2, size // stride, size // stride, _FEATURES)
            if getattr(y, "shape", None) != wanted:
                raise ValueError(
                    f"the own operation {name!r} must map {[2, size, size, channels]} to "
                    f"{list(wanted)} for stride={stride} and features={_FEATURES}, got "
                    f"{getattr(y, 'shape', type(y).__name__)}.")
            unknown = sorted({*variables, *new} - {*_COLLECTIONS})
            if unknown:
                raise ValueError(f"the own operation {name!r} may have variables in "
                                 f"{_COLLECTIONS} only, got {unknown}.")
            shapes = jax.tree.map(lambda leaf: leaf.shape, variables)
            first = shapes if first is None else first
            if shapes != first:
                raise ValueError(
                    f"the own operation {name!r} must have the same parameters for either stride "
                    f"and any image, got {first} and {shapes}; create them in every case.")
            if kind.cost is not Operation.cost:
                found = layer.cost((size, size, channels))
                count = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
                if not isinstance(found, Cost) or found.parameters != count:
                    raise ValueError(f"the own operation {name!r} has {count} parameters for "
                                     f"{channels} channels and features={_FEATURES}, but its cost "
                                     f"says {found!r:.80}.")


def _variables_and_output(layer: Operation, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    x = jnp.zeros(shape)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, dict(variables), dict(new)


def initial_edges(
    key: jax.Array, kind: type[Operation], *, edges: int, features: int
) -> dict[str, jax.Array]:
    """Draw the parameters of one operation on E edges: path joined by "/" -> [E, ...]."""
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        layer = kind(features, affine=False, parent=None)
        variables = layer.init(key, jnp.zeros((1, 2, 2, features)), train=False)
        return traverse_util.flatten_dict(dict(variables.get("params", {})), sep="/")

    return jax.vmap(draw)(jax.random.split(key, edges))


def apply_edges(
    params: dict[str, jax.Array],
    kind: type[Operation],
    x: jax.Array,
    *,
    stride: int,
    axis_name: str | None = None,
    method: str = "shifts",
) -> jax.Array:
    """Apply one operation to one source for all E edges, by the statistics of this batch.

    Batch normalisation is told to have no scale and no bias (`affine=False`), as all in a supernet.

    Args:
      params: path -> [E, ...] as `initial_edges` draws them; empty if it has none.
      kind: the operation.
      x: [N, H, W, C], the source.
      stride, axis_name, method: as in `Operation`.

    Returns:
      [E, N, H / stride, W / stride, C], of an operation without parameters [1, ...].
    """
    layer = kind(x.shape[-1], stride, affine=False, axis_name=axis_name, method=method, parent=None)

    def run(params: dict[str, jax.Array]) -> jax.Array:
        variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
        y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return y

    return jax.vmap(run)(params) if params else run(params)[None]
