"""Network morphism: a trained network made deeper, wider or more connected, its function the same.

Chen et al., 2016, Net2Net (https://arxiv.org/abs/1511.05641), as AutoKeras uses it (Jin et al.,
2019, https://arxiv.org/abs/1806.10282, section 3; released code 0.3.7, nn/layer_transformer.py), on
the variables of `networks.MorphableNetwork`. Transforms of whole trees, on the host, in NumPy: the
shapes are new every time, and every new shape would be a compilation.

With noise 0 the function is kept exactly, up to rounding, when running statistics are used.
AutoKeras changes it in three places, and here is what stands for them:

- It inserts batch normalisation with mean 0, variance 1 and scale 1, off by 1 / sqrt(1 + eps), and
  far off in training. Here the new BN has the running statistics of what it reads, which are those
  of the BN that read it before, scale sqrt(variance + eps) and bias mean: the identity with running
  statistics, and nearly so with those of a batch. (Behind a pool they are the pooled ones.)
- It inserts a ReLU behind BN. Here a whole layer is inserted, ReLU, BN, convolution, always in
  front of the ReLU of what follows, and ReLU twice is ReLU once; a maximum between does not matter.
- Dropout is inserted nowhere.

The optimiser's state is transformed along: every tree in it that is shaped as the parameters
(momentum, moments) goes the way of the weights, with zero where weights are new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import conv_chains
from jaxnas.conv_chains import Connect, ConvChain, Deepen, Operation, Widen, shifted

EPSILON = 1e-5    # of the networks' batch normalisation
STYLES = ("zero", "split")
UNIT = np.array([0.0, 1.0])  # what the noise of identities and zeros is measured by

PyTree = Any
Tree = dict[str, Any]


class Morphable(NamedTuple):
    """A network with everything that training has put into it."""

    chain: ConvChain
    params: Tree             # of `networks.MorphableNetwork(chain)`
    batch_stats: Tree
    optimizer_state: PyTree = ()  # of any Optax optimiser; () is none


def morph(key: jax.Array, network: Morphable, operation: Operation, *, noise: float = 0.0,
          style: str = "zero") -> Morphable:
    """Apply any operation; see the functions below.

    Args:
      key: of what is random.
      network: is not changed.
      operation: `Deepen`, `Widen` or `Connect`; its chain is `conv_chains.transform`'s.
      noise: as in `deepen`.
      style: as in `widen`.
    """
    if isinstance(operation, Deepen):
        return deepen(key, network, operation.after, operation.kernel, noise=noise)
    if isinstance(operation, Widen):
        return widen(key, network, operation.layer, operation.width, noise=noise, style=style)
    connect = add_skip if operation.kind == "add" else concat_skip
    return connect(key, network, operation.source, operation.target, noise=noise)


def deepen(key: jax.Array, network: Morphable, after: int, kernel: int, *,
           noise: float = 0.0) -> Morphable:
    """Insert a layer that is the identity behind layer `after`: Net2DeeperNet.

    ReLU, BN (see the module), and a convolution with 1 at the centre for every channel.

    Args:
      key: of the noise.
      network: is not changed.
      after: layer, from 0.
      kernel: of the new layer, odd.
      noise: width of the uniform noise on new and copied weights, as a share of the range of what
        they are copied from, 0 or more; AutoKeras has 1e-4. More than 0 keeps the function nearly.

    Raises:
      ValueError: an argument out of range.
    """
    _check_noise(noise)
    chain = conv_chains.transform(network.chain, Deepen(after, kernel))
    follower = _norm_behind(network.chain, after)
    width, new = chain.layers[after + 1].width, after + 1
    dirac = np.zeros((kernel, kernel, width, width))
    dirac[kernel // 2, kernel // 2] = np.eye(width)
    statistics = {name: np.asarray(value) for name, value in network.batch_stats[follower].items()}
    scale, bias = np.sqrt(statistics["var"] + EPSILON), statistics["mean"]

    def grow(tree: Tree, noisy: _Noise | None) -> Tree:
        dtype = tree["kernel_0"].dtype
        tree = {_renamed(name, after): value for name, value in tree.items()}
        if noisy is None:  # a momentum
            values = [np.zeros_like(value) for value in (dirac, np.zeros(width), scale, bias)]
        else:
            values = [noisy(dirac, UNIT), noisy(np.zeros(width), UNIT), scale, bias]
        ours = [value.astype(dtype) for value in values]
        return tree | {f"kernel_{new}": ours[0], f"bias_{new}": ours[1],
                       f"norm_{new}": {"scale": ours[2], "bias": ours[3]}}

    batch_stats = {_renamed(name, after): value for name, value in network.batch_stats.items()}
    batch_stats[f"norm_{new}"] = statistics
    return _grown(key, network, chain, grow, batch_stats, noise)


def widen(key: jax.Array, network: Morphable, layer: int, width: int, *, noise: float = 0.0,
          style: str = "zero") -> Morphable:
    """Give a layer copies of its channels, chosen at random: Net2WiderNet.

    All that makes the layer's output is copied: its convolution and bias, the 1x1 convolution of
    concatenations and those of skips that end here; so is the BN that reads it.

    Args:
      key: of the choice and the noise.
      network: is not changed.
      layer: from 0; the last one, which AutoKeras leaves out, may be widened too.
      width: channels then, more than now.
      noise: as in `deepen`.
      style: what those that read the channels make of the copies. "zero", as AutoKeras: nothing,
        new inputs have weight 0. "split", as Net2Net: the weights of a channel are shared out among
        its copies, which then have equal gradients and stay equal, unless there is noise.

    Raises:
      ValueError: an argument out of range.
    """
    _check_noise(noise)
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, got {style!r}.")
    chain = conv_chains.transform(network.chain, Widen(layer, width))
    choice_key, noise_key = jax.random.split(key)
    old = network.chain.layers[layer].width
    copied = np.concatenate([np.arange(old), _generator(choice_key).integers(0, old, width - old)])
    share = 1 / np.bincount(copied)[copied]  # of a channel's weight, "split"
    reader = _norm_behind(network.chain, layer)
    readers = [(f"skip_{s.source}_{s.target}", 0) for s in chain.skips if s.source == layer]
    readers += [("head", 0)] if layer == len(chain.layers) - 1 else [(f"kernel_{layer + 1}", 2)]
    producers = [f"kernel_{layer}", f"bias_{layer}",
                 *(f"skip_{s.source}_{s.target}" for s in chain.skips if s.target == layer)]

    def copies(value: np.ndarray, axis: int, noisy: _Noise | None) -> np.ndarray:
        found = np.take(value, copied, axis)
        return found if noisy is None else noisy(found, value, axis, old)

    def read(value: np.ndarray, axis: int, noisy: _Noise | None) -> np.ndarray:
        found = np.take(value, copied, axis)
        shape = [1] * value.ndim
        shape[axis] = width
        weight = share if style == "split" else np.arange(width) < old
        found = (found * weight.reshape(shape)).astype(value.dtype)
        return found if noisy is None else noisy(found, value, axis, old)

    def grow(tree: Tree, noisy: _Noise | None) -> Tree:
        tree = dict(tree)
        for name in producers:
            tree[name] = copies(np.asarray(tree[name]), -1, noisy)
        main = f"main_{layer}"
        if main in tree:  # reads the convolution of this very layer, which is wider too
            tree[main] = read(copies(np.asarray(tree[main]), 1, noisy), 0, noisy)
        tree[reader] = {name: np.take(np.asarray(value), copied)
                        for name, value in tree[reader].items()}
        for name, axis in readers:
            if name == "head":
                tree[name] = dict(tree[name]) | {
                    "kernel": read(np.asarray(tree[name]["kernel"]), axis, noisy)}
            else:
                tree[name] = read(np.asarray(tree[name]), axis, noisy)
        return tree

    batch_stats = dict(network.batch_stats)
    batch_stats[reader] = {name: np.take(np.asarray(value), copied)
                           for name, value in batch_stats[reader].items()}
    return _grown(noise_key, network, chain, grow, batch_stats, noise)


def add_skip(key: jax.Array, network: Morphable, source: int, target: int, *,
             noise: float = 0.0) -> Morphable:
    """Add the ReLU of layer `source`, through a 1x1 convolution of zeros, to layer `target`.

    Args:
      key: of the noise.
      network: is not changed.
      source, target: layers, source first, that no skip connects yet.
      noise: as in `deepen`.

    Raises:
      ValueError: an argument out of range.
    """
    return _connected(key, network, Connect(source, target, "add"), noise)


def concat_skip(key: jax.Array, network: Morphable, source: int, target: int, *,
                noise: float = 0.0) -> Morphable:
    """Concatenate layer `target` and the ReLU of `source`, then convolve 1x1 by [identity | 0].

    Several concatenations that end in one layer are one, of all: AutoKeras nests them, which is the
    same linear map. Arguments and errors as in `add_skip`.
    """
    return _connected(key, network, Connect(source, target, "concat"), noise)


def moments(optimizer_state: PyTree, params: PyTree) -> tuple[PyTree, ...]:
    """Return the trees in an optimiser's state that are structured as the parameters, in order."""
    is_like_params = _is_like(params)
    return tuple(filter(is_like_params, jax.tree.leaves(optimizer_state, is_leaf=is_like_params)))


