"""Chains of convolutions that grow by network morphism: the space of AutoKeras, within bounds.

Jin et al., 2019, https://arxiv.org/abs/1806.10282. Morphism itself works on `conv_chains.ConvChain`
and knows no bounds; a space has them, so that architectures are integers of one length and children
are trained by one program.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.conv_chains import KERNELS, KINDS, ConvChain
from jaxnas.genotypes import Encoded
from jaxnas.networks.morphable import MorphableNetwork
from jaxnas.networks.morphable_slots import MorphableSlots
from jaxnas.networks.morphable_traced import TracedMorphableNetwork
from jaxnas.search_spaces import product

MARKS = dict(zip(KINDS, "+&"))  # of skips in texts
ABSENT = "-"
SKIP = re.compile(r"(0|[1-9][0-9]?)([+&])(0|[1-9][0-9]?)", re.ASCII)
WIDTH = re.compile(r"[x-]([1-9][0-9]{0,5})(?![0-9])", re.ASCII)
MEAN_SKIPS = 1.5  # of a random architecture


@dataclasses.dataclass(frozen=True)
class MorphableCNN(product.IndependentDecisions):
    """Stages of up to `max_layers` layers, and skips: `arch` [2 D + D (D - 1) / 2] int32.

    See `networks.morphable_slots` for what the integers mean. Every combination is a network; those
    that differ in where a stage's absent slots are, or in what hangs on them, are one, see
    `canonical`. As text, slots by stages and then skips: "3x64,-64|5x128,1x64;0+2;1&3" has a slot
    that is absent, an "add" skip from slot 0 to 2, and a "concat" skip from 1, which is absent.

    Attributes:
      slots: the bounds.
    """

    slots: MorphableSlots = MorphableSlots()

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "morphable_cnn"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision."""
        return self.slots.num_choices

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an arch [L]: slots uniformly, and 1.5 skips on average, all equally likely.

        A uniform draw would connect two pairs of slots in three. Skips of absent slots count too.
        """
        own_key, skip_key, kind_key = jax.random.split(key, 3)
        own = 2 * self.slots.num_slots
        count = len(self.num_choices) - own
        slots = mutations.sample(own_key, self.num_choices[:own])
        kept = jax.random.bernoulli(skip_key, min(1.0, MEAN_SKIPS / max(count, 1)), (count,))
        kinds = jax.random.randint(kind_key, (count,), 1, 1 + len(KINDS))
        return jnp.concatenate([slots, jnp.where(kept, kinds, 0)]).astype(jnp.int32)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn decision another value, uniformly: [L] -> [L].

        The network may stay, where the decision counts for nothing.
        """
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch of the same network: [L] -> [L]."""
        return self.slots.canonical(arch)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [L] for people. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        slots, values = self.slots, product.read_arch(arch, self.num_choices)
        stages: list[list[str]] = [[] for _ in range(slots.num_stages)]
        for slot in range(slots.num_slots):
            kernel, width = values[2 * slot:2 * slot + 2]
            first = ABSENT if kernel == slots.absent else f"{slots.kernels[kernel]}x"
            stages[slot // slots.max_layers].append(f"{first}{slots.widths[width]}")
        skips = [f"{source}{MARKS[KINDS[kind - 1]]}{target}" for (source, target), kind in zip(
            _pairs(slots.num_slots), values[2 * slots.num_slots:]) if kind]
        return ";".join(["|".join(map(",".join, stages)), *skips])

    def encode(self, text: str) -> np.ndarray:
        """Read what `decode` wrote, as [L] int32. Host only.

        Raises:
          ValueError: other stages or slots, an unknown layer, or skips that are out of order.
        """
        product.check_text(text)
        slots = self.slots
        first, *skips = text.split(";")
        stages = [stage.split(",") for stage in first.split("|")]
        if list(map(len, stages)) != [slots.max_layers] * slots.num_stages:
            raise ValueError(f"an architecture must be {slots.num_stages} stages of "
                             f"{slots.max_layers} slots, got {text!r:.60}.")
        known = {f"{mark}{width}": (kernel, index) for index, width in enumerate(slots.widths)
                 for kernel, mark in enumerate([*(f"{size}x" for size in slots.kernels), ABSENT])}
        own: list[int] = []
        for slot, word in enumerate(word for stage in stages for word in stage):
            if word not in known or (known[word][0] == slots.absent
                                     and slot % slots.max_layers == 0):
                raise ValueError(f"slot {slot} must be like {next(iter(known))!r}, or absent if it "
                                 f"is not the first of its stage, got {word!r:.40}.")
            own.extend(known[word])
        pairs = _pairs(slots.num_slots)
        kinds, last = [0] * len(pairs), -1
        for word in skips:
            found = SKIP.fullmatch(word)
            pair = (int(found[1]), int(found[3])) if found else (0, 0)
            if not found or pair not in pairs or pairs.index(pair) <= last:
                raise ValueError("skips must be like '0+2' or '0&2', forward, in order and one a "
                                 f"pair, got {word!r:.40}.")
            last = pairs.index(pair)
            kinds[last] = 1 + list(MARKS.values()).index(found[2])
        return np.array([*own, *kinds], np.int32)

    def network(self, arch: jax.Array | np.ndarray, **options) -> MorphableNetwork:
        """Return the fixed network of an arch [L]; `options` are `MorphableNetwork`'s."""
        values = np.array(product.read_arch(arch, self.num_choices))
        return MorphableNetwork(self.slots.chain(values), **options)

    def traced_network(self, **options) -> TracedMorphableNetwork:
        """Return the one network for every arch; `options` are `TracedMorphableNetwork`'s."""
        return TracedMorphableNetwork(self.slots, **options)


def encoded(chain: ConvChain) -> Encoded:
    """Return what a file holds of a chain: in the smallest space around it, whose bounds its text
    tells. Host only.

    Raises:
      ValueError: a kernel that is not among 1, 3 and 5.
    """
    widths = tuple(sorted({layer.width for layer in chain.layers}))
    space = MorphableCNN(MorphableSlots(
        len(chain.stages), max(map(len, chain.stages)), KERNELS, widths))
    arch = space.slots.arch(chain)
    return Encoded(space.name, tuple(arch.tolist()), space.decode(arch))


def space_of(text: str) -> MorphableCNN:
    """Return the space whose architecture `encoded` wrote as a text. Host only.

    Raises:
      ValueError: it is no such text.
    """
    product.check_text(text)
    stages = [stage.split(",") for stage in text.split(";")[0].split("|")]
    widths = sorted({int(width) for width in WIDTH.findall(text.split(";")[0])})
    return MorphableCNN(MorphableSlots(len(stages), len(stages[0]), KERNELS, tuple(widths)))


def _pairs(count: int) -> list[tuple[int, int]]:
    """Return (source, target) of every pair of slots, as archs have them."""
    return [(source, target) for target in range(count) for source in range(target)]
