"""Accuracy predictors over architectures: PNAS's MLP and LSTM (https://arxiv.org/abs/1712.00559).

An architecture [L] is a row of tokens, each embedded by a table of its kind: in cells of blocks one
table for sources and one for operations, elsewhere one a decision. `Layout` says which. Sizes and
initial values are PNAS's, from memory of its section 3.3. `predictor_ensembles` fits them.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.base import PyTree

EMBEDDING_RANGE = 0.1  # embeddings start uniform in +- this


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an arch [L] is read as L / T blocks of T tokens.

    Attributes:
      num_choices: [L] choices of every decision.
      tables: [L] the embedding table of each; decisions of one table mean the same by a number.
      block_length: T, a divisor of L; position t of every block has the same table.
      absent: a block whose last token is this number is not there; None: all are.

    Raises:
      ValueError: an attribute is not as above.
    """

    num_choices: tuple[int, ...]
    tables: tuple[int, ...]
    block_length: int
    absent: int | None = None

    def __post_init__(self):
        mutations.check_num_choices(self.num_choices)
        length, size = len(self.num_choices), self.block_length
        if len(self.tables) != length or size < 1 or length % size or (
                self.tables != self.tables[:size] * (length // size)):
            raise ValueError(
                "tables must name one table for each of the decisions, the same for every block of "
                f"block_length, a divisor of {length}, got {self.tables} and {size}.")

    @property
    def table_sizes(self) -> dict[int, int]:
        """Rows of every table: the most choices that a decision of it has."""
        sizes: dict[int, int] = {}
        for table, count in zip(self.tables, self.num_choices):
            sizes[table] = max(count, sizes.get(table, 0))
        return sizes

    def present(self, arch: jax.Array) -> jax.Array:
        """Tell which blocks are there: [L] -> [L / T] bool."""
        last = arch.reshape(-1, self.block_length)[:, -1]
        return jnp.ones(last.shape, bool) if self.absent is None else last != self.absent


def decision_layout(num_choices: tuple[int, ...]) -> Layout:
    """Return the layout of any space: one block, and for every decision a table of its own."""
    return Layout(tuple(num_choices), tuple(range(len(num_choices))), len(num_choices))


def block_layout(num_choices: tuple[int, ...], columns: tuple[str, ...],
                 absent: int | None = None) -> Layout:
    """Return the layout of cells of blocks: columns of one name share a table.

    Args:
      num_choices: [L].
      columns: [T] what the decisions of a block are, such as a pair-cell space's.
      absent: as `Layout`.
    """
    names = sorted(set(columns))
    tables = tuple(names.index(column) for column in columns)
    return Layout(tuple(num_choices), tables * (len(num_choices) // max(1, len(columns))),
                  len(columns), absent)


class MLPPredictor(nn.Module):
    """The mean of the blocks' embeddings, two hidden layers, a sigmoid: arch [L] -> [] in (0, 1).

    A mean takes cells of any number of blocks, and forgets their order but for what sources say.

    Attributes:
      layout: of the architectures.
      embedding_size: of a token.
      hidden_size: of both layers.
    """

    layout: Layout
    embedding_size: int = 100
    hidden_size: int = 100

    @nn.compact
    def __call__(self, arch: jax.Array) -> jax.Array:
        tokens = _embed(self, arch)  # [L / T, T, embedding]
        present = self.layout.present(arch)
        blocks = tokens.reshape(len(tokens), -1)
        x = jnp.where(present[:, None], blocks, 0).sum(0) / jnp.maximum(present.sum(), 1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden_size)(x))
        return _accuracy(x)


class LSTMPredictor(nn.Module):
    """An LSTM over the tokens, a sigmoid of its last state: arch [L] -> [] in (0, 1).

    Blocks that are not there are passed over.

    Attributes:
      layout: of the architectures.
      embedding_size: of a token.
      hidden_size: of the LSTM.
    """

    layout: Layout
    embedding_size: int = 100
    hidden_size: int = 100

    @nn.compact
    def __call__(self, arch: jax.Array) -> jax.Array:
        tokens = _embed(self, arch)
        tokens = tokens.reshape(-1, tokens.shape[-1])  # [L, embedding]
        present = jnp.repeat(self.layout.present(arch), self.layout.block_length)
        size = self.hidden_size
        inward = nn.Dense(4 * size, name="input")(tokens)  # of all tokens at once
        kernel = self.param("recurrent", nn.initializers.lecun_uniform(), (size, 4 * size))

        def step(carry, x):
            hidden, cell = carry
            gates, there = x
            i, f, o, g = jnp.split(gates + hidden @ kernel, 4)
            new = nn.sigmoid(f + 1.0) * cell + nn.sigmoid(i) * jnp.tanh(g)  # remembers at first
            output = nn.sigmoid(o) * jnp.tanh(new)
            return (jnp.where(there, output, hidden), jnp.where(there, new, cell)), None

        start = (jnp.zeros(size), jnp.zeros(size))
        (hidden, _), _ = jax.lax.scan(step, start, (inward, present))
        return _accuracy(hidden)


def _embed(module: Any, arch: jax.Array) -> jax.Array:
    """Look up all tokens: [L] -> [L / T, T, embedding]."""
    layout = module.layout
    sizes = layout.table_sizes
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])))
    rows = sum(sizes.values())
    embeddings = module.param(
        "embeddings", lambda key: jax.random.uniform(
            key, (rows, module.embedding_size), minval=-EMBEDDING_RANGE, maxval=EMBEDDING_RANGE))
    index = arch + np.array([starts[table] for table in layout.tables], np.int32)
    # A product with a one-hot rather than a gather: its gradient is no scatter.
    tokens = jax.nn.one_hot(index, rows) @ embeddings
    return tokens.reshape(-1, layout.block_length, module.embedding_size)


def _accuracy(x: jax.Array) -> jax.Array:
    return nn.sigmoid(nn.Dense(1, name="accuracy")(x)[0])


def initial_params(key: jax.Array, predictor: nn.Module, length: int,
                   accuracy: jax.Array) -> PyTree:
    """Draw the parameters of a predictor of archs [length] that says about `accuracy` [] at first.

    Embeddings are uniform in +- EMBEDDING_RANGE, kernels in +- sqrt(3 / fan in), biases 0 but that
    of the output: PNAS's 1.8 is the logit of 0.86, the mean accuracy of cells of one block. Drawn
    at once: Flax's one draw for each leaf takes several times as long to compile.
    """
    arch = jnp.zeros(length, jnp.int32)
    shapes = jax.eval_shape(lambda: predictor.init(key, arch))["params"]
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    ends = np.cumsum([leaf.size for _, leaf in paths])
    drawn = jax.random.uniform(key, (int(ends[-1]),), minval=-1.0)
    logit = jnp.log(accuracy) - jnp.log1p(-accuracy)
    leaves = []
    for part, (path, leaf) in zip(jnp.split(drawn, ends[:-1]), paths):
        name = path[-1].key
        if name == "bias":
            value = logit if path[0].key == "accuracy" else jnp.zeros(())
            leaves.append(jnp.broadcast_to(value, leaf.shape))
        else:
            reach = EMBEDDING_RANGE if name == "embeddings" else math.sqrt(3 / leaf.shape[0])
            leaves.append(reach * part.reshape(leaf.shape))
    return jax.tree.unflatten(structure, leaves)
