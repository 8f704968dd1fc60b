"""Recurrent cells: equations written by hand, scan and loop, fixed, traced, mixed and shared."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import published
from jaxnas.networks import recurrent
from jaxnas.networks.recurrent import GRU, LSTM
from jaxnas.networks.recurrent_highway import FixedHighway, MixedHighway, published_cell
from jaxnas.networks.recurrent_tree import NAS_CELL, FixedTree
from jaxnas.search_spaces import DARTSRNN, ENASRNN

T, B, E, H = 4, 3, 5, 6
unroll = jax.jit(recurrent.unroll, static_argnames=("cell", "remat"))
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (T, B, E))
H0, C0 = jax.random.normal(jax.random.key(2), (2, B, H))
STEPS = (("sigmoid", 0), ("relu", 1), ("identity", 0), ("tanh", 2))


def init(cell, scale=12.0):
    """Parameters large enough for the activations to matter."""
    return jax.tree.map(lambda p: scale * p, jax.jit(cell.init, static_argnums=1)(KEY, E))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def highway(params, steps, x, h, kept):
    """One time step of quark0/darts' cell, in float64."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    function = {"tanh": np.tanh, "sigmoid": sigmoid, "relu": lambda v: np.maximum(v, 0),
                "identity": lambda v: v}
    both = np.concatenate([x, h], -1) @ np.concatenate([p["input"], p["recurrent"]])
    gate, new = both[:, :H], both[:, H:]
    states = [h + sigmoid(gate) * (np.tanh(new) - h)]
    for i, (name, source) in enumerate(steps):
        product = states[source] @ p["nodes"][i]
        gate, new = sigmoid(product[:, :H]), function[name](product[:, H:])
        states.append(states[source] + gate * (new - states[source]))
    return np.mean([states[node] for node in kept], axis=0)


@pytest.mark.parametrize("kept", [None, (2, 4)])
def test_highway_is_its_equations(kept):
    cell = FixedHighway(STEPS, H, concat=kept)
    params = init(cell)
    (last,), outputs = unroll(cell, params, X, (H0,))
    hidden = np.asarray(H0, np.float64)
    for t in range(T):
        hidden = highway(params, STEPS, np.asarray(X[t]), hidden, kept or (1, 2, 3, 4))
        np.testing.assert_allclose(outputs[t], hidden, atol=2e-5)
    np.testing.assert_array_equal(last, outputs[-1])


@pytest.mark.parametrize("ours, theirs, gates", [
    (LSTM(H), nn.OptimizedLSTMCell(H), "ifgo"), (GRU(H), nn.GRUCell(H), "rzn")])
def test_lstm_and_gru_are_flax_cells(ours, theirs, gates):
    params = init(ours, 3.0)
    halves = {kind: dict(zip(gates, jnp.split(params[name], len(gates), -1)))
              for kind, name in (("i", "input"), ("h", "recurrent"), ("b", "bias"))}
    tree = {f"i{g}": {"kernel": halves["i"][g]} for g in gates}
    tree |= {f"h{g}": {"kernel": halves["h"][g]} for g in gates}
    for g in gates:  # flax's LSTM has its biases in the hidden part, its GRU in the input's
        tree[f"{'h' if len(gates) == 4 else 'i'}{g}"]["bias"] = halves["b"][g]
    if len(gates) == 3:
        tree["hn"]["bias"] = params["reset_bias"]
    _, outputs = unroll(ours, params, X, (H0, C0) if len(gates) == 4 else (H0,))
    carry = (C0, H0) if len(gates) == 4 else H0
    apply = jax.jit(theirs.apply)
    for t in range(T):
        carry, output = apply({"params": tree}, carry, X[t])
        np.testing.assert_allclose(outputs[t], output, atol=1e-6)


CELLS = [FixedHighway(STEPS, H), FixedTree(NAS_CELL, H), LSTM(H), GRU(H)]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
def test_scan_is_the_unrolled_loop_with_masks_constant_over_time(cell):
    params = init(cell)
    input_mask, hidden_mask = (jax.random.bernoulli(key, 0.5, (B, size)) * 2.0
                               for key, size in zip(jax.random.split(KEY), (E, H)))
    state = (H0, C0)[:len(cell.initial_state(B))]
    options = {"input_mask": input_mask, "hidden_mask": hidden_mask}
    last, outputs = unroll(cell, params, X, state, **options)
    step = jax.jit(lambda state, x: cell.step(
        params, state, cell.project(params, x * input_mask), hidden_mask))
    for t in range(T):
        state = step(state, X[t])
        np.testing.assert_allclose(outputs[t], state[0], atol=2e-6)
    chex.assert_trees_all_close(last, state, atol=2e-6)


def test_a_length_stops_the_state_and_gradients():
    cell = CELLS[0]
    params = init(cell)

    def total(params, x, length, remat):
        state, outputs = recurrent.unroll(cell, params, x, (H0,), length=length, remat=remat)
        return state[0].sum(), (state, outputs)

    gradient = jax.jit(jax.grad(total, has_aux=True), static_argnums=3)
    grads, (state, outputs) = gradient(params, X, jnp.int32(2), True)
    wanted, (short, first) = gradient(params, X[:2], None, False)
    chex.assert_trees_all_close((grads, state, outputs[:2]), (wanted, short, first), rtol=1e-5)
    chex.assert_trees_all_equal(unroll(cell, params, X, (H0,), length=jnp.int32(0))[0], (H0,))


