"""The shared network of ENAS micro equals a plain reference; weights it does not use are left."""

import functools

import chex
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.layers import Operation
from jaxnas.networks.micro_shared import SharedMicroNetwork
from jaxnas.search_spaces.enas_micro import ENASMicro

SMALL = {"features": 2, "num_classes": 3}
IMAGES = (3, 8, 8, 1)


def archs_of(space, count, seed=0):
    return np.random.default_rng(seed).integers(
        0, space.num_choices, (count, len(space.num_choices))).astype(np.int32)


def shapes_of(network, images=IMAGES):
    arch = jax.ShapeDtypeStruct((8 * network.num_blocks,), jnp.int32)
    return jax.eval_shape(lambda: network.lazy_init(
        jax.random.key(0), jax.ShapeDtypeStruct(images, jnp.float32), arch, train=False))


def random_params(network):
    """Return float64 weights of ordinary size, none at a special value such as a scale of 1."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda a: random.uniform(-1, 1, a.shape), shapes_of(network)["params"])


def loss_of(logits):
    return jnp.sum(jnp.sin(jnp.arange(logits.size).reshape(logits.shape)) * logits)


# The reference: one loop over the released code's layers and blocks, by lax.conv. `reads` collects
# which slices of which weights were read.


def norm(x, scale, bias):
    return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias


def conv(x, kernel, stride=1, groups=1):
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", feature_group_count=groups,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def reduce_by(x, layer):
    shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    halves = [conv(part, kernel[None, None], 2)
              for part, kernel in zip((x, shifted), layer["kernel"])]
    return norm(jnp.concatenate(halves, -1), layer["scale"], layer["bias"])


def project(x, layer):
    return norm(conv(jax.nn.relu(x), layer["kernel"][None, None]), layer["scale"], layer["bias"])


def window(x, initial, function):
    return lax.reduce_window(x, initial, function, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def reference_operation(stage, cell, x, name, block, side, source, sizes, reads):
    if name == "skip_connect":
        return x
    if name == "max_pool_3x3":
        return window(x, -jnp.inf, lax.max)
    if name == "avg_pool_3x3":
        return window(x, 0.0, lax.add) / window(jnp.ones_like(x), 0.0, lax.add)
    entry = sum(2 * (other + 2) for other in range(block)) + side * (block + 2) + source
    size, features = int(name[-1]), x.shape[-1]
    bank = sizes.index(size)
    reads.add(("bank", cell, size, bank, entry))
    for half in range(2):
        depth = stage[f"depthwise_{size}"][cell, entry, half]
        x = conv(jax.nn.relu(x), depth.reshape(size, size, 1, features), groups=features)
        x = conv(x, stage["pointwise"][cell, bank, entry, half][None, None])
        x = norm(x, stage["scale"][cell, bank, entry, half], stage["bias"][cell, bank, entry, half])
    return x


def reference_cell(stage, cell, before, current, blocks, operations, reads):
    sizes = [int(name[-1]) for name in operations if name.startswith("sep")]
    states, used = [before, current], set()
    for block, (source_0, operation_0, source_1, operation_1) in enumerate(blocks):
        total = 0.0
        for side, (source, operation) in enumerate(((source_0, operation_0),
                                                    (source_1, operation_1))):
            used.add(source)
            total += reference_operation(stage, cell, states[source], operations[operation], block,
                                         side, source, sizes, reads)
        states.append(total)
    loose = [state for state in range(len(states)) if state not in used]
    reads.update(("output", cell, state) for state in loose)
    joined = jax.nn.relu(jnp.concatenate([states[state] for state in loose], -1))
    output = stage["output"]
    kernel = jnp.concatenate([output["kernel"][cell, state] for state in loose])
    return norm(conv(joined, kernel[None, None]), output["scale"][cell], output["bias"][cell])


def reference(params, x, arch, network, reads):
    """Return logits; `reads` [stage] are sets."""
    normal, reduction = arch.reshape(2, -1, 4).tolist()
    count = network.cells_per_stage
    stem = params["stem"]
    x = norm(conv(x, stem["kernel"]), stem["scale"], stem["bias"])
    layers, stage, number = [x, x], 0, 0
    for cell in range(3 * count + 2):
        blocks = normal
        if cell in (count, 2 * count + 1):
            stage, number, blocks = stage + 1, 0, reduction
            before = reduce_by(jax.nn.relu(x), params[f"reduce_{stage}_before"])
            current = reduce_by(x, params[f"reduce_{stage}"])
            layers = [x, current]
        elif cell == 0:
            before, current = (project(x, params[f"calibrate_{i}"]) for i in range(2))
        else:
            before, current = layers
            if cell == 1:
                before = project(before, params["calibrate_2"])
        x = reference_cell(params[f"stage_{stage}"], number, before, current, blocks,
                           network.operations, reads[stage])
        layers, number = [layers[1], x], number + 1
    return jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"]


def masks_of(params, reads):
    """Write what the reference read as arrays of the parameters' shapes."""
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    for number, stage_reads in enumerate(reads):
        mask = masks[f"stage_{number}"]
        for name in mask:
            if name != "output":
                mask[name][:] = False
        mask["output"]["kernel"][:] = False
        for kind, cell, *where in stage_reads:
            if kind == "output":
                mask["output"]["kernel"][cell, where[0]] = True
                continue
            size, bank, entry = where
            mask[f"depthwise_{size}"][cell, entry] = True
            for name in ("pointwise", "scale", "bias"):
                mask[name][cell, bank, entry] = True
    return masks


