"""Controllers that attend to earlier layers: NAS with RL, ENAS macro and ENAS micro.

An LSTM makes the decisions in turn. Where one is about an earlier layer, the LSTM's output at that
layer, its anchor, is compared with the present one: q = v . tanh(W1 h_earlier + W2 h_now), as Zoph
& Le (2017, https://arxiv.org/abs/1611.01578, section 3.3) propose, and as ENAS (Pham et al., 2018,
https://arxiv.org/abs/1802.03268, melodyguan/enas src/cifar10/{general,micro}_controller.py) has it.
Each gives `base.Policy` on one architecture. Parameters are a dictionary, float32, without biases:

  lstm [layers, 2 H, 4 H]: from input and hidden state to the gates i, f, o and g.
  start [H]: the first input.
  embeddings, softmax: of choices as inputs, and from the LSTM to logits; shapes differ.
  attend_earlier, attend_now [H, H], attend [H]: W1, W2 and v above.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Policy, PyTree
from jaxnas.networks import chain_layout
from jaxnas.networks.controllers import given, invert
from jaxnas.networks.controllers import masked_log_softmax as log_softmax

Shape = Callable[[jax.Array], jax.Array]
_MICRO_OPERATIONS = 5
_OPERATION_TANH = 2.5       # C of the micro controller's operations is smaller by this factor
_INITIAL_BIAS = (10.0, 10.0, 0.0, 0.0, 0.0)        # the separable convolutions, learned
_FIXED_BIAS = (0.25, 0.25, -0.25, -0.25, -0.25)    # of the normal cell, added after the tanh


class _Decided(NamedTuple):
    """Decisions, log P of them, and the entropy of their distributions, all of one shape."""

    choice: jax.Array
    log_prob: jax.Array
    entropy: jax.Array


def enas_macro_controller(
    num_layers: int = 12,
    *,
    hidden_size: int = 64,
    init_range: float | jax.Array = 0.1,
    temperature: float | jax.Array = 1.0,
    tanh_constant: float | jax.Array = 1.5,
) -> Policy:
    """ENAS macro: an operation by softmax, then the layer's skip bits at once, by attention.

    All logits z become C tanh(z / temperature); those of a bit are -q and q, so that it is 1 with
    probability sigmoid(2 C tanh(q / temperature)). After a layer, the mean of the anchors it skips
    to, with one zero vector among them, is the next input; after the first, `start`. 41,856
    parameters at H = 64: embeddings [6, H], softmax [H, 6]. Arch as in `search_spaces.enas_macro`.

    Args:
      num_layers: L.
      hidden_size: H; 64 in the released code, 100 in the paper.
      init_range: all weights start uniform in [-init_range, init_range).
      temperature: divides logits.
      tanh_constant: C; 1.5 as released.

    Raises:
      ValueError: an option that is not positive.
    """
    _check(num_layers=num_layers, hidden_size=hidden_size, init_range=init_range,
           temperature=temperature, tanh_constant=tanh_constant)
    operations = len(chain_layout.MACRO_OPERATIONS)
    shapes = _shapes(hidden_size, 1, (operations, hidden_size), (hidden_size, operations))

    def squash(logits: jax.Array) -> jax.Array:
        return tanh_constant * jnp.tanh(logits / temperature)

    def decide(params, own, bits, choose):
        shared = {name: params[name][None, None] for name in ("embeddings", "softmax")}
        tables = {name: jnp.broadcast_to(table, (num_layers, *table.shape[1:]))
                  for name, table in shared.items()}
        return _decide_chain(params | tables, own, bits, choose, (operations,), squash,
                             lambda q: 2 * squash(q))

    return _chain_policy(shapes, init_range, num_layers, (operations,), decide)


def nasrl_controller(
    num_layers: int = 15,
    counts: tuple[int, ...] = (4, 4, 4),
    *,
    hidden_size: int = 35,
    lstm_layers: int = 2,
    init_range: float | jax.Array = 0.08,
) -> Policy:
    """NAS with RL: a layer's filter by softmaxes, each its own, then its skip bits by attention.

    A bit is 1 with probability sigmoid(q). The paper does not say what the LSTM reads after the
    anchor: here, as in ENAS, the mean of the anchors chosen, with one zero vector among them.
    embeddings [L, W, K, H] and softmax [L, W, H, K]. Arch as in `search_spaces.nasrl`.

    Args:
      num_layers: L.
      counts: [W] choices of a layer's own decisions, `FilterChoices.counts`.
      hidden_size: H.
      lstm_layers: of the LSTM.
      init_range: all weights start uniform in [-init_range, init_range).

    Raises:
      ValueError: an option that is not positive, or no own decision.
    """
    _check(num_layers=num_layers, hidden_size=hidden_size, lstm_layers=lstm_layers,
           init_range=init_range, counts=min(counts, default=0))
    table = (num_layers, len(counts), max(counts))
    shapes = _shapes(hidden_size, lstm_layers, (*table, hidden_size),
                     (*table[:2], hidden_size, table[2]))

    def decide(params, own, bits, choose):
        return _decide_chain(params, own, bits, choose, counts, lambda z: z, lambda q: q)

    return _chain_policy(shapes, init_range, num_layers, counts, decide)


def enas_micro_controller(
    num_blocks: int = 5,
    *,
    hidden_size: int = 64,
    init_range: float | jax.Array = 0.1,
    temperature: float | jax.Array = 1.0,
    tanh_constant: float | jax.Array = 1.1,
    fixed_bias: bool = True,
) -> Policy:
    """ENAS micro: sources by attention over anchors, operations by softmax; two cells in turn.

    A block decides source, source, operation, operation; the arch (`search_spaces.enas_micro`) has
    source, operation, source, operation. log_prob and entropy are at the arch's places, and
    "before" is meant as drawn. An anchor is the LSTM's output after the block; those of the two
    inputs are zero vectors, with keys of their own. The reduction cell goes on from the normal
    one's LSTM state. Logits are C tanh(z / temperature), C / 2.5 for operations, whose softmax has
    a learned bias [5] that starts at 10 for the separable convolutions. 41,733 parameters at
    H = 64: embeddings [5, H], softmax [H, 5], softmax_bias [5].

    Args:
      num_blocks: of a cell.
      hidden_size: H.
      init_range: all weights but the bias start uniform in [-init_range, init_range).
      temperature: divides logits.
      tanh_constant: C of the sources.
      fixed_bias: whether the normal cell prefers separable convolutions by a constant 0.5.

    Raises:
      ValueError: an option that is not positive.
    """
    _check(num_blocks=num_blocks, hidden_size=hidden_size, init_range=init_range,
           temperature=temperature, tanh_constant=tanh_constant)
    count, states = _MICRO_OPERATIONS, num_blocks + 2
    shapes = _shapes(hidden_size, 1, (count, hidden_size), (hidden_size, count))

    def init(key: jax.Array) -> PyTree:
        return _uniform(key, shapes, init_range) | {"softmax_bias": jnp.array(_INITIAL_BIAS)}

    def decide(params, inputs, choose):
        def block(carry, xs):
            lstm_state, anchors, keys = carry
            number, wanted, bias = xs
            x, found = params["start"], []
            for value in wanted[:2]:
                lstm_state, h = _lstm(params["lstm"], lstm_state, x)
                logits = tanh_constant * jnp.tanh(_attend(params, keys, h) / temperature)
                found.append(_categorical(logits, number + 2, value, choose))
                x = jax.nn.one_hot(found[-1].choice, states) @ anchors
            for value in wanted[2:]:
                lstm_state, h = _lstm(params["lstm"], lstm_state, x)
                logits = (h @ params["softmax"] + params["softmax_bias"]) / temperature
                logits = tanh_constant / _OPERATION_TANH * jnp.tanh(logits) + bias
                found.append(_categorical(logits, jnp.int32(count), value, choose))
                x = jax.nn.one_hot(found[-1].choice, count) @ params["embeddings"]
            lstm_state, h = _lstm(params["lstm"], lstm_state, x)
            anchors = anchors.at[number + 2].set(h)
            keys = keys.at[number + 2].set(h @ params["attend_earlier"])
            return (lstm_state, anchors, keys), jax.tree.map(lambda *a: jnp.stack(a), *found)

        def cell(lstm_state, xs):
            wanted, bias = xs
            anchors = jnp.zeros((states, hidden_size))
            keys = anchors
            for place in range(2):
                lstm_state, h = _lstm(params["lstm"], lstm_state, params["start"])
                keys = keys.at[place].set(h @ params["attend_earlier"])
            biases = jnp.broadcast_to(bias, (num_blocks, count))
            (lstm_state, _, _), found = lax.scan(
                block, (lstm_state, anchors, keys), (np.arange(num_blocks), wanted, biases))
            return lstm_state, found

        bias = jnp.array([_FIXED_BIAS, (0.0,) * count]) * fixed_bias
        order = np.array([0, 2, 1, 3])  # of the arch's columns as drawn; its own inverse
        wanted = inputs.reshape(2, num_blocks, 4)[..., order]
        found = lax.scan(cell, _lstm_start(params), (wanted, bias))[1]
        return jax.tree.map(lambda a: a[..., order].reshape(-1), found)

    return _policy(init, decide, 8 * num_blocks)


def _policy(init, decide, length: int) -> Policy:
    """Make a policy of (params, inputs [D], choose) -> `_Decided` [D]."""
    def sample(key: jax.Array, params: PyTree) -> jax.Array:
        return decide(params, jax.random.uniform(key, (length,)), invert).choice

    def log_prob(params: PyTree, arch: jax.Array) -> jax.Array:
        chex.assert_shape(arch, (length,))
        return decide(params, arch, given).log_prob

    def entropy(params: PyTree, arch: jax.Array) -> jax.Array:
        chex.assert_shape(arch, (length,))
        return decide(params, arch, given).entropy

    return Policy(init, sample, log_prob, entropy)


def _chain_policy(shapes, init_range, num_layers: int, counts: tuple[int, ...], decide) -> Policy:
    """Make a policy of (params, own [L, W], bits [L, L], choose) -> `_Decided` of each."""
    width = len(counts)

    def flat(params, inputs, choose):
        own, bits = decide(params, *chain_layout.unpack(inputs, num_layers, width), choose)
        return jax.tree.map(chain_layout.pack, own, bits)

    length = len(chain_layout.num_choices(num_layers, counts))
    return _policy(functools.partial(_uniform, shapes=shapes, scale=init_range), flat, length)


def _decide_chain(params, own, bits, choose, counts: tuple[int, ...], shape: Shape,
                  skip_shape: Shape) -> tuple[_Decided, _Decided]:
    """Make the decisions of a chain.

    Args:
      params: embeddings [L, W, K, H] and softmax [L, W, H, K] among them.
      own, bits: [L, W] and [L, L], what `choose` is given.
      choose: as in `controllers`.
      counts: [W].
      shape: from the softmax's outputs to logits.
      skip_shape: from q to the logit of a bit, log P(1) - log P(0).
    """
    layers, size = own.shape[0], params["start"].size

    def layer(carry, xs):
        x, lstm_state, anchors, keys = carry
        number, own, bits, embeddings, softmax = xs
        found = []
        for column, count in enumerate(counts):
            lstm_state, h = _lstm(params["lstm"], lstm_state, x)
            found.append(_categorical(shape(h @ softmax[column]), jnp.int32(count), own[column],
                                      choose))
            x = jax.nn.one_hot(found[-1].choice, embeddings.shape[1]) @ embeddings[column]
        lstm_state, h = _lstm(params["lstm"], lstm_state, x)
        logits = skip_shape(_attend(params, keys, h))
        pairs = jnp.stack([jnp.zeros(layers), logits], -1)
        skips = jax.vmap(lambda pair, bit: _categorical(pair, jnp.int32(2), bit, choose))(
            pairs, bits)
        chosen = jnp.where(np.arange(layers) < number, skips.choice, 0)
        mean = chosen.astype(h.dtype) @ anchors / (1 + chosen.sum())
        x = jnp.where(number > 0, mean, params["start"])
        anchors = anchors.at[number].set(h)
        keys = keys.at[number].set(h @ params["attend_earlier"])
        return (x, lstm_state, anchors, keys), (
            jax.tree.map(lambda *a: jnp.stack(a), *found), skips)

    empty = jnp.zeros((layers, size))
    start = (params["start"], _lstm_start(params), empty, empty)
    xs = (np.arange(layers), own, bits, params["embeddings"], params["softmax"])
    return lax.scan(layer, start, xs)[1]


def _categorical(logits: jax.Array, count: jax.Array, value: jax.Array, choose) -> _Decided:
    """Decide among the first `count` of the logits [K]."""
    log_probs = log_softmax(logits, count)
    choice = choose(log_probs, count, value)
    log_prob = jnp.sum(jnp.where(np.arange(logits.size) == choice, log_probs, 0.0))
    return _Decided(choice, log_prob, -jnp.sum(jnp.exp(log_probs) * log_probs))


def _attend(params: Mapping[str, jax.Array], keys: jax.Array, h: jax.Array) -> jax.Array:
    """Return q [S] for the keys [S, H] of earlier anchors, W1 h_earlier."""
    return jnp.tanh(keys + h @ params["attend_now"]) @ params["attend"]


def _lstm_start(params: Mapping[str, jax.Array]) -> jax.Array:
    layers, double, _ = params["lstm"].shape
    return jnp.zeros((layers, 2, double // 2))  # hidden and cell state of every layer


def _lstm(kernels: jax.Array, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Read one input [H]; returns the new state [layers, 2, H] and the output [H]."""
    states = []
    for kernel, (hidden, cell) in zip(kernels, state):
        i, f, o, g = jnp.split(jnp.concatenate([x, hidden]) @ kernel, 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        x = jax.nn.sigmoid(o) * jnp.tanh(cell)
        states.append(jnp.stack([x, cell]))
    return jnp.stack(states), x


def _shapes(size: int, lstm_layers: int, embeddings: tuple[int, ...],
            softmax: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {
        "lstm": (lstm_layers, 2 * size, 4 * size), "start": (size,), "embeddings": embeddings,
        "softmax": softmax, "attend_earlier": (size, size), "attend_now": (size, size),
        "attend": (size,),
    }


def _uniform(key: jax.Array, shapes: dict[str, tuple[int, ...]],
             scale: float | jax.Array) -> dict[str, jax.Array]:
    """Draw arrays uniform in [-scale, scale), all at once: one draw for each compiles long."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    drawn = jax.random.uniform(key, (ends[-1],), minval=-scale, maxval=scale)
    return {name: part.reshape(shape) for part, (name, shape) in zip(
        jnp.split(drawn, ends[:-1]), shapes.items())}


def _check(**options: float | jax.Array) -> None:
    for name, value in options.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
