"""The convolutional space of NAS with RL (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578).

Whole networks, layer by layer: the size, number and, in one variant, strides of its filters, and
which earlier layers it reads. (The variant with pooling between blocks of layers is left out.)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.networks.chain import FilterNetwork
from jaxnas.networks.chain_layout import FilterChoices, pack, unpack
from jaxnas.networks.chain_masked import TracedFilterNetwork
from jaxnas.search_spaces import chains, product

MAX_LAYERS = 31  # the inputs of a layer are the bits of an integer
MAX_ORDERS = 8   # of layers, followed at once by `canonical`


@dataclasses.dataclass(frozen=True)
class NASRL(chains.Chain):
    """L layers: `arch` [W L + L (L - 1) / 2] int32, layer by layer its own decisions and its bits.

    A layer's own decisions are height, width, (strides along both,) and number of filters; bit j
    of layer i makes it read layer j. A layer that reads none reads the image, and what none reads
    goes to the classifier. There is no edge to the layer before unless its bit is set. As text,
    "3x3x24|5x5x36:1|1x7x48:11", with strides "3x3s2x1x24".

    Archs that differ only in the order of the layers are one network, see `canonical`.

    Attributes:
      num_layers: L.
      choices: of a layer's own decisions; the default is the paper's without strides.

    Raises:
      ValueError: num_layers is not in [1, 31].
    """

    num_layers: int = 15
    choices: FilterChoices = FilterChoices()

    def __post_init__(self):
        if type(self.num_layers) is not int or not 1 <= self.num_layers <= MAX_LAYERS:
            raise ValueError(
                f"num_layers must be an integer in [1, {MAX_LAYERS}], got {self.num_layers!r}.")

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nasrl"

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """[W] what stands for the choices of a layer's own decisions."""
        marks = ("", "x", "s", "x", "x") if len(self.choices.columns) == 5 else ("", "x", "x")
        return tuple(tuple(f"{mark}{value}" for value in column)
                     for mark, column in zip(marks, self.choices.columns))

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch with these layers in any order: [D] -> [D].

        Such archs are one network, its channels in another order. Next is always, of the layers
        whose inputs are placed, one whose own decisions and then bits are smallest. Where several
        are, up to 8 orders are followed, and layers that `_codes` does not tell apart count as
        one, so that archs with many like layers may be the same network and not be told so.
        """
        length, width = self.num_layers, len(self.words)
        own, skips = unpack(arch, length, width)
        rank = jnp.zeros(length, jnp.int32)
        for column, count in enumerate(map(len, self.words)):
            rank = rank * count + own[:, column]
        codes = _codes(rank, skips)
        tie = (codes < codes[:, None]).sum(1)
        number = np.arange(length)
        same = (tie == tie[:, None]) & (number < number[:, None])  # as an earlier layer
        none = jnp.iinfo(jnp.int32).max

        def place(carry, position):
            alive, placed, bits, order = carry
            waits = jnp.any((skips > 0) & ~placed[:, None], axis=2)
            chosen = alive[:, None] & ~placed & ~waits  # [orders, L]
            for key in (rank, bits):
                key = jnp.where(chosen, key, none)
                chosen &= key == key.min()
            chosen &= ~jnp.any(chosen[:, None] & same, axis=2)
            key = jnp.where(chosen, np.arange(MAX_ORDERS)[:, None] * length + tie, none).ravel()
            best = jnp.argsort(key)[:MAX_ORDERS]
            parent, layer = best // length, best % length
            earlier = jnp.int32(1) << (length - 1 - position)  # earlier inputs weigh more
            placed = placed[parent] | (number == layer[:, None])
            bits = bits[parent] + skips[:, layer].T * earlier
            order = jnp.where(number == position, layer[:, None], order[parent])
            return (key[best] != none, placed, bits, order), None

        shape = (MAX_ORDERS, length)
        start = (np.arange(MAX_ORDERS) == 0, jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32),
                 jnp.zeros(shape, jnp.int32))
        order = jax.lax.scan(place, start, number)[0][3][0]
        return pack(own[order], skips[order][:, order]).astype(jnp.int32)

    def network(self, arch: jax.Array | np.ndarray, **options) -> FilterNetwork:
        """Return the fixed network of an arch [D]; `options` are `FilterNetwork`'s."""
        values = product.read_arch(arch, self.num_choices)
        return FilterNetwork(tuple(values), self.choices, **options)

    def traced_network(self, **options) -> TracedFilterNetwork:
        """Return the one network for every arch; `options` are `TracedFilterNetwork`'s."""
        return TracedFilterNetwork(self.num_layers, self.choices, **options)

    def num_parameters(
        self, arch: jax.Array | np.ndarray, *, num_classes: int = 10, channels: int = 3
    ) -> np.ndarray | jax.Array:
        """Count the parameters of `FilterNetwork`: [D] -> []; traceable.

        Args:
          arch: a NumPy array for an exact integer; a JAX array for float32, exact to 1e-6.
          num_classes: outputs of the classifier.
          channels: of the images.

        Raises:
          ValueError: a number that is not positive.
        """
        return self._count(arch, num_classes, (1, 1, channels))[0]

    def multiply_adds(
        self, arch: jax.Array | np.ndarray, *, num_classes: int = 10,
        shape: tuple[int, int, int] = (32, 32, 3)
    ) -> np.ndarray | jax.Array:
        """Count multiply-adds for one image of (H, W, C), as `num_parameters`: [D] -> []."""
        return self._count(arch, num_classes, shape)[1]

    def _count(self, arch, num_classes, shape):
        chains.check_image(num_classes, shape)
        on_host = isinstance(arch, np.ndarray)
        xp, dtype = (np, np.int64) if on_host else (jnp, jnp.float32)
        columns = self.choices.columns
        own, skips = unpack(arch, self.num_layers, len(columns))
        values = [xp.asarray(column, dtype)[own[:, i]] for i, column in enumerate(columns)]
        constant = xp.full((self.num_layers, 2), self.choices.strides[0], dtype)
        strides = xp.stack(values[2:4], 1) if len(columns) == 5 else constant
        sizes = xp.zeros((0, 2), dtype)
        for layer in range(self.num_layers):
            bits = skips[layer, :layer, None]
            image = xp.asarray(shape[:2], dtype) * (bits.sum() == 0)
            largest = xp.concatenate([sizes * bits, image[None]]).max(0)
            size = (largest + strides[layer] - 1) // strides[layer]
            sizes = xp.concatenate([sizes, size[None]])
        taps, filters = values[0] * values[1], values[-1]
        read = skips.astype(dtype) @ filters
        read = xp.where(skips.sum(1) == 0, xp.asarray(shape[2], dtype), read)
        kernels = taps * read * filters
        loose = (filters * (skips.sum(0) == 0)).sum()
        parameters = (kernels + 2 * filters).sum() + (loose + 1) * num_classes
        return parameters, (kernels * sizes.prod(1)).sum() + loose * num_classes


def _codes(rank: jax.Array, skips: jax.Array) -> jax.Array:
    """Hash of every layer [L] int32 what it is, what it reads and what reads it, to any distance.

    Equal in all archs that differ in the order of the layers only.
    """
    links = (skips > 0).astype(jnp.uint32)

    def mix(x: jax.Array) -> jax.Array:  # the finaliser of MurmurHash3
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    start = mix(rank.astype(jnp.uint32) + 1)

    def refine(codes, _):
        return mix(start + 3 * (links @ mix(codes + 5)) + 7 * (links.T @ mix(codes + 11))), None

    codes = jax.lax.scan(refine, start, length=len(rank))[0]
    return (codes >> 1).astype(jnp.int32)
