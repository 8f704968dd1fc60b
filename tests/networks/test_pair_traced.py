"""One program for every pair-cell architecture equals the program of each genotype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.packing import Packing
from jaxnas.networks.pair_cells import STYLES
from jaxnas.networks.pair_slots import SlotCell, Source
from jaxnas.networks.pair_traced import TracedPairNetwork, cell_rows
from jaxnas.search_spaces.amoebanet import AmoebaNet
from jaxnas.search_spaces.enas_micro import ENASMicro
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.pnas import PNAS

SPACES = {"nasnet": NASNet, "amoebanet": AmoebaNet, "pnas": PNAS, "enas_micro": ENASMicro}
FEW = {  # compile in seconds: the identity, a pool, something with two norms or none
    "nasnet": ("skip_connect", "max_pool_3x3"), "amoebanet": ("skip_connect", "avg_pool_3x3"),
    "pnas": ("skip_connect", "sep_conv_3x3"), "enas_micro": ("avg_pool_3x3", "skip_connect"),
}
# One loop body for all pixels: vectorised code rounds a pixel in its last, scalar turns otherwise
# than the same values elsewhere, and pixels of one plateau of a maximum would cease to be equal, of
# which the next maximum gives the first its gradient. It compiles in less time, too.
QUICK = {"xla_backend_optimization_level": 0}
SMALL = {"features": 4, "cells_per_stage": 1, "num_classes": 3, "method": "conv"}


def _make(name, operations=None, num_blocks=3, **options):
    operations = FEW[name] if operations is None else operations
    space = SPACES[name](num_blocks, operations) if operations else SPACES[name](num_blocks)
    network = TracedPairNetwork(name, space.operations, num_blocks, **SMALL | options)
    return space, network


def _layout(space, arch):
    return cell_rows(arch, num_blocks=space.num_blocks, columns=space.columns)


def _archs(space, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(space.sample))(keys))


def _variables(network, *arguments):
    """Return float64 variables of ordinary size, none at a special value such as a scale of 1."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *arguments, train=False))
    numbers = np.random.default_rng(0)
    ranges = {"params": (-1, 1), "batch_stats": (0.5, 1)}
    return {kind: jax.tree.map(lambda a: numbers.uniform(*ranges[kind], a.shape), shapes[kind])
            for kind in ranges}


def _program(network):
    def loss(params, stats, x, *arch):
        output, new = network.apply({"params": params, "batch_stats": stats}, x, *arch, train=True,
                                    mutable=["batch_stats"])
        logits = output[0] if isinstance(output, tuple) else output
        weights = jnp.sin(jnp.arange(logits.size).reshape(logits.shape))
        return jnp.sum(weights * logits), (logits, new["batch_stats"])

    return loss


def _check(space, network, archs, size=(8, 8)):
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(3, *size, 2))
        variables = _variables(network, x, np.zeros((2, space.num_blocks, 4), np.int32))
        program = chex.assert_max_traces(_program(network), n=1)
        run = jax.jit(jax.value_and_grad(program, has_aux=True), compiler_options=QUICK)
        for arch in archs:
            rows = np.asarray(_layout(space, arch))
            (_, (logits, stats)), grads = run(*variables.values(), x, rows)
            fixed = network.fixed(rows)
            assert fixed.genotype == space.decode(arch)
            given = network.extract(variables, rows)
            wanted = jax.eval_shape(lambda n=fixed: n.init(jax.random.key(0), x, train=False))
            chex.assert_trees_all_equal_shapes(given, dict(wanted))
            expected = jax.jit(
                jax.value_and_grad(_program(fixed), has_aux=True), compiler_options=QUICK
            )(given["params"], given["batch_stats"], x)
            (_, (logits_2, stats_2)), grads_2 = expected
            assert logits.dtype == jnp.float64
            found = network.extract({"params": grads, "batch_stats": stats}, rows)
            for left, right in (
                (logits, logits_2), (found["batch_stats"], stats_2), (found["params"], grads_2),
            ):  # fmt: skip
                scale = max(np.abs(a).max(initial=0) for a in jax.tree.leaves(right))
                chex.assert_trees_all_close(left, right, rtol=1e-7, atol=1e-9 * scale)
            # Nothing else has a gradient, and no other running statistics have moved.
            squares, squares_2 = (sum(np.sum(np.square(a)) for a in jax.tree.leaves(tree))
                                  for tree in (grads, grads_2))
            np.testing.assert_allclose(squares, squares_2, rtol=1e-7)
            moved, moved_2 = (
                sum(np.sum(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old)))
                for new, old in ((stats, variables["batch_stats"]),
                                 (stats_2, given["batch_stats"])))
            assert moved == moved_2


