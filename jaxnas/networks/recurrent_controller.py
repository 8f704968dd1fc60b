"""The controller of ENAS for recurrent cells (https://arxiv.org/abs/1802.03268, section 2.1).

As google-research's enas_lm has it (src/controller.py). For every node the LSTM's output decides
the source, by attention to the outputs at earlier nodes, and then, after reading the source, the
activation. Near sources are preferred by a fixed prior.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Policy, PyTree
from jaxnas.networks.enas_controller import (_attend, _categorical, _check, _lstm, _lstm_start,
                                             _policy, _uniform)


def enas_rnn_controller(
    num_nodes: int = 8,
    num_activations: int = 4,
    *,
    hidden_size: int = 64,
    init_range: float | jax.Array = 0.01,
    temperature: float | jax.Array = 5.0,
    tanh_constant: float | jax.Array = 2.25,
    distance_scale: float | jax.Array = 6.0,
) -> Policy:
    """ENAS's policy over recurrent cells; an arch is that of `search_spaces.ENASRNN`, [2 N].

    Logits z become C tanh(z / temperature); of the source at distance d, minus d^2 / 6. The next
    input is the LSTM's output at the source, divided by 0.1 + d, zero for the state before node 1;
    after an activation, its embedding, whose table is also the softmax's. 41,344 parameters at
    H = 64: lstm [1, 2 H, 4 H], start [H], embeddings [A, H], attend_earlier, attend_now [H, H],
    attend [H]. (enas_lm rewards -p log p of what was drawn; `entropy` is the distribution's.)

    Args:
      num_nodes: N.
      num_activations: A.
      hidden_size: H.
      init_range: all weights start uniform in [-init_range, init_range).
      temperature: divides logits.
      tanh_constant: C.
      distance_scale: what d^2 is divided by.

    Raises:
      ValueError: an option that is not positive.
    """
    _check(num_nodes=num_nodes, num_activations=num_activations, hidden_size=hidden_size,
           init_range=init_range, temperature=temperature, tanh_constant=tanh_constant,
           distance_scale=distance_scale)
    size = hidden_size
    shapes = {"lstm": (1, 2 * size, 4 * size), "start": (size,),
              "embeddings": (num_activations, size), "attend_earlier": (size, size),
              "attend_now": (size, size), "attend": (size,)}

    def init(key: jax.Array) -> PyTree:
        return _uniform(key, shapes, init_range)

    def squash(logits: jax.Array) -> jax.Array:
        return tanh_constant * jnp.tanh(logits / temperature)

    def decide(params, inputs, choose):
        states = np.arange(num_nodes)  # those that the last node may read

        def node(carry, xs):
            lstm_state, x, anchors, keys = carry
            number, (wanted_source, wanted_activation) = xs  # number is 0 for node 1
            lstm_state, h = _lstm(params["lstm"], lstm_state, x)
            distance = (number + 1 - states).astype(h.dtype)
            logits = squash(_attend(params, keys, h)) - distance ** 2 / distance_scale
            source = _categorical(logits, number + 1, wanted_source, choose)
            read = jax.nn.one_hot(source.choice, num_nodes) @ anchors
            lstm_state, after = _lstm(
                params["lstm"], lstm_state, read / (1.1 + number - source.choice))
            activation = _categorical(squash(params["embeddings"] @ after),
                                      jnp.int32(num_activations), wanted_activation, choose)
            x = jax.nn.one_hot(activation.choice, num_activations) @ params["embeddings"]
            # Of the last node nothing is read: its place is out of bounds, and dropped.
            anchors = anchors.at[number + 1].set(h)
            keys = keys.at[number + 1].set(h @ params["attend_earlier"])
            found = jax.tree.map(lambda *a: jnp.stack(a), source, activation)
            return (lstm_state, x, anchors, keys), found

        empty = jnp.zeros((num_nodes, size))
        start = (_lstm_start(params), params["start"], empty, empty)
        xs = (states, inputs.reshape(num_nodes, 2))
        return jax.tree.map(lambda a: a.reshape(-1), lax.scan(node, start, xs)[1])

    return _policy(init, decide, 2 * num_nodes)