def replace_moments(optimizer_state: PyTree, params: PyTree, trees: Iterable[PyTree]) -> PyTree:
    """Put other trees where `moments` found some, in the same order; they may be of other shape."""
    is_like_params, left = _is_like(params), iter(trees)
    return jax.tree.map(lambda node: next(left) if is_like_params(node) else node,
                        optimizer_state, is_leaf=is_like_params)


def _is_like(params: PyTree) -> Callable[[PyTree], bool]:
    structure: Any = jax.tree.structure(params)
    return lambda node: bool(structure == jax.tree.structure(node))


def _connected(key: jax.Array, network: Morphable, operation: Connect, noise: float) -> Morphable:
    _check_noise(noise)
    chain = conv_chains.transform(network.chain, operation)
    source, target, kind = operation
    width, main = chain.layers[target].width, f"main_{target}"

    def grow(tree: Tree, noisy: _Noise | None) -> Tree:
        dtype = tree["kernel_0"].dtype
        new = {f"skip_{source}_{target}": np.zeros((chain.layers[source].width, width))}
        if kind == "concat" and main not in tree:
            new[main] = np.eye(width)
        return tree | {
            name: (np.zeros_like(value) if noisy is None else noisy(value, UNIT)).astype(dtype)
            for name, value in new.items()}

    return _grown(key, network, chain, grow, network.batch_stats, noise)


