"""A language model around recurrent cells, with the dropouts of AWD-LSTM.

Embedding, cells over time, decoder that is the embedding transposed (tied), as in quark0/darts
rnn/model.py and google-research's enas_lm, after Merity et al. (2018,
https://arxiv.org/abs/1708.02182). All masks are drawn once for a window of text and are the same at
each of its time steps. Texts are time-major: tokens [T, B], T time steps of B sequences.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.networks.recurrent import RecurrentCell, State, unroll

PyTree = Any
States = tuple[State, ...]  # of every layer


class Dropout(NamedTuple):
    """Rates, each in [0, 1); the defaults are none. In the words of the code named above:"""

    words: float = 0.0      # dropoute, drop_e: whole rows of the embedding
    embedding: float = 0.0  # dropouti, drop_i: the embedded input, before every layer
    inputs: float = 0.0     # dropoutx, drop_x: the input in the cell
    hidden: float = 0.0     # dropouth, drop_l: every state in the cell
    weights: float = 0.0    # drop_w: entries of the hidden-to-hidden matrices
    output: float = 0.0     # dropout, drop_o: the last layer's output


DARTS_SEARCH = Dropout(embedding=0.2, inputs=0.75, hidden=0.25, output=0.75)
DARTS_EVALUATION = DARTS_SEARCH._replace(words=0.1)
ENAS_SEARCH = Dropout(words=0.1, embedding=0.2, inputs=0.75, hidden=0.25, output=0.75)
ENAS_EVALUATION = Dropout(words=0.125, embedding=0.175, inputs=0.725, hidden=0.225, output=0.75)


class Outputs(NamedTuple):
    """What a language model returns."""

    logits: jax.Array   # [T, B, V], of the next token
    states: States      # after the window, to be carried to the next one
    raw: jax.Array      # [T, B, H], outputs of the last layer
    dropped: jax.Array  # [T, B, H], the same after dropout


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Tokens to logits of the next one; pure `init` and `apply`.

    Parameters: embedding [V, H], bias [V] if there is one, layers, a tuple of the cells'.

    Attributes:
      cell: of every layer.
      vocabulary_size: V.
      dropout: rates of training.
      decoder_bias: whether logits have a bias, as DARTS's do and ENAS's do not; it starts at 0.
      num_layers: cells on top of each other.
      init_range: the embedding starts uniform in [-init_range, init_range).
      remat: recompute a time step in the backward pass: less memory, more work.

    Raises:
      ValueError: a rate that is not in [0, 1), or a size that is not positive.
    """

    cell: RecurrentCell
    vocabulary_size: int
    dropout: Dropout = Dropout()
    decoder_bias: bool = True
    num_layers: int = 1
    init_range: float = 0.04
    remat: bool = False

    def __post_init__(self):
        for name, rate in self.dropout._asdict().items():
            if not 0 <= rate < 1:
                raise ValueError(f"dropout.{name} must be in [0, 1), got {rate}.")
        for name, size in (("vocabulary_size", self.vocabulary_size),
                           ("num_layers", self.num_layers)):
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}.")

    def init(self, key: jax.Array) -> dict[str, PyTree]:
        """Draw the parameters, float32."""
        size = self.cell.hidden_size
        embedding_key, *keys = jax.random.split(key, 1 + self.num_layers)
        embedding = jax.random.uniform(embedding_key, (self.vocabulary_size, size),
                                       minval=-self.init_range, maxval=self.init_range)
        params: dict[str, PyTree] = {"embedding": embedding,
                                     "layers": tuple(self.cell.init(one, size) for one in keys)}
        return params | ({"bias": jnp.zeros(self.vocabulary_size)} if self.decoder_bias else {})

    def initial_states(self, batch_size: int) -> States:
        """Return the states before the first token, zeros."""
        return (self.cell.initial_state(batch_size),) * self.num_layers

    def apply(
        self, params: PyTree, tokens: jax.Array, states: States, *inputs: jax.Array,
        key: jax.Array | None = None, length: jax.Array | None = None,
    ) -> Outputs:
        """Read a window of text.

        Args:
          params: as `init` drew them.
          tokens: [T, B] int32 in [0, V).
          states: before the window; no gradient goes into them (truncated back-propagation).
          inputs: the architecture, for a cell that takes one.
          key: of all masks; None is evaluation, without dropout.
          length: [] int32, how many of the T time steps count; None is all.
        """
        states = jax.lax.stop_gradient(states)
        rates = self.dropout if key is not None else Dropout()
        keys = iter(jax.random.split(jax.random.key(0) if key is None else key,
                                     2 + 4 * self.num_layers))
        batch, size = tokens.shape[1], self.cell.hidden_size
        x = params["embedding"][tokens]
        kept = keep_mask(next(keys), (self.vocabulary_size, 1), rates.words)
        x = x if isinstance(kept, float) else x * kept[tokens]
        after = []
        for layer, state in zip(params["layers"], states):
            x = x * keep_mask(next(keys), (batch, size), rates.embedding)
            layer = weight_drop(next(keys), self.cell, layer, rates.weights)
            state, x = unroll(
                self.cell, layer, x, state, inputs=inputs, length=length, remat=self.remat,
                input_mask=keep_mask(next(keys), (batch, size), rates.inputs),
                hidden_mask=keep_mask(next(keys), (batch, size), rates.hidden))
            after.append(state)
        dropped = x * keep_mask(next(keys), (batch, size), rates.output)
        logits = dropped @ params["embedding"].T
        if self.decoder_bias:
            logits = logits + params["bias"]
        return Outputs(logits, tuple(after), x, dropped)


def keep_mask(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array | float:
    """Draw a mask: 0 with probability `rate`, else 1 / (1 - rate); 1.0 where nothing is dropped."""
    if rate == 0:
        return 1.0
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def weight_drop(key: jax.Array, cell: RecurrentCell, params: PyTree, rate: float) -> PyTree:
    """Drop entries of the hidden-to-hidden matrices (DropConnect), as AWD-LSTM does."""
    if rate == 0:
        return params
    keys = jax.random.split(key, len(cell.recurrent))
    return {**params, **{name: params[name] * keep_mask(one, params[name].shape, rate)
                         for one, name in zip(keys, cell.recurrent)}}


def count_parameters(model: LanguageModel) -> int:
    """Count a model's parameters without allocating them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def equal_size(make: Callable[[int], LanguageModel], parameters: int, largest: int = 4096) -> int:
    """Return the H with which a model comes nearest to a number of parameters.

    Args:
      make: H -> model; its parameters grow with H.
      parameters: wanted.
      largest: H that is tried.

    Raises:
      ValueError: parameters is not positive.
    """
    if parameters < 1:
        raise ValueError(f"parameters must be 1 or more, got {parameters}.")
    low, high = 1, largest
    while low < high:  # the smallest H with at least so many
        middle = (low + high) // 2
        if count_parameters(make(middle)) < parameters:
            low = middle + 1
        else:
            high = middle
    near = [size for size in (low - 1, low) if size >= 1]
    return min(near, key=lambda size: abs(count_parameters(make(size)) - parameters))
