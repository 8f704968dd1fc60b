"""Own operations: a class of the library under another name gives the library's numbers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import costs, genotypes
from jaxnas.genotypes import CellGenotype, Edge, Genotype, GenotypeError
from jaxnas.networks import MixedCell, Network, Operation, Supernet, num_edges, own_operations
from jaxnas.networks.network import Cell
from jaxnas.networks.operations import DilConv
from jaxnas.reporting import draw_genotype, to_dot
from jaxnas.search_spaces import DARTS

KEY = jax.random.key(0)
C = 4


class Mirror(Operation):
    """Left and right exchanged: no parameters, no statistics."""

    def __call__(self, x, *, train):
        return x[:, ::self.stride, ::-self.stride]

    @nn.nowrap
    def cost(self, shape):
        return costs.Cost()


OWN = {"mine": DilConv, "mirror": Mirror}
SPACE = DARTS(2, ("none", "skip_connect", "mine", "mirror"), OWN)
CELL = CellGenotype((Edge("mine", 0), Edge("skip_connect", 1), Edge("mirror", 2), Edge("mine", 0)),
                    (2, 3))
GENOTYPE = Genotype(CELL, CELL)


def library(genotype):
    """Return the genotype with the library's name for `mine`, and the identity for `mirror`."""
    names = {"mine": "dil_conv_3x3", "mirror": "skip_connect"}
    return Genotype(*(CellGenotype(tuple(
        Edge(names.get(edge.operation, edge.operation), edge.source) for edge in cell.edges),
        cell.concat) for cell in genotype[:2]))


@pytest.mark.parametrize("reduction, scan", [(False, True), (True, False)])
def test_mixed_cell_equals_that_of_the_library(reduction, scan):
    num_nodes = 1 + scan
    options = {"features": C, "num_nodes": num_nodes, "reduction": reduction, "scan_edges": scan,
               "method": "conv"}
    mine = MixedCell(operations=("none", "mine"), own=own_operations({"mine": DilConv}),
                     **options)
    theirs = MixedCell(operations=("none", "dil_conv_3x3"), **options)
    x = jax.random.normal(KEY, (2, 2, 8, 8, C))
    weights = jax.random.uniform(KEY, (num_edges(num_nodes), 2))
    params = mine.lazy_init(KEY, *x, weights)["params"]
    chex.assert_shape(params["own_mine"]["depthwise_0"], (num_edges(num_nodes), 3, 3, C))
    renamed = {name: value for name, value in params.items() if name != "own_mine"}
    renamed |= {f"dil_conv_3x3_{name}": value for name, value in params["own_mine"].items()}

    def loss(cell):
        return jax.jit(jax.value_and_grad(
            lambda params, weights: jnp.sin(cell.apply({"params": params}, *x, weights)).sum(),
            (0, 1)))

    value, (grads, alphas) = loss(mine)(params, weights)
    value_2, (grads_2, alphas_2) = loss(theirs)(renamed, weights)
    np.testing.assert_allclose(value, value_2, rtol=1e-5)
    np.testing.assert_allclose(alphas, alphas_2, rtol=1e-3, atol=1e-4)
    for name, grad in grads["own_mine"].items():
        np.testing.assert_allclose(grad, grads_2[f"dil_conv_3x3_{name}"], rtol=1e-3, atol=1e-4)


def test_an_operation_without_parameters():
    cell = MixedCell(C, ("none", "mirror"), 1, own=own_operations({"mirror": Mirror}))
    x = jax.random.normal(KEY, (2, 2, 4, 4, C))
    weights = jnp.array([[0.0, 2.0], [0.0, 3.0]])
    variables = cell.init(KEY, *x, weights)
    assert not jax.tree.leaves(variables)
    expected = 2 * x[0, :, :, ::-1] + 3 * x[1, :, :, ::-1]
    np.testing.assert_allclose(cell.apply(variables, *x, weights), expected, rtol=1e-6)


