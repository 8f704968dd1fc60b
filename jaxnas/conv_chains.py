"""Networks that grow: a chain of convolutions in stages, with skips between any two of them.

The genotype that network morphism works on (AutoKeras, Jin et al., 2019,
https://arxiv.org/abs/1806.10282, section 3), without weights: what `networks.MorphableNetwork`
builds, `morphisms` transforms together with weights, and `edit_distances` compares. Host only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

KERNELS = (1, 3, 5)
KINDS = ("add", "concat")


class Layer(NamedTuple):
    """A block: ReLU, batch normalisation, convolution."""

    kernel: int  # K, of K x K taps, odd
    width: int   # channels of its output


class Skip(NamedTuple):
    """A second way from the output of one layer to that of a later one.

    The source goes through the pools between, ReLU and a 1x1 convolution, and is added to what the
    target's convolution gives. "concat" concatenates both before a 1x1 convolution, which is that
    sum with another 1x1 convolution of the target's own.
    """

    source: int  # layer, counted over all stages from 0
    target: int  # later layer
    kind: str    # one of KINDS


class ConvChain(NamedTuple):
    """Stages of layers; a 2x2 pool of stride 2 follows each stage."""

    stages: tuple[tuple[Layer, ...], ...]  # one layer or more each
    skips: tuple[Skip, ...] = ()           # ascending, one a pair of layers

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in order."""
        return tuple(layer for stage in self.stages for layer in stage)

    @property
    def stage_of(self) -> tuple[int, ...]:
        """The stage of every layer."""
        return tuple(number for number, stage in enumerate(self.stages) for _ in stage)

    def into(self, target: int) -> tuple[Skip, ...]:
        """Return the skips that end in a layer, by ascending source."""
        return tuple(skip for skip in self.skips if skip.target == target)

    def __str__(self) -> str:
        return "|".join(",".join(f"{layer.kernel}x{layer.width}" for layer in stage)
                        for stage in self.stages) + "".join(
            f";{skip.source}{'+' if skip.kind == 'add' else '&'}{skip.target}"
            for skip in self.skips)


class Deepen(NamedTuple):
    """Insert a layer of the same width after a layer, in its stage."""

    after: int
    kernel: int


class Widen(NamedTuple):
    """Give a layer more channels."""

    layer: int
    width: int


class Connect(NamedTuple):
    """Add a skip."""

    source: int
    target: int
    kind: str


Operation = Deepen | Widen | Connect


def initial_chain(*, num_stages: int = 3, width: int = 64, kernel: int = 3) -> ConvChain:
    """Return AutoKeras's first network: a layer a stage (section 4.1; released code 0.3.7).

    Raises:
      ValueError: a number that is out of range.
    """
    if num_stages < 1:
        raise ValueError(f"num_stages must be 1 or more, got {num_stages}.")
    return check(ConvChain(((Layer(kernel, width),),) * num_stages))


def check(chain: ConvChain) -> ConvChain:
    """Return the chain itself.

    Raises:
      ValueError: an empty stage, an even kernel, a width below 1, or skips that are out of range,
        not ascending, or two of one pair.
    """
    if not chain.stages or not all(chain.stages):
        raise ValueError("a chain must have one stage or more, and a layer or more in each.")
    for number, (kernel, width) in enumerate(chain.layers):
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"the kernel of layer {number} must be odd, got {kernel!r}.")
        if type(width) is not int or width < 1:
            raise ValueError(f"the width of layer {number} must be 1 or more, got {width!r}.")
    last = len(chain.layers) - 1
    for skip in chain.skips:
        if not 0 <= skip.source < skip.target <= last:
            raise ValueError(f"a skip must go forward within layers 0 to {last}, got {skip}.")
        if skip.kind not in KINDS:
            raise ValueError(f"the kind of a skip must be one of {KINDS}, got {skip.kind!r}.")
    pairs = [skip[:2] for skip in chain.skips]
    if pairs != sorted(set(pairs)):
        raise ValueError(f"skips must ascend, one a pair of layers, got {pairs}.")
    return chain


def transform(chain: ConvChain, operation: Operation) -> ConvChain:
    """Return what an operation makes of a chain.

    A layer that is inserted reads the output of the layer before it, skips that end there included;
    skips from and to that layer stay where they are.

    Raises:
      ValueError: a layer that does not exist, a width that does not grow, or a skip that does.
    """
    layers, last = chain.layers, len(chain.layers) - 1
    if isinstance(operation, Connect):
        source, target, _ = operation
        if any(skip[:2] == (source, target) for skip in chain.skips):
            raise ValueError(f"there is a skip from layer {source} to {target} already; choose "
                             "another pair.")
        return check(chain._replace(skips=tuple(sorted((*chain.skips, Skip(*operation))))))
    place = operation.layer if isinstance(operation, Widen) else operation.after
    if not 0 <= place <= last:
        raise ValueError(f"the layer of {operation} must be in [0, {last}].")
    if isinstance(operation, Widen):
        if operation.width <= layers[place].width:
            raise ValueError(f"the new width of layer {place} must be above "
                             f"{layers[place].width}, got {operation.width}.")
        new = [*layers[:place], layers[place]._replace(width=operation.width), *layers[place + 1:]]
        return check(_staged(new, chain.stage_of, chain.skips))
    inserted = Layer(operation.kernel, layers[place].width)
    stages = list(chain.stage_of)
    stages.insert(place + 1, stages[place])
    skips = tuple(Skip(shifted(s.source, place), shifted(s.target, place), s.kind)
                  for s in chain.skips)
    return check(_staged([*layers[:place + 1], inserted, *layers[place + 1:]], stages, skips))


def shifted(layer: int, after: int) -> int:
    """Return the number of a layer once another was inserted behind layer `after`."""
    return layer + (layer > after)


def operations(chain: ConvChain, *, kernels: tuple[int, ...] = KERNELS, max_layers: int,
               max_width: int) -> Iterator[Operation]:
    """Yield all operations that stay within bounds; widening doubles, as AutoKeras does.

    Args:
      chain: what to transform.
      kernels: of layers that are inserted.
      max_layers: of a stage.
      max_width: of a layer.
    """
    for number, (layer, stage) in enumerate(zip(chain.layers, chain.stage_of)):
        if len(chain.stages[stage]) < max_layers:
            yield from (Deepen(number, kernel) for kernel in kernels)
        if 2 * layer.width <= max_width:
            yield Widen(number, 2 * layer.width)
    taken = {skip[:2] for skip in chain.skips}
    for target in range(1, len(chain.layers)):
        for source in range(target):
            if (source, target) not in taken:
                yield from (Connect(source, target, kind) for kind in KINDS)


def _staged(layers: list[Layer], stages: tuple[int, ...] | list[int],
            skips: tuple[Skip, ...]) -> ConvChain:
    return ConvChain(tuple(
        tuple(layer for layer, stage in zip(layers, stages) if stage == number)
        for number in range(stages[-1] + 1)), skips)
