"""The decisions of layer chains with skip connections: NAS with RL, and ENAS macro.

Both number them alike: layer 0's own decisions, layer 1's and its skip bit from layer 0, layer 2's
and its two bits, and so on. L is layers, W own decisions of a layer, D decisions of all.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

MACRO_OPERATIONS = (
    "conv_3x3", "sep_conv_3x3", "conv_5x5", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3",
)  # fmt: skip
MACRO_SIZES = (3, 3, 5, 5)  # kernels of those that convolve


def num_choices(num_layers: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the choices [D] of all decisions of a chain.

    Args:
      num_layers: L.
      counts: [W] choices of a layer's own decisions; layer l has l skip bits besides.

    Returns:
      D = W L + L (L - 1) / 2 integers.
    """
    return tuple(count for layer in range(num_layers) for count in (*counts, *(2,) * layer))


def num_layers(length: int, width: int) -> int:
    """Return how many layers an arch of `length` decisions has, `width` of each its own.

    Raises:
      ValueError: no number of layers has this length.
    """
    layers = (math.isqrt((2 * width - 1) ** 2 + 8 * length) - (2 * width - 1)) // 2
    if layers < 1 or width * layers + layers * (layers - 1) // 2 != length:
        raise ValueError(f"arch must have {width} L + L (L - 1) / 2 decisions for a number of "
                         f"layers L of 1 or more, got {length}.")
    return layers


@functools.cache
def positions(num_layers: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where decisions are in an arch [D]: own [L, W], skips [L, L]; D where there is none.

    Entry i, j of the skips is the place of bit j of layer i, j < i.
    """
    layers = np.arange(num_layers)
    starts = (width * layers + layers * (layers - 1) // 2)[:, None]
    own = starts + np.arange(width)
    bits = starts + width + layers
    length = width * num_layers + num_layers * (num_layers - 1) // 2
    return own, np.where(np.tri(num_layers, k=-1, dtype=bool), bits, length)


def unpack(arch, num_layers: int, width: int):
    """Split an arch [D] into a layer's own decisions [L, W] and skip bits [L, L], lower triangular.

    NumPy arrays stay NumPy arrays; anything else becomes a JAX array.
    """
    xp = np if isinstance(arch, np.ndarray) else jnp
    padded = xp.append(xp.asarray(arch), 0)
    own, skips = positions(num_layers, width)
    return padded[own], padded[skips]


def pack(own, skips):
    """Join what `unpack` split: [..., L, W] and [..., L, L] give [..., D]; above is not read."""
    xp = np if isinstance(own, np.ndarray) else jnp
    layers, width = own.shape[-2:]
    own_places, skip_places = positions(layers, width)
    rows, columns = np.tril_indices(layers, -1)
    source = np.argsort(np.concatenate([own_places.ravel(), skip_places[rows, columns]]))
    flat = own.reshape(*own.shape[:-2], layers * width)
    return xp.concatenate([flat, skips[..., rows, columns]], -1)[..., source]


def check_arch(arch: tuple[int, ...], counts: tuple[int, ...]) -> int:
    """Return the number of layers of a static arch.

    Raises:
      ValueError: it is no tuple of integers, or has a wrong length, or a decision out of range.
    """
    if not isinstance(arch, tuple) or not all(type(value) is int for value in arch):
        raise ValueError("arch must be a tuple of Python integers: an array is for the traced "
                         f"network; got {type(arch).__name__}.")
    layers = num_layers(len(arch), len(counts))
    for position, (value, count) in enumerate(zip(arch, num_choices(layers, counts))):
        if not 0 <= value < count:
            raise ValueError(f"arch[{position}] must be in [0, {count - 1}], got {value}.")
    return layers


def check_num_layers(num_layers: int) -> None:
    """Raise ValueError unless a chain has a layer."""
    if type(num_layers) is not int or num_layers < 1:
        raise ValueError(f"num_layers must be an integer of 1 or more, got {num_layers!r}.")


def check_length(arch, num_layers: int, width: int) -> None:
    """Raise ValueError unless an arch is [D]."""
    length = width * num_layers + num_layers * (num_layers - 1) // 2
    if arch.shape != (length,):
        raise ValueError(f"arch must be [{length}], got {arch.shape}.")


def pool_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers of ENAS macro after which every map is halved: L // 3 - 1, 2 (L // 3) - 1.

    None where L is below 3.
    """
    third = num_layers // 3
    return (third - 1, 2 * third - 1) if third else ()


class Filter(NamedTuple):
    """One layer of NAS with RL; a layer without inputs reads the image."""

    height: int
    width: int
    strides: tuple[int, int]
    features: int
    inputs: tuple[int, ...]  # earlier layers, ascending


@dataclasses.dataclass(frozen=True)
class FilterChoices:
    """What a layer of NAS with RL may be (https://arxiv.org/abs/1611.01578, section 3.1 and 4.1).

    Attributes:
      heights, widths: of the kernel, odd.
      features: numbers of filters.
      strides: along height and width; (1,) is no decision, more are two decisions a layer. The
        paper's variant with strides has (1, 2, 3).

    Raises:
      ValueError: a choice is missing, repeated, or not positive; a kernel's size is even.
    """

    heights: tuple[int, ...] = (1, 3, 5, 7)
    widths: tuple[int, ...] = (1, 3, 5, 7)
    features: tuple[int, ...] = (24, 36, 48, 64)
    strides: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if (not isinstance(values, tuple) or not values or len(set(values)) < len(values)
                    or any(type(value) is not int or value < 1 for value in values)):
                raise ValueError(f"{name} must be a tuple of different integers of 1 or more, got "
                                 f"{values!r}.")
            if name in ("heights", "widths") and any(value % 2 == 0 for value in values):
                raise ValueError(f"{name} must be odd, got {values}.")

    @property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """[W] what a layer's own decisions choose from: height, width, (two strides,) filters."""
        strides = (self.strides,) * 2 if len(self.strides) > 1 else ()
        return (self.heights, self.widths, *strides, self.features)

    @property
    def counts(self) -> tuple[int, ...]:
        """[W] numbers of choices of a layer's own decisions."""
        return tuple(map(len, self.columns))

    def layers(self, arch: tuple[int, ...]) -> tuple[Filter, ...]:
        """Return the layers of a static arch; raises `ValueError` as `check_arch` does."""
        own, skips = unpack(np.array(arch, np.int64), check_arch(arch, self.counts),
                            len(self.columns))
        found = []
        for indices, bits in zip(own.tolist(), skips):
            values = [column[index] for column, index in zip(self.columns, indices)]
            down, right = values[2:4] if len(values) == 5 else self.strides * 2
            found.append(Filter(values[0], values[1], (down, right), values[-1],
                                tuple(np.flatnonzero(bits).tolist())))
        return tuple(found)


def loose_ends(layers: tuple[Filter, ...]) -> tuple[int, ...]:
    """Return the layers that no layer reads; the last one is always among them."""
    read = {source for layer in layers for source in layer.inputs}
    return tuple(number for number in range(len(layers)) if number not in read)