def test_supernet_has_their_parameters_in_every_cell():
    net = SPACE.supernet(features=2, num_layers=4)  # reductions are cells 1 and 2
    x, weights = jnp.zeros((2, 8, 8, 3)), jnp.zeros(SPACE.alphas_shape)
    shapes = jax.eval_shape(lambda: net.init(KEY, x, weights))["params"]
    edges = num_edges(2)
    for name, outer, features in (("normal_0", (1, edges), 2), ("normal_3", (1, edges), 8),
                                  ("reduction_1", (edges,), 4), ("reduction_2", (edges,), 8)):
        cell = shapes[name]["cell"] if name.startswith("normal") else shapes[name]
        assert cell["own_mine"]["pointwise_0"].shape == (*outer, features, features)
        assert "own_mirror" not in cell


@pytest.mark.slow
def test_supernet_learns_which_own_operation_to_take():
    """The gradients of all alphas but those of "none" live, through both kinds of cells."""
    space = DARTS(1, ("none", "mine", "mirror"), OWN)
    net = space.supernet(features=2, num_layers=3, num_classes=3, method="conv")
    alphas, x = space.init_alphas(KEY), jax.random.normal(KEY, (4, 8, 8, 3))
    variables = net.lazy_init(KEY, x, space.weights(alphas))

    def loss(alphas):
        return (net.apply(variables, x, space.weights(alphas)) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(alphas)
    assert np.all(np.abs(gradient[..., 1:]) > 1e-6) and np.all(np.isfinite(gradient))
    genotype = space.decode(space.discretize(alphas.at[..., 2].add(1.0)))
    assert {edge.operation for edge in genotype.normal.edges} == {"mirror"}


def test_cell_equals_that_of_the_library():
    cell = CellGenotype((Edge("mine", 0), Edge("mine", 1)), (2,))
    options = {"features": C, "reduction": True, "method": "conv"}
    mine = Cell(cell, own=SPACE.own, **options)
    theirs = Cell(library(Genotype(cell, cell)).normal, **options)
    x = jax.random.normal(KEY, (2, 2, 8, 8, 3))
    variables = mine.lazy_init(KEY, *x, train=False)

    def run(cell):
        return jax.jit(lambda v: cell.apply(v, *x, train=True, mutable=["batch_stats"]))(variables)

    chex.assert_trees_all_close(run(mine), run(theirs), rtol=1e-6)


def test_cost():
    network = SPACE.network(GENOTYPE, features=C, layers=3)
    found = costs.cost(network, (8, 8, 3))
    assert found.parameters == costs.count_parameters(network, (8, 8, 3))
    theirs = Network(library(GENOTYPE), features=C, layers=3)
    # A mirror is as free as the identity; it never halves the image here.
    assert found == costs.cost(theirs, (8, 8, 3))


def test_round_trips():
    assert SPACE.decode(SPACE.encode(GENOTYPE)) == GENOTYPE
    archs = np.asarray(jax.vmap(SPACE.sample)(jax.random.split(KEY, 100)))
    for arch in archs:
        genotype = SPACE.decode(arch)
        text = genotypes.to_json(genotype, SPACE.rules)
        assert genotypes.from_json(text, rules=SPACE.rules) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)


