"""What the spaces of layer chains with skip connections share; see `networks.chain_layout`."""

import functools
import itertools
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from jaxnas import mutations
from jaxnas.networks import chain_layout
from jaxnas.search_spaces import product

MAX_LAYERS = 64  # more than any paper has; 2,000 skip bits


class IsChain(Protocol):
    """What a chain says of itself."""

    @property
    def num_layers(self) -> int:
        """L."""
        ...

    @property
    def words(self) -> tuple[Sequence[str], ...]:
        """[W] the words for the choices of a layer's own decisions."""
        ...

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[D] choices of every decision."""
        ...


class Chain(product.IndependentDecisions):
    """Layers with own decisions and a skip bit for every layer before; all are independent.

    As text, layers with bars between, each its own decisions and, after a colon, its bits.
    """

    @property
    def num_choices(self: IsChain) -> tuple[int, ...]:
        """[D] choices of every decision."""
        return chain_layout.num_choices(self.num_layers, tuple(map(len, self.words)))

    def mutate(self: IsChain, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn decision another value, uniformly: [D] -> [D]."""
        return mutations.mutate(key, arch, self.num_choices)

    def decode(self: IsChain, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [D] for people. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = np.array(product.read_arch(arch, self.num_choices))
        own, skips = chain_layout.unpack(values, self.num_layers, len(self.words))
        layers = []
        for number in range(self.num_layers):
            text = "".join(words[index] for words, index in zip(self.words, own[number]))
            bits = "".join(map(str, skips[number, :number]))
            layers.append(f"{text}:{bits}" if number else text)
        return "|".join(layers)

    def encode(self: IsChain, text: str) -> np.ndarray:
        """Read what `decode` wrote, as [D] int32. Host only.

        Raises:
          ValueError: another number of layers or bits, or an unknown layer.
        """
        product.check_text(text)
        known = _indices(tuple(map(tuple, self.words)))
        layers = text.split("|")
        if len(layers) != self.num_layers:
            raise ValueError(f"an architecture must be {self.num_layers} layers with '|' between, "
                             f"got {len(layers)} in {text!r:.60}.")
        arch: list[int] = []
        for number, layer in enumerate(layers):
            word, colon, bits = layer.partition(":")
            if word not in known:
                raise ValueError(f"layer {number} must begin like {next(iter(known))!r}, got "
                                 f"{word!r:.40}.")
            if bool(colon) != bool(number) or len(bits) != number or set(bits) - {"0", "1"}:
                raise ValueError(f"layer {number} must end in {number} bits after ':', or, if it "
                                 f"is the first, in neither; got {layer!r:.60}.")
            arch.extend((*known[word], *map(int, bits)))
        return np.array(arch, np.int32)


@functools.lru_cache(maxsize=64)
def _indices(words: tuple[tuple[str, ...], ...]) -> dict[str, tuple[int, ...]]:
    """Return the own decisions of a layer by their text."""
    return {"".join(column[index] for column, index in zip(words, indices)): indices
            for indices in itertools.product(*(range(len(column)) for column in words))}


def check_num_layers(num_layers: int) -> None:
    """Raise a `ValueError` unless it is an integer in [1, 64]."""
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        raise ValueError(f"num_layers must be an integer in [1, {MAX_LAYERS}], got {num_layers!r}.")


def check_image(num_classes: int, shape: tuple[int, int, int]) -> None:
    """Raise a `ValueError` unless classes and image (H, W, C) are positive."""
    if num_classes < 1 or len(shape) != 3 or min(shape) < 1:
        raise ValueError("num_classes must be 1 or more, and shape (height, width, channels) of an "
                         f"image, got {num_classes} and {shape}.")
