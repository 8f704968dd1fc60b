"""Mixed cells and the supernet: counts, an independent cell, and one answer from every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.networks.mixed import CONVOLUTIONS, MixedCell, edge_index, num_edges
from jaxnas.networks.supernet import Supernet, reduction_layers
from jaxnas.search_spaces.darts import OPERATIONS

FEW = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


def num_parameters(net, image):
    weights = jnp.zeros((2, num_edges(net.num_nodes), len(net.operations)))
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(image), weights)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "channels, classes, count", [(3, 10, 1_930_618), (1, 10, 1_929_754), (3, 100, 1_953_748)]
)
def test_parameter_counts(channels, classes, count):
    for scan in (True, False):
        net = Supernet(OPERATIONS, num_classes=classes, scan_edges=scan)
        assert num_parameters(net, (2, 32, 32, channels)) == count
    s2 = Supernet(("skip_connect", "sep_conv_3x3"))
    assert num_parameters(s2, (2, 32, 32, 3)) == 665_466  # space S2, specification 6.2


def test_layout():
    assert reduction_layers(8) == (2, 5) and reduction_layers(20) == (6, 13)
    assert [edge_index(node, 0) for node in range(4)] == [0, 2, 5, 9] and num_edges(4) == 14


def plain_cell(params, s0, s1, weights, operations, reduction):
    """The cell as the specification writes it, one operation at a time, with `lax`."""

    def norm(x):
        mean = x.mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean((0, 1, 2)) + 1e-5)

    def conv(x, kernel, stride=1, dilation=1, groups=1):
        pad = dilation * (kernel.shape[0] - 1) // 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), rhs_dilation=(dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )

    def pool(x, initial, combine, stride):
        pads = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, initial, combine, (1, 3, 3, 1), (1, stride, stride, 1), pads)

    def operation(name, x, edge, node, source, stride):
        if name == "max_pool_3x3":
            return norm(pool(x, -jnp.inf, lax.max, stride))
        if name == "avg_pool_3x3":
            total = pool(x, 0.0, lax.add, stride)
            return norm(total / pool(jnp.ones_like(x), 0.0, lax.add, stride))
        if name == "skip_connect":
            if stride == 1:
                return x
            kernel = params["skip_connect_kernel"][2 * node + source]
            x = jax.nn.relu(x)
            halves = [x[:, ::2, ::2] @ kernel[0], x[:, 1::2, 1::2] @ kernel[1]]
            return norm(jnp.concatenate(halves, -1))
        _, dilation, blocks = CONVOLUTIONS[name]
        for block in range(blocks):
            depth = params[f"{name}_depthwise_{block}"][edge][:, :, None]
            point = params[f"{name}_pointwise_{block}"][edge][None, None]
            x = conv(jax.nn.relu(x), depth, stride, dilation, x.shape[-1])
            x, stride = norm(conv(x, point)), 1
        return x

    states = [s0, s1]
    for node in range(4):
        total = 0.0
        for source, state in enumerate(states):
            edge = edge_index(node, source)
            stride = 2 if reduction and source < 2 else 1
            for column, name in enumerate(operations):
                if name != "none":
                    value = operation(name, state, edge, node, source, stride)
                    total += weights[edge, column] * value
        states.append(total)
    return jnp.concatenate(states[2:], -1)


@pytest.mark.parametrize("scan_edges, reduction", [
    (True, False), (True, True),
    *(pytest.param(False, reduction, marks=pytest.mark.slow) for reduction in (False, True))])
def test_cell_equals_the_plain_one(reduction, scan_edges):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        s0, s1 = (jax.random.normal(k, (2, 8, 8, 4)) for k in keys[:2])
        weights = jax.nn.softmax(jax.random.normal(keys[2], (14, 8)))
        cell = MixedCell(4, OPERATIONS, reduction=reduction, scan_edges=scan_edges)
        variables = jax.tree.map(
            lambda a: a.astype(jnp.float64), cell.init(keys[3], s0, s1, weights)
        )
        apply = jax.jit(cell.apply)
        got = apply(variables, s0, s1, weights)
        want = plain_cell(variables["params"], s0, s1, weights, OPERATIONS, reduction)
        assert got.shape == ((2, 4, 4, 16) if reduction else (2, 8, 8, 16))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        one_hot = jax.nn.one_hot(jnp.arange(14) % 8, 8, dtype=jnp.float64)
        np.testing.assert_allclose(
            apply(variables, s0, s1, one_hot),
            plain_cell(variables["params"], s0, s1, one_hot, OPERATIONS, reduction),
            rtol=1e-9, atol=1e-9,
        )


@pytest.mark.slow  # three supernets to compile: more than a minute
def test_every_form_gives_one_answer():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        weights = jax.nn.softmax(jax.random.normal(jax.random.key(2), (2, 5, 3)))
        forms = [
            {"scan_cells": False},
            {"scan_cells": True, "remat": True},
            {"scan_cells": True, "method": "conv"},
        ]
        answers, params = [], None
        for form in forms:
            net = Supernet(
                ("none", "skip_connect", "sep_conv_3x3"), features=2, num_layers=6, num_nodes=2,
                num_classes=3, **form,
            )
            if params is None:
                params = jax.tree.map(
                    lambda a: a.astype(jnp.float64), net.init(jax.random.key(3), x, weights)
                )

            def loss(params, weights, net=net):
                return jnp.sum(net.apply(params, x, weights) ** 2)

            answers.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, weights))
        for answer in answers[1:]:
            for a, b in zip(jax.tree.leaves(answer), jax.tree.leaves(answers[0])):
                np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("operations", [
    ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
    pytest.param(OPERATIONS, marks=pytest.mark.slow)], ids=["few", "all"])
def test_second_order_equals_differences_of_the_first(operations, remat):
    # Inside loops: JAX 0.10 has mixed up residuals there, silently. See `depthwise`, `pooling`.
    with jax.enable_x64(True):
        cell = MixedCell(2, operations, num_nodes=2, scan_edges=True, remat=remat)
        keys = jax.random.split(jax.random.key(5), 6)
        inputs, directions = (
            tuple(jax.random.normal(key, (2, 4, 4, 2)) for key in pair) for pair in (
                keys[:2], keys[2:4]))
        alphas = jax.random.normal(keys[4], (5, len(operations)))
        params = jax.tree.map(lambda a: a.astype(jnp.float64), cell.init(keys[5], *inputs, alphas))

        def loss(inputs, alphas):
            def twice(states, _):
                output = cell.apply(params, *states, jax.nn.softmax(alphas))
                return (states[1], output[..., :2] + output[..., 2:]), None

            states, _ = lax.scan(twice, inputs, None, length=2)
            return jnp.sum(jnp.sin(states[1]))

        @jax.jit
        def first(inputs, alphas):
            return jax.grad(loss, 1)(inputs, alphas)

        @jax.jit
        def product(alphas):
            def directional(alphas):
                grads = jax.grad(loss)(inputs, alphas)
                return sum(map(jnp.vdot, grads, directions))

            return jax.grad(directional)(alphas)

        step = 1e-6  # crosses hardly a kink of ReLU or the maximum
        ends = [first(jax.tree.map(lambda a, b: a + sign * step * b, inputs, directions), alphas)
                for sign in (1, -1)]
        want = (ends[0] - ends[1]) / (2 * step)
        assert np.abs(want).max() > 1e-2
        np.testing.assert_allclose(product(alphas), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow  # 20 s each; test_edge_loop.py has the loop alone
@pytest.mark.parametrize("reduction, form", [
    (True, {"scan_edges": True, "remat": True}), (False, {"scan_edges": True, "remat": True}),
    (True, {"scan_edges": True}), (True, {"remat": True}), (True, {}), (False, {})])
def test_forward_mode_then_reverse_equals_reverse_twice(reduction, form):
    operations = ("skip_connect", "max_pool_3x3", "sep_conv_3x3")
    with jax.enable_x64(True):
        cell = MixedCell(2, operations, num_nodes=2, reduction=reduction)
        keys = jax.random.split(jax.random.key(5), 4)
        inputs = [jax.random.normal(key, (2, 8, 8, 2)) for key in keys[:2]]
        mixing = jax.nn.softmax(jax.random.normal(keys[2], (5, len(operations))))
        params = jax.tree.map(lambda a: a.astype(jnp.float64), cell.init(keys[3], *inputs, mixing))
        along = jax.tree.map(jnp.cos, params)

        def loss(cell, params, mixing):
            return jnp.sum(jnp.sin(cell.apply(params, *inputs, mixing)))

        def forward(mixing):
            changed = cell.clone(forward_mode=True, **form)
            return jax.jvp(lambda p: loss(changed, p, mixing), (params,), (along,))[1]

        def reverse(mixing):
            grads = jax.grad(lambda p: loss(cell, p, mixing))(params)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, along)))

        found, wanted = (jax.jit(jax.value_and_grad(f))(mixing) for f in (forward, reverse))
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-10)
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-9, atol=1e-11)


def test_depth_does_not_grow_the_program():
    def lines(num_layers):
        net = Supernet(FEW, features=2, num_layers=num_layers)
        weights = jnp.zeros((2, 14, 4))
        x = jnp.zeros((2, 8, 8, 3))
        params = jax.eval_shape(net.init, jax.random.key(0), x, weights)
        lowered = jax.jit(jax.grad(lambda p: net.apply(p, x, weights).sum())).lower(params)
        return lowered.as_text().count("\n")

    assert lines(20) < 1.2 * lines(8)


@pytest.mark.parametrize(
    "options, shape, words",
    [
        ({"num_layers": 2}, (2, 8, 8, 3), "3 or more"),
        ({"features": 3}, (2, 8, 8, 3), "even"),
        ({}, (2, 10, 8, 3), "divisible by 4"),
        ({"operations": ("none",)}, (2, 8, 8, 3), "more than"),
        ({"operations": ("skip_connect", "conv_7x1_1x7")}, (2, 8, 8, 3), "among"),
    ],
)
def test_errors(options, shape, words):
    net = Supernet(**({"operations": FEW, "features": 2, "num_layers": 3} | options))
    with pytest.raises(ValueError, match=words):
        num_parameters(net, shape)
