"""What the network of a genotype costs: parameters and multiply-adds.

By closed form from the structure alone, nothing traced: a fraction of a millisecond a layer, so
that a constrained search can afford it. `count_parameters` asks the built network instead.
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxnas.base import Evaluator, Metrics
from jaxnas.networks import layer_costs
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.morphable import MorphableNetwork
from jaxnas.networks.network import Network
from jaxnas.networks.operations import FactorizedReduce, Operation, ReLUConvBN, operation_factory
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.networks.supernet import reduction_layers

__all__ = ["Cost", "cost", "count_parameters", "layer_by_layer", "with_costs"]

Shape = tuple[int, int, int]  # H, W, C
AnyNetwork = Network | PairNetwork | MorphableNetwork


def cost(network: AnyNetwork, shape: Shape = (32, 32, 3)) -> Cost:
    """Return parameters and multiply-adds of a fixed network, by closed form.

    Multiply-adds are those of convolutions and dense layers for one image. The auxiliary head is
    counted if the network has one; the published counts leave it out.

    Args:
      network: a fixed network of a genotype; anything with a method `costs(shape)` as in
        `PairNetwork`, too.
      shape: (H, W, C) of an image.

    Raises:
      ValueError: shape is not three positive numbers, or the network does not take such images.
    """
    return sum((found for _, found in layer_by_layer(network, shape)), Cost())


def layer_by_layer(
    network: AnyNetwork, shape: Shape = (32, 32, 3)
) -> Iterator[tuple[str, Cost]]:
    """Return names and costs of the layers; arguments as in `cost`.

    Names are those of the parameters, joined by "/": "cell_3/edge_0".
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (height, width, channels) of an image, got {shape}.")
    if isinstance(network, Network):
        return _darts(network, shape)
    return network.costs(shape)


def count_parameters(network: AnyNetwork, shape: Shape = (32, 32, 3)) -> int:
    """Count the parameters of the built network, without allocating them.

    Args:
      network: any Flax module with a call (images [N, H, W, C], train=...).
      shape: (H, W, C) of an image.
    """
    images = jnp.zeros((1, *shape))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def with_costs(evaluator: Evaluator, **costs: Callable[[jax.Array], jax.Array]) -> Evaluator:
    """Return an evaluator that gives costs beside its metrics, so that objectives may weigh them.

        latency = jaxnas.latency.mobile_latency(grid, ...)
        evaluator = with_costs(evaluator, latency_ms=latency, params=space.num_parameters)
        objective = objectives.mnasnet_reward("accuracy", "latency_ms", target=2.0)

    Args:
      evaluator: (key, archs [B, L]) -> metrics; traceable if it and the costs are.
      **costs: name of a metric -> archs [B, L] -> [B].

    Raises:
      ValueError: by the evaluator, if it has a metric of such a name.
    """
    def evaluate(key: jax.Array, archs: jax.Array) -> Metrics:
        metrics = evaluator(key, archs)
        for name in costs:
            if name in metrics:
                raise ValueError(f"the evaluator has a metric {name!r} of its own; give the cost "
                                 "another name.")
        return {**metrics, **{name: cost(archs) for name, cost in costs.items()}}

    return evaluate


def _darts(network: Network, shape: Shape) -> Iterator[tuple[str, Cost]]:
    """Walk the network of DARTS as `networks.network` does."""
    (height, width, channels), features = shape, network.features
    stem = []  # (name, output channels, stride)
    if network.stem == "cifar":
        stem = [("stem", network.stem_multiplier * features, 1)]
    else:
        stem = [("stem_0", features // 2, 2), ("stem_0", features, 2), ("stem_1", features, 2)]
    sizes = [(height, width, channels)]
    for name, wide, stride in stem:
        height, width = math.ceil(height / stride), math.ceil(width / stride)
        yield name, layer_costs.convolution(9, channels, wide, height * width, affine=True)
        channels = wide
        sizes.append((height, width, channels))
    before, previous = sizes[-1] if network.stem == "cifar" else sizes[-2], sizes[-1]
    for layer in range(network.layers):
        reduction = layer in reduction_layers(network.layers)
        features *= 2 if reduction else 1
        first: type[Operation] = FactorizedReduce if before[0] != previous[0] else ReLUConvBN
        yield f"cell_{layer}/preprocess_0", first(features).cost(before)
        yield f"cell_{layer}/preprocess_1", ReLUConvBN(features).cost(previous)
        genotype = network.genotype.reduction if reduction else network.genotype.normal
        inner = (*previous[:2], features)
        outer = (math.ceil(inner[0] / 2), math.ceil(inner[1] / 2), features) if reduction else inner
        for edge, (name, source) in enumerate(genotype.edges):
            stride = 2 if reduction and source < 2 else 1
            operation = operation_factory(name, network.own)(
                features, stride, pool_norm=network.pool_norm)
            yield f"cell_{layer}/edge_{edge}", operation.cost(inner if source < 2 else outer)
        before, previous = previous, (*outer[:2], features * len(genotype.concat))
        if layer == 2 * network.layers // 3 and network.auxiliary:
            head = layer_costs.convolution(1, previous[2], 128, 4, affine=True)
            head += layer_costs.convolution(4, 128, 768, 1, affine=network.stem == "cifar")
            yield "auxiliary_head", head + layer_costs.dense(768, network.num_classes)
    yield "head", layer_costs.dense(previous[2], network.num_classes)