def test_a_file_is_read_with_the_space_only(tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text(genotypes.to_json(GENOTYPE, SPACE.rules), encoding="utf-8")
    assert genotypes.load(path, SPACE.rules) == genotypes.load_cells(path, SPACE.rules) == GENOTYPE
    missing = r"nodes\[0\]\[0\].*got 'mine'; if it is your own, pass rules=space.rules"
    other = DARTS(2, ("skip_connect", "mirror"), {"mirror": Mirror})
    for read in (lambda: genotypes.load(path), lambda: genotypes.to_json(GENOTYPE),
                 lambda: Network(GENOTYPE), lambda: to_dot(GENOTYPE)):
        with pytest.raises(GenotypeError, match=missing):
            read()
    for read in (lambda: genotypes.load(path, other.rules), lambda: other.encode(GENOTYPE),
                 lambda: other.network(GENOTYPE)):
        with pytest.raises(GenotypeError, match="must be one of .*mirror, got 'mine'"):
            read()
    with pytest.raises(GenotypeError, match="one of darts, got 'nasnet'"):
        genotypes.load("nasnet-a", SPACE.rules)
    encoded = genotypes.to_json(genotypes.Encoded("a", (1,), "1"))
    with pytest.raises(GenotypeError, match="space 'darts' is written as its two cells"):
        genotypes.from_json(encoded, rules=SPACE.rules)


def test_drawing(tmp_path):
    assert '[label="mine"' in to_dot(GENOTYPE, SPACE.rules)
    paths = draw_genotype(GENOTYPE, tmp_path / "cell", rules=SPACE.rules)
    assert all(path.exists() for path in paths)


def test_a_space_with_own_operations_is_a_static_argument():
    again = DARTS(2, SPACE.operations, dict(reversed(OWN.items())))
    assert again == SPACE and hash(again) == hash(SPACE) and again != DARTS(2, SPACE.operations, {
        "mine": Mirror, "mirror": Mirror})
    assert own_operations(SPACE.own) == SPACE.own


def test_the_traced_network_of_darts_refuses_own_operations():
    with pytest.raises(ValueError, match="no own operations, got .*mine.*build network"):
        SPACE.traced_network()


class Narrow(Operation):
    """One channel too few."""

    def __call__(self, x, *, train):
        return x[:, ::self.stride, ::self.stride, 1:]


class Strided(Operation):
    """Parameters for one stride only."""

    @nn.compact
    def __call__(self, x, *, train):
        return x if self.stride == 1 else self._pointwise(x[:, ::2, ::2])


class Sized(Operation):
    """A parameter for every pixel."""

    @nn.compact
    def __call__(self, x, *, train):
        x = x[:, ::self.stride, ::self.stride]
        return x * self.param("scale", nn.initializers.ones, x.shape[1:])


class Counting(Operation):
    """A variable that no network carries."""

    @nn.compact
    def __call__(self, x, *, train):
        self.variable("calls", "count", jnp.zeros, ())
        return x[:, ::self.stride, ::self.stride]


class Dear(Mirror):
    """A cost that is not its own."""

    @nn.nowrap
    def cost(self, shape):
        return costs.Cost(7, 7)


@pytest.mark.parametrize("own, message", [
    (7, "map names to classes"), ((1, 2), "tuple of pairs"), ({"skip_connect": Mirror}, "taken"),
    ((("a", Mirror), ("a", DilConv)), "'a' is taken"), ({"none": Mirror}, "taken"),
    ({"../a": Mirror}, "letters"), ({"a\n": Mirror}, "letters"), ({3: Mirror}, "got 3"),
    ({"a": Operation}, "derived from"), ({"a": nn.Conv}, "derived from"),
    ({"a": Mirror(C)}, "derived from"), ({"a": len}, "derived from"),
    ({"a": Narrow}, r"must map \[2, 8, 8, 4\] to \[2, 8, 8, 4\].*got \(2, 8, 8, 3\)"),
    ({"a": Strided}, "same parameters for either stride"),
    ({"a": Sized}, "same parameters for either stride and any image"),
    ({"a": Counting}, "variables in .* only, got .'calls'"),
    ({"a": Dear}, "has 0 parameters .* but its cost says")])
def test_refuses(own, message):
    with pytest.raises(ValueError, match=message) as error:
        own_operations(own)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_refuses_own_operations_outside_of_the_space():
    for build in (lambda: DARTS(own=OWN), lambda: Supernet(operations=("none", "mine"), own=OWN)):
        with pytest.raises(ValueError, match="must be among operations.*mirror"):
            build()
    with pytest.raises(ValueError, match="distinct names among .*mine"):
        DARTS(2, ("mine", "yours"), {"mine": DilConv})
