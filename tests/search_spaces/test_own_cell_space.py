"""A cell space of one's own, with an operation and a style of its own, from draw to network."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import costs, genotypes, objectives, search
from jaxnas.genotypes import GenotypeError
from jaxnas.networks import CellStyle, Operation, PairNetwork, TracedPairNetwork
from jaxnas.networks.own_operations import OwnOperations
from jaxnas.reporting import to_dot
from jaxnas.search_spaces import NASNet, PairCellSpace
from jaxnas.searchers import regularized_evolution

SMALL = {"features": 4, "cells_per_stage": 1, "num_classes": 3, "method": "conv"}


class Gate(Operation):
    """A 1x1 convolution times the sigmoid of another; two norms."""

    @nn.compact
    def __call__(self, x, *, train):
        x = x[:, ::self.stride, ::self.stride]
        value, gate = (self._norm(f"norm_{name}")(self._pointwise(x, name), train=train)
                       for name in ("value", "gate"))
        return value * nn.sigmoid(gate)

    @nn.nowrap
    def cost(self, shape):
        height, width, _ = self.output_shape(shape)
        kernels = 2 * shape[-1] * self.features
        return costs.Cost(kernels + 4 * self.features * self.affine, kernels * height * width)


@dataclasses.dataclass(frozen=True)
class Mine(PairCellSpace):
    """Two blocks of three operations, of which one is not the library's."""

    num_blocks: int = 2
    operations: tuple[str, ...] = ("skip_connect", "gate", "max_pool_3x3")
    own: OwnOperations = (("gate", Gate),)

    name = "mine"
    columns = ("source", "operation", "source", "operation")
    style = CellStyle(stem_twice=("cifar",), identity="factorized", padding="symmetric")
    concat_inputs = False


SPACE = Mine()


# The stem is wider than its cells, which have no previous cell: gates read another width there.
GATED_NASNET = NASNet(2, ("skip_connect", "gate"), own={"gate": Gate})
GATES = {  # gates read inputs, of either stride, and a node
    "mine": SPACE.decode(np.array([0, 1, 1, 0, 2, 1, 1, 2] * 2, np.int32)),
    "nasnet": GATED_NASNET.decode(np.array([0, 1, 1, 1, 0, 2, 1, 1, 0, 0] * 2, np.int32))}


def draw(count):
    return np.asarray(jax.jit(jax.vmap(SPACE.sample))(jax.random.split(jax.random.key(0), count)))


def test_decisions():
    assert SPACE.num_choices == (2, 3, 2, 3, 3, 3, 3, 3) * 2 and SPACE.size == (36 * 81) ** 2
    archs, keys = draw(200), jax.random.split(jax.random.key(1), 200)
    mutated = np.asarray(jax.jit(jax.vmap(SPACE.mutate))(keys, archs))
    assert np.all((mutated != archs).sum(1) == 1)
    canonical = np.asarray(jax.jit(jax.vmap(SPACE.canonical))(mutated))
    np.testing.assert_array_equal(canonical, jax.jit(jax.vmap(SPACE.canonical))(canonical))
    assert jax.vmap(SPACE.is_valid)(canonical).all()


def test_round_trips(tmp_path):
    for arch in draw(100):
        genotype = SPACE.decode(arch)
        assert genotype.space == "mine" and min(genotype.normal.concat) >= 2
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)
        text = genotypes.to_json(genotype, SPACE.rules)
        assert genotypes.from_json(text, rules=SPACE.rules) == genotype
    path = tmp_path / "genotype.json"
    path.write_text(text, encoding="utf-8")
    assert genotypes.load(path, SPACE.rules) == genotype
    for read in (lambda: genotypes.load(path), lambda: to_dot(genotype),
                 lambda: genotypes.to_json(genotype)):
        with pytest.raises(GenotypeError, match="one of darts.*got 'mine'; .* rules=space.rules"):
            read()
    assert "digraph" in to_dot(genotype, SPACE.rules)
    with pytest.raises(GenotypeError, match="space must be 'mine', got 'nasnet'"):
        SPACE.encode(genotypes.PUBLISHED["NASNET_A"])
    with pytest.raises(GenotypeError, match="space must be 'nasnet', got 'mine'"):
        NASNet().encode(genotype)


def test_cost_of_random_networks():
    for arch in draw(3):
        network = SPACE.network(SPACE.decode(arch), **SMALL)
        found = costs.cost(network, (8, 8, 3)).parameters
        assert found == costs.count_parameters(network, (8, 8, 3))


