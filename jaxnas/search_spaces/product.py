"""Spaces of independent decisions, and the strict texts that such spaces share."""

import dataclasses
import re
from typing import Protocol

import jax
import numpy as np

from jaxnas import encodings, mutations

INTEGER = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)  # one way to write a number: no sign, no zeros


class HasChoices(Protocol):
    """Anything with decisions."""

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision."""
        ...


class IndependentDecisions:
    """What the spaces share in which no decision constrains another; they give `num_choices`."""

    @property
    def size(self: HasChoices) -> int:
        """Number of architectures, isomorphic ones counted each."""
        return encodings.space_size(self.num_choices)

    def sample(self: HasChoices, key: jax.Array) -> jax.Array:
        """Draw an arch [L] int32 uniformly."""
        return mutations.sample(key, self.num_choices)

    def crossover(self, key: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        """Take every decision from either arch with probability 1/2: [L], [L] -> [L]."""
        return mutations.crossover(key, first, second)

    def is_valid(self: HasChoices, arch: jax.Array) -> jax.Array:
        """Tell whether every decision of [L] integers is in range, as [] bool."""
        return mutations.is_valid(arch, self.num_choices)


@dataclasses.dataclass(frozen=True)
class Product(IndependentDecisions):
    """L independent decisions, all combinations of which are valid and different networks.

    `arch` is [L] int32; as text, its decisions with dashes between: "3-0-2".

    Attributes:
      num_choices: [L] choices of every decision, each in [1, 65536].
      name: what result.json calls the space.

    Raises:
      ValueError: there is no decision, or one with a wrong number of choices.
    """

    num_choices: tuple[int, ...]
    name: str = "product"

    def __post_init__(self):
        if not isinstance(self.num_choices, tuple):
            raise ValueError(f"num_choices must be a tuple of integers, got {self.num_choices!r}.")
        mutations.check_num_choices(self.num_choices)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn decision another value, uniformly: [L] -> [L]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the arch [L] itself: no two are the same network."""
        return arch

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [L] as "3-0-2". Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        return "-".join(map(str, read_arch(arch, self.num_choices)))

    def encode(self, text: str) -> np.ndarray:
        """Read "3-0-2" as [L] int32. Host only.

        Raises:
          ValueError: another number of decisions, or one out of range.
        """
        return read_integers(text, "-", tuple(map(range, self.num_choices)))


def read_arch(arch: jax.Array | np.ndarray, num_choices: tuple[int, ...]) -> list[int]:
    """Check an arch [L] on the host and return its decisions.

    Raises:
      ValueError: a wrong length, no integers, or a decision out of range.
    """
    values = np.asarray(arch)
    if values.shape != (len(num_choices),) or values.dtype.kind not in "iu":
        raise ValueError(
            f"arch must be {len(num_choices)} integers, got {values.dtype} {values.shape}."
        )
    for position, (value, count) in enumerate(zip(values.tolist(), num_choices)):
        if not 0 <= value < count:
            raise ValueError(f"arch[{position}] must be in [0, {count - 1}], got {value}.")
    return values.tolist()


def check_text(text: str) -> None:
    """Raise a `ValueError` unless an architecture's text is text."""
    if not isinstance(text, str):
        raise ValueError(f"an architecture must be text, got {type(text).__name__}.")


def read_integers(text: str, separator: str, allowed: tuple[range, ...]) -> np.ndarray:
    """Read numbers, each as its index in what is allowed at its place: [L] int32.

    Args:
      text: decimal numbers without sign, leading zeros or blanks.
      separator: what stands between them; "" where every number is one digit.
      allowed: [L].

    Raises:
      ValueError: not L numbers, or one that is not allowed.
    """
    check_text(text)
    fields = text.split(separator) if separator else list(text)
    if len(fields) != len(allowed):
        between = f" with {separator!r} between" if separator else ""
        raise ValueError(f"an architecture must be {len(allowed)} numbers{between}, "
                         f"got {len(fields)} in {text!r:.60}.")
    arch = []
    for position, (field, values) in enumerate(zip(fields, allowed)):
        if not INTEGER.fullmatch(field) or int(field) not in values:
            steps = f" in steps of {values.step}" if values.step > 1 else ""
            raise ValueError(f"number {position} must be {values[0]} to {values[-1]}{steps}, "
                             f"got {field!r:.40}.")
        arch.append(values.index(int(field)))
    return np.array(arch, np.int32)
