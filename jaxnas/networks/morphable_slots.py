"""A bounded set of `conv_chains.ConvChain`s as integers: slots for layers, and for skips.

D slots, `max_layers` a stage. An arch is, slot by slot, which kernel and which width, and then, of
every pair of slots, (0, 1), (0, 2), (1, 2), (0, 3) ..., which skip: 0 none, 1 add, 2 concat. After
the last kernel comes "absent", but not in the first slot of a stage. What an absent slot has of a
width or of skips counts for nothing.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.conv_chains import KINDS, ConvChain, Layer, Skip


class Decisions(NamedTuple):
    """An arch, taken apart."""

    kernel: jax.Array  # [D] int32; the number of kernels is absent
    width: jax.Array   # [D] int32
    kind: jax.Array    # [D, D] int32, of the skip from slot j to slot i at [i, j], j < i


@dataclasses.dataclass(frozen=True)
class MorphableSlots:
    """Bounds of a chain, and what its integers mean.

    Attributes:
      num_stages: stages.
      max_layers: of a stage.
      kernels: sizes, odd, ascending.
      widths: of layers, ascending.

    Raises:
      ValueError: an attribute is out of range.
    """

    num_stages: int = 3
    max_layers: int = 3
    kernels: tuple[int, ...] = (1, 3, 5)
    widths: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        for name in ("num_stages", "max_layers"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 64:
                raise ValueError(f"{name} must be an integer in [1, 64], got {value!r}.")
        for name, step in (("kernels", 2), ("widths", 1)):
            values = getattr(self, name)
            if (not isinstance(values, tuple) or not values
                    or any(type(value) is not int or value < 1 for value in values)
                    or list(values) != sorted(set(values))
                    or any(value % 2 == 0 for value in values if step == 2)):
                raise ValueError(f"{name} must be a tuple of different{' odd' * (step == 2)} "
                                 f"integers of 1 or more, ascending, got {values!r}.")

    @property
    def num_slots(self) -> int:
        """D."""
        return self.num_stages * self.max_layers

    @property
    def absent(self) -> int:
        """What stands for no layer where the kernel does."""
        return len(self.kernels)

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[2 D + D (D - 1) / 2] choices of every decision."""
        own = [count for slot in range(self.num_slots) for count in (
            len(self.kernels) + (slot % self.max_layers > 0), len(self.widths))]
        return (*own, *(1 + len(KINDS),) * (self.num_slots * (self.num_slots - 1) // 2))

    def unpack(self, arch: jax.Array | np.ndarray) -> Decisions:
        """Take an arch [L] apart; may be traced."""
        slots = self.num_slots
        own = jnp.asarray(arch)[:2 * slots].reshape(slots, 2)
        rows, columns = _pairs(slots)
        kind = jnp.zeros((slots, slots), jnp.int32).at[rows, columns].set(arch[2 * slots:])
        return Decisions(own[:, 0], own[:, 1], kind)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Move layers to the first slots of their stage, and zero what counts for nothing."""
        found = self.unpack(arch)
        present = found.kernel < self.absent
        stage = np.arange(self.num_slots) // self.max_layers
        order = jnp.argsort(2 * stage + ~present, stable=True)
        present = present[order]
        kernel = found.kernel[order]
        width = jnp.where(present, found.width[order], 0)
        # Order among layers stays, so that what was below the diagonal is there again.
        kind = jnp.where(present[:, None] & present, found.kind[order][:, order], 0)
        own = jnp.stack([kernel, width], 1).reshape(-1)
        rows, columns = _pairs(self.num_slots)
        return jnp.concatenate([own, kind[rows, columns]]).astype(jnp.int32)

    def chain(self, arch: np.ndarray) -> ConvChain:
        """Return the chain of an arch [L]. Host only."""
        values = np.asarray(arch)
        slots = self.num_slots
        own = values[:2 * slots].reshape(slots, 2).tolist()
        places = [slot for slot, (kernel, _) in enumerate(own) if kernel < self.absent]
        number = {slot: position for position, slot in enumerate(places)}
        stages: list[list[Layer]] = [[] for _ in range(self.num_stages)]
        for slot in places:
            kernel, width = own[slot]
            stages[slot // self.max_layers].append(
                Layer(self.kernels[kernel], self.widths[width]))
        rows, columns = _pairs(slots)
        skips = [Skip(number[source], number[target], KINDS[kind - 1])
                 for target, source, kind in zip(rows.tolist(), columns.tolist(),
                                                 values[2 * slots:].tolist())
                 if kind and source in number and target in number]
        return ConvChain(tuple(map(tuple, stages)), tuple(sorted(skips)))

    def places(self, chain: ConvChain) -> list[int]:
        """Return the slot of every layer in the canonical arch of a chain. Host only.

        Raises:
          ValueError: the chain is out of bounds.
        """
        if len(chain.stages) != self.num_stages or any(
                len(stage) > self.max_layers for stage in chain.stages):
            raise ValueError(f"a chain must have {self.num_stages} stages of at most "
                             f"{self.max_layers} layers, got {list(map(len, chain.stages))}.")
        return [stage * self.max_layers + number for stage, layers in enumerate(chain.stages)
                for number in range(len(layers))]

    def arch(self, chain: ConvChain) -> np.ndarray:
        """Return the canonical arch [L] int32 of a chain. Host only.

        Raises:
          ValueError: the chain is out of bounds.
        """
        places, slots = self.places(chain), self.num_slots
        own = np.tile(np.array([self.absent, 0], np.int32), (slots, 1))
        for slot, layer in zip(places, chain.layers):
            if layer.kernel not in self.kernels or layer.width not in self.widths:
                raise ValueError(f"layers must have kernels of {self.kernels} and widths of "
                                 f"{self.widths}, got {tuple(layer)}.")
            own[slot] = self.kernels.index(layer.kernel), self.widths.index(layer.width)
        kind = np.zeros((slots, slots), np.int32)
        for skip in chain.skips:
            kind[places[skip.target], places[skip.source]] = 1 + KINDS.index(skip.kind)
        return np.concatenate([own.reshape(-1), kind[_pairs(slots)]])


def _pairs(slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return target and source of every pair of slots, in the order of an arch."""
    rows, columns = np.tril_indices(slots, -1)
    return rows, columns