class _Noise:
    """Uniform noise of a share of a reference's range; none draws nothing."""

    def __init__(self, key: jax.Array, share: float) -> None:
        self._share = share
        self._generator = _generator(key) if share else None

    def __call__(self, value: np.ndarray, reference: np.ndarray, axis: int = 0,
                 first: int = 0) -> np.ndarray:
        """Add it from index `first` of an axis on."""
        if self._generator is None:
            return value
        width = self._share * np.ptp(reference)
        drawn = self._generator.uniform(-width / 2, width / 2, value.shape)
        np.moveaxis(drawn, axis, 0)[:first] = 0
        return (value + drawn).astype(value.dtype)


def _grown(key: jax.Array, network: Morphable, chain: ConvChain,
           grow: Callable[[Tree, _Noise | None], Tree], batch_stats: Tree,
           noise: float) -> Morphable:
    """Transform the parameters, and with them what the optimiser keeps of each."""
    state, params = network.optimizer_state, network.params
    optimizer_state = replace_moments(
        state, params, [grow(tree, None) for tree in moments(state, params)])
    return Morphable(chain, grow(network.params, _Noise(key, noise)), batch_stats, optimizer_state)


def _norm_behind(chain: ConvChain, layer: int) -> str:
    """Return the name of the BN that reads a layer's output."""
    return "norm_head" if layer == len(chain.layers) - 1 else f"norm_{layer + 1}"


def _renamed(name: str, after: int) -> str:
    """Return the name of a parameter once a layer was inserted behind `after`."""
    head, *numbers = name.split("_")
    return "_".join([head, *(
        number if number == "head" else str(shifted(int(number), after)) for number in numbers)])


def _generator(key: jax.Array) -> np.random.Generator:
    """Return a generator of NumPy that a key decides."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def _check_noise(noise: float) -> None:
    if not (isinstance(noise, (int, float)) and 0 <= noise < np.inf):
        raise ValueError(f"noise must be a number of 0 or more, got {noise!r}.")