class Compared:
    """A network and the reference of it in float64, on the same images and weights."""

    def __init__(self, network):
        self.network, self.params = network, random_params(network)
        x = self.x = np.random.default_rng(2).normal(size=IMAGES)

        @chex.assert_max_traces(n=1)  # one compilation for all archs
        def loss(params, arch):
            logits = network.apply({"params": params}, x, arch, train=True)
            return loss_of(logits), logits

        self.run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        self.used = jax.jit(lambda arch: network.used(self.params, arch))

    def reference(self, arch, reads):
        def loss(params):
            logits = reference(params, self.x, arch, self.network, reads)
            return loss_of(logits), logits

        return loss

    def check_masks(self, arch, grads, reads=None):
        """Check that gradients are zero where masks are, and that those are what was read."""
        masks = jax.tree.map(lambda mask, leaf: np.broadcast_to(mask, leaf.shape),
                             self.used(arch), self.params)
        if reads is not None:
            chex.assert_trees_all_equal(masks, masks_of(self.params, reads))
        for leaf, mask in zip(jax.tree.leaves(grads), jax.tree.leaves(masks)):
            assert not np.any(np.asarray(leaf)[~mask])


# Blocks that read and do everything: both convolutions, both pools, the identity, a free input.
COVERING = np.array([[[0, 0, 1, 1], [2, 2, 1, 4]], [[0, 3, 0, 0], [0, 1, 2, 4]]], np.int32)


def test_equals_the_reference_in_one_program_for_all_archs():
    space = ENASMicro(2)
    with jax.enable_x64(True):
        compared = Compared(space.shared_network(cells_per_stage=2, **SMALL))
        params, reads, random = compared.params, [set(), set(), set()], np.random.default_rng(3)
        (_, logits), grads = compared.run(params, COVERING.reshape(-1))
        expected = jax.jit(compared.reference(COVERING, reads))
        np.testing.assert_allclose(logits, expected(params)[1], rtol=1e-8, atol=1e-9)
        compared.check_masks(COVERING.reshape(-1), grads, reads)
        for _ in range(4):  # central differences along random directions
            way = jax.tree.map(lambda a: random.normal(size=a.shape), params)
            there, back = (expected(jax.tree.map(lambda a, b: a + step * b, params, way))[0]
                           for step in (1e-6, -1e-6))
            along = sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(grads),
                                                      jax.tree.leaves(way)))
            np.testing.assert_allclose(along, (there - back) / 2e-6, rtol=1e-5)
        losses = set()
        for arch in archs_of(space, 20):
            (loss, _), grads = compared.run(params, arch)
            compared.check_masks(arch, grads)
            losses.add(float(loss))
        assert len(losses) > 15


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"num_blocks": 2}, {"num_blocks": 3, "cells_per_stage": 1},
    {"num_blocks": 3, "cells_per_stage": 3},
    {"num_blocks": 2, "operations": ("skip_connect", "sep_conv_5x5", "max_pool_3x3")},
    {"num_blocks": 2, "method": "conv"}, {"num_blocks": 1, "unroll": True}], ids=str)
def test_equals_the_reference_for_random_archs(options):
    with jax.enable_x64(True):
        compared = Compared(SharedMicroNetwork(**options, **SMALL))
        network, params = compared.network, compared.params
        for arch in archs_of(ENASMicro(network.num_blocks, network.operations), 2):
            reads = [set(), set(), set()]
            (_, logits), grads = compared.run(params, arch)
            (_, expected), wanted = jax.jit(
                jax.value_and_grad(compared.reference(arch, reads), has_aux=True))(params)
            np.testing.assert_allclose(logits, expected, rtol=1e-8, atol=1e-9)
            largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
            chex.assert_trees_all_close(grads, wanted, rtol=1e-7, atol=1e-9 * largest)
            compared.check_masks(arch, grads, reads)