def test_identities_with_closed_gates_return_the_hidden_state():
    # Products with a constant state: gates are sigmoid(-200) = 0, whatever the input is.
    cell = FixedHighway((("identity", 0), ("identity", 1), ("identity", 0)), H)
    closed = jnp.concatenate([jnp.full((H, H), -200.0), jnp.zeros((H, H))], 1)
    params = {"input": jnp.zeros((E, 2 * H)), "recurrent": closed,
              "nodes": jnp.stack([closed] * 3)}
    state, outputs = unroll(cell, params, X, (jnp.ones((B, H)),))
    np.testing.assert_array_equal(outputs, np.ones((T, B, H)))
    np.testing.assert_array_equal(state[0], np.ones((B, H)))


@pytest.mark.parametrize("space", [DARTSRNN(4), ENASRNN(4)], ids=lambda space: space.name)
def test_one_program_for_all_highways(space):
    traced = space.traced_cell(hidden_size=H)
    params = init(traced)
    run = jax.jit(chex.assert_max_traces(
        lambda arch: unroll(traced, params, X, (H0,), inputs=space.split(arch))[1], n=1))
    for arch in jax.vmap(space.sample)(jax.random.split(KEY, 2)):
        fixed = unroll(space.cell(arch, hidden_size=H), params, X, (H0,))[1]
        np.testing.assert_allclose(run(arch), fixed, atol=1e-5)


def test_mixed_cell_at_one_hot_weights_is_the_fixed_cell():
    space = DARTSRNN(4)
    mixed = space.mixed_cell(hidden_size=H, batch_norm=False)
    params = init(mixed)
    for arch in jax.vmap(space.sample)(jax.random.split(KEY, 2)):
        weights = space.one_hot(arch)
        _, found = unroll(mixed, params, X, (H0,), inputs=(weights,))
        _, wanted = unroll(space.cell(arch, hidden_size=H), params, X, (H0,))
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_mixed_cell_is_the_released_one():
    space = DARTSRNN(3)
    cell = MixedHighway(3, space.activations, H)
    params = init(cell, 5.0)
    weights = space.weights(jax.random.normal(KEY, space.alphas_shape))
    mask = jnp.where(jax.random.bernoulli(KEY, 0.7, (B, H)), 1 / 0.7, 0)
    (found,), _ = unroll(cell, params, X[:1], (H0,), inputs=(weights,), hidden_mask=mask)

    def norm(s):
        return (s - s.mean(0)) / np.sqrt(s.var(0) + 1e-5)

    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    w, h, m = (np.asarray(a, np.float64) for a in (weights, H0, mask))
    product = np.asarray(X[0]) @ p["input"] + (h * m) @ p["recurrent"]
    states = [norm(h + sigmoid(product[:, :H]) * (np.tanh(product[:, H:]) - h))]
    functions = [np.tanh, lambda v: np.maximum(v, 0), sigmoid, lambda v: v]
    offset = 0
    for i in range(3):
        total = 0
        for j, s in enumerate(states):
            c, new = np.split((s * m) @ p["nodes"][i], 2, -1)
            for k, f in enumerate(functions, 1):  # column 0 is none
                total = total + w[offset + j, k] * (s + sigmoid(c) * (f(new) - s))
        states.append(norm(total))
        offset += i + 1
    np.testing.assert_allclose(found, np.mean(states[1:], 0), atol=2e-4)


def test_shared_weights_are_read_and_changed_where_an_architecture_uses_them():
    space = ENASRNN(4)
    shared = space.shared_cell(hidden_size=H)
    params = init(shared)
    assert params["nodes"].shape == (10, 4, H, 2 * H)
    arch = space.encode("relu 0|tanh 1|relu 0|identity 3")
    inputs = space.split(jnp.asarray(arch))
    own = shared.select(params, *inputs)
    rows = [(0, 1), (1 + 1, 0), (3 + 0, 1), (6 + 3, 3)]  # edges, activations
    for node, place in enumerate(rows):
        np.testing.assert_array_equal(own["nodes"][node], params["nodes"][place])
    wanted = unroll(space.cell(arch, hidden_size=H), own, X, (H0,))[1]
    loss, grads = jax.value_and_grad(
        lambda p: jnp.sum(unroll(shared, p, X, (H0,), inputs=inputs)[1]))(params)
    np.testing.assert_allclose(loss, wanted.sum(), rtol=1e-5)
    moved = np.asarray(grads["nodes"] != 0).any((-1, -2))
    assert [tuple(map(int, place)) for place in np.argwhere(moved)] == rows


def test_published_cells_are_built():
    for name, (text, _) in published.RECURRENT_TEXT.items():
        assert len(published_cell(name, 4).steps) == text.count("|") + 1
    assert published_cell("ENAS_RNN_DARTS", 4).concat == (2, 5, 6, 9, 10, 11)
    with pytest.raises(ValueError, match="choose one of DARTS_RNN_V1"):
        published_cell("DARTS_V1", 4)


@pytest.mark.parametrize("make, message", [
    (lambda: FixedHighway((), 4), "steps must hold"),
    (lambda: FixedHighway((("tanh", 1),), 4), "step 1 must be"),
    (lambda: FixedHighway((("none", 0),), 4), "step 1 must be"),
    (lambda: FixedHighway(STEPS, 4, concat=(0, 1)), "concat must be nodes"),
    (lambda: LSTM(0), "hidden_size")])
def test_wrong_cells_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