def _hard_cases(space):
    """Return two archs whose cells concatenate 1 state, 2, or an input and all blocks.

    A cell of one state is as wide as its nodes, one of two as those of the next reduction cell:
    then the fixed network has no layer that brings it to width.
    """
    blocks, columns = space.num_blocks, np.array(space.columns)

    def cell(sources):
        rows = np.zeros((blocks, len(columns)), np.int32)
        rows[:, columns == "source"] = sources
        rows[:, columns == "operation"] = (
            np.arange(2 * blocks).reshape(blocks, 2) // 2 % len(space.operations))
        return rows.reshape(-1)

    chain = [[0, 1], *([block, block + 1] for block in range(1, blocks))]
    one, two = cell(chain), cell([[1, 0], *chain[1:-1], [1, 1]])
    fan = cell([[1, 1]] * blocks)
    return [np.concatenate(pair[:space.num_cells]) for pair in ((one, fan), (two, one))]


@pytest.mark.parametrize("name, count", [
    ("amoebanet", 2), pytest.param("enas_micro", 1, marks=pytest.mark.slow)])
def test_equals_the_fixed_network(name, count):
    space, network = _make(name, num_blocks=2)
    archs = _hard_cases(space)
    counts = [[len(cell.concat) for cell in space.decode(arch)[:2]] for arch in archs]
    assert counts == [[1, 3], [2, 1]]
    _check(space, network, archs[:count])


@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_equals_the_fixed_network_with_few_operations(name):
    space, network = _make(name)
    _check(space, network, [*_hard_cases(space), *_archs(space, 2)], (9, 6))


@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_equals_20_fixed_networks(name):
    space, network = _make(name, (), 5)
    # Large images: where windows cover a whole map the maximum is constant, its normalisation is
    # rounding noise, and noise decides which pixel the next maximum gives its gradient to.
    _check(space, network, _archs(space, 20), (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [
    ("nasnet", {"cells_per_stage": 4}), ("enas_micro", {"cells_per_stage": 4}),
    ("pnas", {"cells_per_stage": 4}), ("amoebanet", {"stem_features": 4}),
    ("amoebanet", {"features": 6, "stem": "imagenet"}), ("pnas", {"stem": "imagenet"})])
def test_other_skeletons(name, options):
    """Loops over cells, stems as wide as a node, halved at once; uneven widths."""
    space, network = _make(name, **options)
    _check(space, network, _hard_cases(space), (37, 40) if "stem" in options else (8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_cells_in_loops_have_the_variables_of_the_fixed_network(name):
    space, network = _make(name, (), 5, cells_per_stage=6)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    rows = np.zeros((2, 5, 4), np.int32)
    shapes = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, rows, train=False), x)
    assert len(shapes["params"]) < 12  # 20 cells in loops
    for arch in _archs(space, 2):
        rows = np.asarray(_layout(space, arch))
        given = jax.eval_shape(lambda v, rows=rows: network.extract(v, rows), shapes)
        wanted = jax.eval_shape(
            lambda x, rows=rows: network.fixed(rows).init(jax.random.key(0), x, train=False), x)
        chex.assert_trees_all_equal_shapes(given, dict(wanted))


@pytest.mark.parametrize("name", SPACES)
def test_rows_say_what_decode_says(name):
    space, network = _make(name, (), 5)
    archs = _archs(space, 1000)
    for arch, rows in zip(archs[:50], np.asarray(jax.vmap(lambda a: _layout(space, a))(archs))):
        assert network.decode(rows) == space.decode(arch)


@pytest.mark.parametrize("shape, columns", [
    ((20,), ("source",) * 4), ((19,), ("source", "operation") * 2)])
def test_rows_refuse_other_archs(shape, columns):
    with pytest.raises(ValueError, match="must"):
        cell_rows(np.zeros(shape, np.int32), num_blocks=5, columns=columns)


def test_vmap_over_archs_and_drop_path():
    space, network = _make("pnas", ("skip_connect", "avg_pool_3x3"), 2)
    rows = np.stack([_layout(space, arch) for arch in _hard_cases(space)])
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = jax.tree.map(np.float32, _variables(network, x, rows[0]))

    def run(arch, rate):
        return network.apply(variables, x, arch, train=True, drop_path_rate=rate,
                             rngs={"drop_path": jax.random.key(1)}, mutable=["batch_stats"])[0]

    one = jax.jit(run)
    each = np.stack([one(arch, 0.0) for arch in rows])
    together = jax.jit(jax.vmap(run, (0, None)))(rows, 0.0)
    np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-4 * np.abs(each).max())
    identity = rows[0] * np.array([1, 1, 0, 0], np.int32)
    np.testing.assert_array_equal(one(identity, 0.9), one(identity, 0.0))  # nothing to drop
    pools = identity + np.array([0, 0, 1, 1], np.int32)
    assert not np.allclose(one(pools, 0.9), one(pools, 0.0))


@pytest.mark.parametrize("width, unless", [(2, None), (3, None), (4, 2), (8, 1)])
def test_an_input_passes_untouched_only_if_so_many_states_exist(width, unless):
    # 8 features are 4 states of 2, but a cell of 3 blocks has no 4 states to concatenate.
    cell = SlotCell(("skip_connect",), 3, False, 8, False, Source(0, width, 3), Source(0, 8, 3),
                    STYLES["pnas"])
    assert cell.input_layers[0]["previous_0"].unless == unless


def test_packing():
    trees = [{"a": np.arange(12.0).reshape(2, 2, 3)}, {}, {"b": -np.ones((2, 1)), "c": np.ones(2)}]
    shapes = [jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), t) for t in trees]
    pack = Packing(shapes)
    flat = pack.join(trees, 2)
    assert pack.size == 6 and flat.shape == (2, 8)
    chex.assert_trees_all_equal(pack.split(flat), trees)
    for number, tree in enumerate(trees):
        piece = pack.take(flat[1], jnp.int32(number))
        chex.assert_trees_all_equal(pack.cut(piece, number), jax.tree.map(lambda a: a[1], tree))
        doubled = jax.tree.map(lambda a: 2 * a[1], tree)
        row = pack.put(flat[1], jnp.int32(number), pack.fill(piece, doubled))
        expected = [doubled if i == number else jax.tree.map(lambda a: a[1], t)
                    for i, t in enumerate(trees)]
        chex.assert_trees_all_equal(
            [jax.tree.map(lambda a: a[0], t) for t in pack.split(row[None])], expected)


