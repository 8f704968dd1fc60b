"""The cells of NAS-Bench-NLP: counts of the table, and cells whose equations are known."""

import copy
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks import LSTM
from jaxnas.networks.recurrent import unroll
from jaxnas.networks.recurrent_recipes import RecipeCell, read_recipe

TABLE = Path(__file__).parent.parent / "data" / "nasbench_nlp_recipes.json.gz"
VOCABULARY, EMBEDDING, HIDDEN = 33278, 400, 600  # of the table's three layers, tied as AWD-LSTM


@pytest.fixture(scope="module")
def cells():
    """Recipe and number of parameters by id."""
    found = json.loads(gzip.decompress(TABLE.read_bytes()))["cells"]
    return {int(row["recipe_id"]): (row["recipe"], row["num_params"]) for row in found}


def test_counts_are_those_of_the_table(cells):
    assert len(cells) == 344
    for recipe, wanted in cells.values():
        total = VOCABULARY * EMBEDDING + VOCABULARY
        for size, hidden in ((EMBEDDING, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, EMBEDDING)):
            cell = RecipeCell(read_recipe(recipe), hidden)
            shapes = jax.eval_shape(lambda key: cell.init(key, size), jax.random.key(0))
            total += sum(leaf.size for leaf in shapes.values())
        assert total == wanted


def make(recipe, size=5, hidden=4):
    cell = RecipeCell(read_recipe(recipe), hidden)
    params = cell.init(jax.random.key(1), size)
    x = jax.random.normal(jax.random.key(2), (3, 2, size))
    state = tuple(jax.random.normal(jax.random.key(3 + i), (2, hidden))
                  for i in range(cell.num_states))
    return cell, params, x, state


def test_scan_is_the_loop(cells):
    cell, params, x, state = make(cells[1012816][0])  # three states, nodes out of order, a blend
    after, outputs = unroll(cell, params, x, state)
    for time, row in enumerate(cell.project(params, x)):
        state = cell.step(params, state, row, jnp.ones((2, 4)))
        np.testing.assert_allclose(outputs[time], state[0], atol=1e-6)
    for first, second in zip(after, state):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_vanilla_cell(cells):
    cell, params, x, (hidden,) = make(cells[1000000][0])
    expected = np.tanh(x[0] @ params["input"] + hidden @ params["recurrent"][0] + params["bias"])
    np.testing.assert_allclose(unroll(cell, params, x[:1], (hidden,))[1][0], expected, atol=1e-6)


def test_gru_cell(cells):
    cell, params, x, (hidden,) = make(cells[1000002][0])
    names = [node.name for node in cell.nodes if node.operation == "linear"]
    assert names == ["r", "z", "h_tilde"]
    ways = zip(np.split(np.asarray(x[0] @ params["input"]), 3, -1),
               np.asarray(params["recurrent"]), np.split(np.asarray(params["bias"]), 3))
    (rx, ru, rb), (zx, zu, zb), (nx, nu, nb) = ways
    h = np.asarray(hidden)
    reset, keep = (1 / (1 + np.exp(-v)) for v in (rx + h @ ru + rb, zx + h @ zu + zb))
    expected = keep * h + (1 - keep) * np.tanh(nx + (reset * h) @ nu + nb)
    np.testing.assert_allclose(unroll(cell, params, x[:1], (hidden,))[1][0], expected, atol=1e-6)


def test_lstm_of_the_table_is_ours_but_for_its_output_gate(cells):
    recipe = copy.deepcopy(cells[1000001][0])
    assert recipe["o_act"]["op"] == "activation_tanh"  # where an LSTM has a sigmoid
    recipe["o_act"]["op"] = "activation_sigm"
    cell, params, x, state = make(recipe)
    names = [node.name for node in cell.nodes if node.operation == "linear"]
    order = [names.index(name) for name in ("j", "f", "i", "o")]  # our gates i, f, g, o
    ours = {"input": jnp.concatenate([jnp.split(params["input"], 4, -1)[n] for n in order], -1),
            "recurrent": jnp.concatenate([params["recurrent"][n] for n in order], -1),
            "bias": jnp.concatenate([jnp.split(params["bias"], 4)[n] for n in order])}
    for first, second in zip(jax.tree.leaves(unroll(cell, params, x, state)),
                             jax.tree.leaves(unroll(LSTM(4), ours, x, state))):
        np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("recipe, message", [
    ({"h_new_0": {"op": "conv", "input": ["x"]}}, "the op of 'h_new_0' must be"),
    ({"h_new_0": {"op": "blend", "input": ["x"]}}, "must be a list of 3 names"),
    ({"h_new_1": {"op": "linear", "input": ["x"]}}, "new states must be"),
    ({"h_new_0": {"op": "linear", "input": ["h_prev_1"]}}, "inputs must be x"),
    ({"h_new_0": {"op": "linear", "input": ["a"]}, "a": {"op": "linear", "input": ["h_new_0"]}},
     "in a circle")])
def test_bad_recipes(recipe, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe)


def test_input_as_it_is_must_fit():
    recipe = {"h_new_0": {"op": "elementwise_sum", "input": ["x", "h_prev_0"]}}
    cell, params, x, state = make(recipe, size=4)
    np.testing.assert_allclose(unroll(cell, params, x[:1], state)[1][0], x[0] + state[0])
    cell, params, x, state = make(recipe, size=5)
    with pytest.raises(ValueError, match="reads x as it is"):
        unroll(cell, params, x, state)
