"""Policies over architectures: independent logits, and the LSTM controller of NAS with RL.

Each gives `base.Policy` on one architecture; `jax.vmap` makes batches, populations of parameters
and sweeps over float hyper-parameters of it. A policy is a table of log-probabilities [L, K], K the
most choices that a decision has; columns that a decision lacks have probability zero, and take no
part in any gradient.

A decision is drawn by inverting its cumulative distribution at one 32-bit uniform, a K-th of the
random bits of the Gumbel trick. A probability is met up to 2 ** -23.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas import mutations
from jaxnas.base import Policy, PyTree

# (log-probabilities [K], choices of the decision [], input of the decision []) -> decision [] int32
Choose = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_ABSENT = -1e9  # exp() is 0; -inf would give 0 * inf = NaN in an entropy


def independent_logits(
    num_choices: tuple[int, ...], *, scale: float | jax.Array = 1e-3
) -> Policy:
    """One categorical distribution for each decision, none looking at another.

    The policy of REINFORCE in NAS-Bench-201 (https://arxiv.org/abs/2001.00326).

    Args:
      num_choices: [L].
      scale: of the initial logits, scale * N(0, 1).

    Returns:
      Policy whose params are the logits [L, K] float32.

    Raises:
      ValueError: no decisions, choices not in [1, 65536], or a negative scale.
    """
    mutations.check_num_choices(num_choices)
    if isinstance(scale, (int, float)) and not scale >= 0:
        raise ValueError(f"scale must be 0 or more, got {scale}.")
    counts = np.array(num_choices, np.int32)
    shape = (counts.size, counts.max())

    def init(key: jax.Array) -> jax.Array:
        return scale * jax.random.normal(key, shape)

    def sample(key: jax.Array, params: jax.Array) -> jax.Array:
        uniforms = jax.random.uniform(key, counts.shape)
        return invert(masked_log_softmax(params, counts), counts, uniforms)

    def table(params: jax.Array, arch: jax.Array) -> jax.Array:
        del arch  # nothing is conditioned on it
        return masked_log_softmax(params, counts)

    return _policy(init, sample, table, counts)


def lstm_controller(
    num_choices: tuple[int, ...],
    *,
    hidden_size: int = 35,
    num_layers: int = 2,
    init_range: float | jax.Array = 0.08,
    temperature: float | jax.Array = 1.0,
    tanh_constant: float | jax.Array | None = None,
) -> Policy:
    """An LSTM that makes the decisions one by one, each seeing all before it.

    The defaults are the controller of Zoph & Le, 2017, section 3.2
    (https://arxiv.org/abs/1611.01578), without its attention over skip connections: a skip is a
    decision with two choices here. NASNet's (https://arxiv.org/abs/1707.07012) is `hidden_size=100,
    num_layers=1, init_range=0.1`. Neither paper tells how wide embeddings are or whether there are
    biases: embeddings are as wide as the hidden state and nothing has a bias, as in the code that
    ENAS (https://arxiv.org/abs/1802.03268) published.

    Args:
      num_choices: [L].
      hidden_size: H.
      num_layers: of the LSTM.
      init_range: all weights start uniform in [-init_range, init_range).
      temperature: divides the logits.
      tanh_constant: C in C * tanh(logits / temperature), which bounds the logits; None does not.
        ENAS has C = 1.5 or 1.1.

    Returns:
      Policy whose params are those of `LSTMController`.

    Raises:
      ValueError: no decisions, choices not in [1, 65536], or an option that is not positive.
    """
    mutations.check_num_choices(num_choices)
    for name, value in (
        ("hidden_size", hidden_size), ("num_layers", num_layers), ("init_range", init_range),
        ("temperature", temperature), ("tanh_constant", tanh_constant),
    ):  # fmt: skip
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
    counts = np.array(num_choices, np.int32)
    module = LSTMController(tuple(num_choices), hidden_size, num_layers)

    def log_softmax(logits: jax.Array, count: jax.Array) -> jax.Array:
        logits = logits / temperature
        if tanh_constant is not None:
            logits = tanh_constant * jnp.tanh(logits)
        return masked_log_softmax(logits, count)

    def init(key: jax.Array) -> PyTree:
        arch = jnp.zeros(counts.shape, jnp.int32)
        variables = jax.eval_shape(lambda: module.init(key, arch, log_softmax, given))
        shapes, structure = jax.tree.flatten(variables["params"])
        # One draw for all of them: Flax's one for each compiles 20 times as long.
        ends = np.cumsum([math.prod(leaf.shape) for leaf in shapes])
        drawn = jax.random.uniform(key, (ends[-1],), minval=-init_range, maxval=init_range)
        parts = jnp.split(drawn, ends[:-1])
        return jax.tree.unflatten(
            structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, shapes)])

    def decide(params: PyTree, inputs: jax.Array, choose: Choose) -> tuple[jax.Array, jax.Array]:
        outputs: Any = module.apply({"params": params}, inputs, log_softmax, choose)
        return outputs

    def sample(key: jax.Array, params: PyTree) -> jax.Array:
        return decide(params, jax.random.uniform(key, counts.shape), invert)[0]

    def table(params: PyTree, arch: jax.Array) -> jax.Array:
        return decide(params, arch, given)[1]

    return _policy(init, sample, table, counts)


class LSTMController(nn.Module):
    """One loop over the decisions, which draws an architecture or follows one that is given.

    Parameters, all float32; `init` draws them uniform in [-1, 1), `lstm_controller` in its range:
      lstm: [num_layers, 2 H, 4 H], from input and hidden state to the gates i, f, o and g.
      embeddings: [L, K, H]; table l holds what choices of decision l - 1 are to decision l. Table 0
        holds the learned first input in its row 0; its other rows are never read.
      softmax: [L, H, K], from the last layer's output to the logits of decision l.
    """

    num_choices: tuple[int, ...]
    hidden_size: int
    num_layers: int

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        log_softmax: Callable[[jax.Array, jax.Array], jax.Array],
        choose: Choose,
    ) -> tuple[jax.Array, jax.Array]:
        """Make the decisions.

        Args:
          inputs: [L], what `choose` is given: uniforms to draw from, or the decisions themselves.
          log_softmax: (logits [K], choices of the decision []) -> log-probabilities [K].
          choose: (log-probabilities [K], choices [], input []) -> decision [] int32.

        Returns:
          arch [L] int32 and the log-probabilities [L, K] float32 of all decisions, each given
          the ones before it.
        """
        length, widest, size = len(self.num_choices), max(self.num_choices), self.hidden_size
        lstm = self.param("lstm", _unit, (self.num_layers, 2 * size, 4 * size))
        embeddings = self.param("embeddings", _unit, (length, widest, size))
        softmax = self.param("softmax", _unit, (length, size, widest))

        def step(carry, decision):
            previous, states = carry
            embedding, kernel, count, value = decision
            # A product with a one-hot rather than a gather: its gradient is no scatter.
            x = jax.nn.one_hot(previous, widest) @ embedding
            new_states = []
            for (hidden, cell), weights in zip(states, lstm):
                gates = jnp.concatenate([x, hidden]) @ weights
                i, f, o, g = jnp.split(gates, 4)
                cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
                x = nn.sigmoid(o) * jnp.tanh(cell)
                new_states.append((x, cell))
            log_probs = log_softmax(x @ kernel, count)
            choice = choose(log_probs, count, value)
            return (choice, tuple(new_states)), (choice, log_probs)

        zeros = jnp.zeros(size)
        start = (jnp.int32(0), ((zeros, zeros),) * self.num_layers)
        counts = jnp.array(self.num_choices, jnp.int32)
        return lax.scan(step, start, (embeddings, softmax, counts, inputs))[1]


def _policy(
    init: Callable[[jax.Array], PyTree],
    sample: Callable[[jax.Array, PyTree], jax.Array],
    table: Callable[[PyTree, jax.Array], jax.Array],
    counts: np.ndarray,
) -> Policy:
    """Make a policy of the function (params, arch [L]) -> log-probabilities [L, K]."""

    def log_prob(params: PyTree, arch: jax.Array) -> jax.Array:
        chex.assert_shape(arch, counts.shape)
        log_probs = table(params, arch)
        chosen = jnp.arange(counts.max()) == arch[:, None]
        return jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1)

    def entropy(params: PyTree, arch: jax.Array) -> jax.Array:
        chex.assert_shape(arch, counts.shape)
        log_probs = table(params, arch)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    return Policy(init, sample, log_prob, entropy)


def _unit(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0)


def given(log_probs: jax.Array, count: jax.Array, value: jax.Array) -> jax.Array:
    """Take a decision that is given, whatever its log-probabilities [K]: [] -> []."""
    del log_probs, count
    return value


def masked_log_softmax(logits: jax.Array, counts: jax.Array | np.ndarray) -> jax.Array:
    """Normalise over the first counts [...] of the columns: [..., K] -> [..., K]."""
    present = jnp.arange(logits.shape[-1]) < counts[..., None]
    return jax.nn.log_softmax(jnp.where(present, logits, _ABSENT))


def invert(
    log_probs: jax.Array, counts: jax.Array | np.ndarray, uniforms: jax.Array
) -> jax.Array:
    """Return the choices [...] int32 at which the distributions [..., K] pass the uniforms [...].

    Scaled by its own total, a distribution that rounding leaves below 1 has no gap at its end: a
    uniform is at most 1 - 2 ** -23, whose product with the total is below the total. A sum may
    round differently with a zero more in it, hence the minimum.
    """
    cumulative = jnp.cumsum(jnp.exp(log_probs), axis=-1)
    points = uniforms * cumulative[..., -1]
    passed = jnp.sum(cumulative <= points[..., None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(passed, counts - 1)