def test_traced_network_equals_the_fixed_one():
    genotype = GATES["mine"]
    network, rows = SPACE.traced_network(**SMALL), SPACE.rows(SPACE.encode(genotype))
    assert {edge.operation for edge in genotype.normal.edges} == set(SPACE.operations)
    fixed = network.fixed(rows)
    assert fixed == SPACE.network(genotype, **SMALL)
    with jax.enable_x64(True):
        numbers = np.random.default_rng(0)
        x = numbers.normal(size=(3, 8, 8, 2))
        shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, rows, train=False))
        variables = {kind: jax.tree.map(lambda a: numbers.uniform(0.5, 1, a.shape), shapes[kind])
                     for kind in ("params", "batch_stats")}
        given = network.extract(variables, rows)
        wanted = jax.eval_shape(lambda: fixed.init(jax.random.key(0), x, train=False))
        chex.assert_trees_all_equal_shapes(given, dict(wanted))

        def run(network, variables, *arch):
            return jax.jit(lambda v: network.apply(
                v, x, *arch, train=True, mutable=["batch_stats"]))(variables)

        logits, stats = run(network, variables, rows)
        (logits_2, _), stats_2 = run(fixed, given)
        np.testing.assert_allclose(logits, logits_2, rtol=1e-8)
        found = network.extract({"params": variables["params"], **stats}, rows)["batch_stats"]
        chex.assert_trees_all_close(found, stats_2["batch_stats"], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("space", [SPACE, GATED_NASNET], ids=["mine", "nasnet"])
def test_traced_network_has_the_gradients_of_the_fixed_one(space):
    network, rows = space.traced_network(**SMALL), space.rows(space.encode(GATES[space.name]))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    variables = network.lazy_init(jax.random.key(1), x, rows, train=False)
    given = network.extract(variables, rows)

    def gradient(network, variables, *arch):
        def loss(params):
            output, _ = network.apply({**variables, "params": params}, x, *arch, train=True,
                                      mutable=["batch_stats"])
            return jnp.sin(output[0] if isinstance(output, tuple) else output).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    grads = network.extract({"params": gradient(network, variables, rows)}, rows)["params"]
    chex.assert_trees_all_close(
        grads, gradient(network.fixed(rows), given), rtol=1e-3, atol=1e-5)


def test_a_search_finds_the_cheapest_cells():
    """Nothing has fewer parameters than cells of pools, which have none."""
    space = Mine(num_blocks=1)

    def parameters(arch):
        return costs.cost(space.network(space.decode(arch), **SMALL), (8, 8, 3)).parameters

    evolution = regularized_evolution(space, population_size=8, tournament_size=4)
    _, history = search.run_on_host(
        search.init(jax.random.key(0), evolution), evolution,
        lambda key, archs: {"parameters": np.array([parameters(arch) for arch in archs])},
        objectives.minimize("parameters"), num_steps=60)
    assert -history.fitness.max() == parameters(np.array([0, 2, 1, 2] * 2, np.int32))


def test_own_operations_in_a_space_of_the_library():
    genotype = GATES["nasnet"]
    network = GATED_NASNET.network(genotype, **SMALL)
    assert network.family == PairNetwork(genotypes.PUBLISHED["NASNET_A"]).family
    found = costs.cost(network, (8, 8, 3)).parameters
    assert found == costs.count_parameters(network, (8, 8, 3))
    traced, rows = GATED_NASNET.traced_network(**SMALL), GATED_NASNET.rows(
        GATED_NASNET.encode(genotype))
    assert traced.fixed(rows) == network
    shapes = jax.eval_shape(lambda: traced.extract(
        traced.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), rows, train=False), rows))
    chex.assert_trees_all_equal_shapes(shapes, jax.eval_shape(lambda: dict(
        network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))))
    with pytest.raises(GenotypeError, match="got 'gate'"):
        PairNetwork(genotype)


class Keeping(Operation):
    """As many channels as it reads."""

    def __call__(self, x, *, train):
        return x[:, ::self.stride, ::self.stride]


@pytest.mark.parametrize("change, message", [
    ({"operations": ("gate", "blur")}, "distinct names among .*conv_3x3.*gate"),
    ({"operations": ("skip_connect",)}, "must be among operations"),
    ({"operations": ("skip_connect", "keep"), "own": {"keep": Keeping}}, r"must map .* 6\] to"),
    ({"num_blocks": 7}, "num_blocks"), ({"own": ()}, "distinct names among")])
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Mine(**change)


@pytest.mark.parametrize("attributes, message", [
    ({"name": "my space"}, "name of a space"), ({"name": "pnas"}, "distinct names among"),
    ({"name": "nasnet", "concat_inputs": False}, "concat_inputs must be True"),
    ({"columns": ("source", "operation") * 3}, "columns must be"),
    ({"columns": ("source", "operation", "source", "x", "operation")}, "columns must be")])
def test_refuses_classes(attributes, message):
    operations = ("conv_1x1", "gate") if attributes.get("name") == "pnas" else SPACE.operations
    with pytest.raises(ValueError, match=message):
        type("Other", (Mine,), attributes)(operations=operations)


def test_networks_need_a_style():
    genotype = SPACE.decode(draw(1)[0])
    with pytest.raises(ValueError, match="style must be given .* 'mine'"):
        PairNetwork(genotype, own=SPACE.own)
    with pytest.raises(ValueError, match="style be given, got 'mine'"):
        TracedPairNetwork("mine", ("skip_connect",))
    with pytest.raises(ValueError, match="name and columns"):
        PairCellSpace()