@pytest.mark.slow
def test_loops_over_cells_equal_cells_by_themselves():
    arch = np.array([[[0, 0, 1, 1]], [[1, 3, 0, 0]]], np.int32)
    x = np.random.default_rng(2).normal(size=IMAGES)
    found = []
    with jax.enable_x64(True):
        for unroll in (False, True):
            network = SharedMicroNetwork(num_blocks=1, unroll=unroll, cells_per_stage=3, **SMALL)
            found.append(jax.jit(network.apply, static_argnames="train")(
                {"params": random_params(network)}, x, arch, train=False))
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-10)


def test_the_number_of_parameters_is_the_released_codes():
    network = ENASMicro().shared_network(features=20, cells_per_stage=2)
    variables = shapes_of(network, (1, 32, 32, 3))
    assert list(variables) == ["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 5_373_140


@pytest.mark.parametrize("blocks", [1, 5, 6])
def test_the_number_of_parameters_in_closed_form(blocks):
    network, width = SharedMicroNetwork(num_blocks=blocks, features=3, cells_per_stage=1), 3
    params = shapes_of(network)["params"]
    sources = sum(block + 2 for block in range(blocks))

    def cell(width):
        bank = sum(2 * (size * size * width + width**2 + 2 * width) for size in (3, 5))
        return 2 * sources * bank + (blocks + 2) * width**2 + 2 * width

    for stage, cells in enumerate((1, 2, 2)):
        found = sum(leaf.size for leaf in jax.tree.leaves(params[f"stage_{stage}"]))
        assert found == cells * cell(width * 2**stage)


def test_there_are_no_running_statistics_and_the_classifier_is_dropped_out():
    network = SharedMicroNetwork(num_blocks=1, cells_per_stage=1, dropout_rate=0.5, **SMALL)
    params = shapes_of(network)["params"]

    def run(params, train):
        variables = {"params": params, "batch_stats": {}}  # as `weight_sharing` has them
        return network.apply(variables, jnp.zeros(IMAGES), np.zeros(8, np.int32), train=train,
                             mutable=["batch_stats"])

    logits, updated = jax.eval_shape(functools.partial(run, train=False), params)
    assert logits.shape == (3, 3) and updated == {"batch_stats": {}}
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(functools.partial(run, train=True), params)


def test_masks_may_be_traced():
    space = ENASMicro()
    network = space.shared_network(**SMALL)
    archs = archs_of(space, 3)
    params = shapes_of(network)["params"]
    masks = jax.jit(jax.vmap(lambda arch: network.used(params, arch)))(archs)
    # Ten edges a cell, of which those of convolutions have an entry of a bank each.
    separable = (archs.reshape(3, 2, 5, 4)[..., 1::2] < 2).sum((2, 3))  # [archs, cells]
    for stage, wanted in enumerate((2 * separable[:, 0], separable[:, 1] + 2 * separable[:, 0])):
        found = masks[f"stage_{stage}"]["pointwise"].sum(axis=tuple(range(1, 7)))
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("options, words", [
    ({"operations": ("sep_conv_3x3", "conv_1x1")}, "operations must be different names among"),
    ({"operations": ("sep_conv_3x3",) * 2}, "operations must be different names among"),
    ({"operations": ("avg_pool_3x3", "skip_connect")}, "operations must have one of"),
    ({"num_blocks": 0}, "num_blocks must be 1 or more"),
    ({"features": 0}, "features must be 1 or more"),
    ({"cells_per_stage": 0}, "cells_per_stage must be 1 or more"),
    ({"num_classes": 0}, "num_classes must be 1 or more"),
    ({"dropout_rate": 1.0}, "dropout_rate must be in"),
    ({"method": "fft"}, "method must be one of"),
])
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        SharedMicroNetwork(**options)


@pytest.mark.parametrize("images, length, options, words", [
    ((2, 6, 8, 3), 40, {}, "divisible by 4"), ((2, 8, 8, 3), 32, {}, r"arch must be \[40\]"),
    ((2, 8, 8, 3), 40, {"drop_path_rate": 0.1}, "drop_path_rate must be 0")])
def test_inputs_are_checked(images, length, options, words):
    with pytest.raises(ValueError, match=words):
        SharedMicroNetwork().apply({}, np.zeros(images), np.zeros(length, np.int32), train=True,
                                   **options)


class Repeat(Operation):
    """Repeats the first channel: no weights."""

    def __call__(self, x, *, train):
        return jnp.tile(x[:, ::self.stride, ::self.stride, :1], self.features)

    @nn.nowrap
    def cost(self, shape):
        return Cost(0, 0)


def test_spaces_with_own_operations_are_refused():
    space = ENASMicro(1, ("sep_conv_3x3", "repeat"), own={"repeat": Repeat})
    with pytest.raises(ValueError, match="own operations"):
        space.shared_network()