@pytest.mark.parametrize("change", [
    {"space": "darts"}, {"operations": ("conv_9x9",)}, {"num_blocks": 0}, {"features": 1},
    {"stem": "mnist"}, {"dropout": 1.0}])
def test_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TracedPairNetwork(**{"space": "nasnet"} | change)


@pytest.mark.parametrize("image, arch, match", [
    ((1, 8, 8, 3), (2, 3, 4), r"arch must be \[2, 5, 4\]"), ((8, 8, 3), (2, 5, 4), "x must be"),
    ((1, 2, 2, 3), (2, 5, 4), "take larger images")])
def test_refuses_inputs(image, arch, match):
    network = TracedPairNetwork("enas_micro", **SMALL)
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda: network.init(
            jax.random.key(0), jnp.zeros(image), jnp.zeros(arch, jnp.int32), train=False))


@pytest.mark.slow
def test_gradients_of_maxima_of_maxima_are_those_of_forward_mode():
    """XLA once compiled a wrong gradient of this fixed network, see `primitives.largest`."""
    operations = ("max_pool_3x3", "max_pool_7x7", "conv_1x1")
    space, network = _make("nasnet", operations, 5)
    conv = (0, 0, 2, 2, 0)  # both inputs, by 1x1 convolutions
    normal = [(0, 1, 2, 2, 0), (2, 1, 2, 2, 0), (1, 3, 1, 1, 0), (4, 3, 1, 2, 0), (4, 3, 0, 2, 0)]
    arch = np.array([normal, [conv] * 5], np.int32).reshape(-1)[:len(space.num_choices)]
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(3, 64, 64, 2))
        fixed = network.fixed(np.asarray(_layout(space, arch)))
        variables = _variables(fixed, x)
        random = np.random.default_rng(2)
        step = jax.tree.map(lambda a: random.normal(size=a.shape), variables["params"])
        loss = lambda params: _program(fixed)(params, variables["batch_stats"], x)[0]
        grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])
        along = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(step)))
        forward = jax.jit(lambda: jax.jvp(loss, (variables["params"],), (step,))[1],
                          compiler_options=QUICK)()
        np.testing.assert_allclose(along, forward, rtol=1e-9)
