"""Differentiable search on images: batches on device, programs, and the loop over steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.programs import Programs
from jaxnas import data, parallel, precision, training
from jaxnas.base import BilevelOptimizer
from jaxnas.data import ImageDataset, Splits
from jaxnas.networks import Supernet
from jaxnas.search_spaces import DARTS
from jaxnas.searchers import BilevelState, bilevel


def random_key(seed: int) -> jax.Array:
    """Return the key of a run: XLA's own generator ("rbg").

    Threefry, JAX's default, is compiled anew for every array that it fills: drawing a supernet's
    initial weights took 33 s to compile, and takes 8 s with this. Draws differ between platforms.
    """
    return jax.random.key(seed, impl="rbg")


class Recorded:
    """A piece of an optimiser that becomes an ahead-of-time compiled program of its own.

    Called under `jax.eval_shape` it only notes the shapes that it is called with; after
    `Programs.compile_all` it runs the compiled program, which refuses any other shape. With
    several devices the program is `parallel.mapped`, and the shapes get the devices' axis in front.
    """

    def __init__(
        self, programs: Programs, devices: list[jax.Device], name: str, function: Callable
    ) -> None:
        self._programs, self._devices, self._name = programs, devices, name
        self._function = function
        self._jitted = jax.jit(function)  # remembers its trace, for the next call and to lower
        self._program: Callable | None = None

    def __call__(self, *args: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
            if self._program is None:
                self._program = self._add(args)
            return self._jitted(*args)
        if self._program is None:
            raise RuntimeError(f"{self._name} was not traced before it was called.")
        return self._program(*args)

    def _add(self, args: Any) -> Callable:
        if len(self._devices) == 1:
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
            return self._programs.add(self._name, self._jitted, *shapes)
        count, placement = len(self._devices), parallel.sharding(self._devices)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype, sharding=placement), args
        )
        mapped = parallel.mapped(self._function, self._devices)
        return self._programs.add(self._name, mapped, *shapes)


class Task(NamedTuple):
    """What one search needs; every function is pure."""

    optimizer: BilevelOptimizer
    batch: Callable[[str, int], Any]  # ("weights" | "alphas", step) -> batch on the devices
    init: Callable[[], BilevelState]
    place: Callable[[BilevelState], BilevelState]  # one device's state -> on all devices
    shapes: BilevelState  # of one device's state
    steps_per_epoch: int
    total_steps: int


def make_supernet(config: Any, space: DARTS, dataset: ImageDataset) -> Supernet:
    """Build the search network of a configuration."""
    synchronised = config.all_devices > 1 and config.batch_norm == "sync"
    return space.supernet(
        features=config.features,
        num_layers=config.layers,
        num_classes=dataset.num_classes,
        scan_cells=config.scan_cells,
        scan_edges=config.scan_edges,
        remat=config.remat,
        axis_name=parallel.AXIS if synchronised else None,
    )


def initial_weights(
    supernet: Supernet, space: DARTS, dataset: ImageDataset, key: jax.Array
) -> Any:
    """Draw the weights of a supernet; lazily, so that a program of it leaves the network out."""
    image = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
    relaxed = jax.ShapeDtypeStruct(space.alphas_shape, jnp.float32)
    # Statistics over devices are no business of an initialisation.
    return supernet.clone(axis_name=None).lazy_init(key, image, relaxed)["params"]


def make_task(
    config: Any, space: DARTS, dataset: ImageDataset, splits: Splits, programs: Programs,
    before_alphas: optax.GradientTransformation | None = None,
) -> Task:
    """Build the search of a configuration (of `experiments.darts`) and register its programs.

    `before_alphas` changes the gradient of the alphas before their optimiser sees it.

    The keys of everything random follow from (seed, step), so a resumed search goes on as if it
    had not stopped. With several processes each makes its own part of the batch that one would
    make.
    """
    devices = parallel.global_devices(config.devices)
    axis_name = parallel.AXIS if len(devices) > 1 else None
    supernet = make_supernet(config, space, dataset)
    steps_per_epoch = data.steps_per_epoch(len(splits.weights), config.batch_size)
    schedule = training.cosine_by_epoch(
        config.weights_lr, config.weights_lr_min, config.epochs, steps_per_epoch
    )
    inner = training.sgd(
        schedule, momentum=config.momentum, weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    outer = training.adam(
        config.alphas_lr, b1=0.5, b2=0.999, weight_decay=config.alphas_weight_decay
    )
    if before_alphas is not None:
        outer = optax.chain(before_alphas, outer)

    def loss_of(network: Supernet):
        apply = precision.mixed(network.apply, config.precision)

        def loss_fn(weights, alphas, batch):
            logits = apply({"params": weights}, batch["images"], space.weights(alphas))
            return training.cross_entropy(logits, batch["labels"])

        return loss_fn

    products = config.gradient == "hessian_vector"
    optimizer = bilevel(
        loss_of(supernet), inner, outer, gradient=config.gradient, axis_name=axis_name,
        program=functools.partial(Recorded, programs, devices),
        reuse_gradient=config.gradient == "first_order" and config.share_programs,
        forward_loss_fn=loss_of(supernet.clone(forward_mode=True)) if products else None,
    )
    key = random_key(config.seed)

    def initial() -> BilevelState:
        weights_key, alphas_key = jax.random.split(jax.random.fold_in(key, 0))
        alphas = space.init_alphas(alphas_key)
        weights = initial_weights(supernet, space, dataset, weights_key)
        return optimizer.init(weights, alphas)

    functions = _batch_functions(config, dataset, splits, jax.random.fold_in(key, 1))
    init_program = programs.add("initial_state", jax.jit(initial))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    batch_programs = {
        name: programs.add(f"{name}_batch", jax.jit(function), *arrays, step)
        for name, (function, arrays) in functions.items()
    }
    # Notes the shapes of every piece; nothing is computed.
    function, arrays = functions["weights"]
    example, shapes = jax.eval_shape(function, *arrays, step), jax.eval_shape(initial)
    if axis_name is None:
        jax.eval_shape(optimizer.update, shapes, example, example)
    else:
        lead = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(
            (len(devices), *a.shape), a.dtype))
        share = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(
            (len(devices), a.shape[0] // config.devices, *a.shape[1:]), a.dtype))
        jax.eval_shape(
            jax.vmap(optimizer.update, axis_name=axis_name),
            lead(shapes), share(example), share(example),
        )

    def place(state: BilevelState) -> BilevelState:
        return state if axis_name is None else parallel.replicate(state, devices)

    def batch(split: str, step: int) -> Any:
        made = batch_programs[split](*functions[split][1], jnp.int32(step))
        if axis_name is None:
            return made
        return parallel.place(parallel.shard_batch(made, config.devices), devices)

    return Task(optimizer, batch, lambda: place(init_program()), place, shapes, steps_per_epoch,
                config.epochs * steps_per_epoch)


def _batch_functions(config: Any, dataset: ImageDataset, splits: Splits, key: jax.Array):
    """Return one pure function a split, (images, labels, rows, step) -> batch, and its arrays.

    The batch is this process's part; what is drawn is drawn for the whole, so that the parts
    together do not depend on their number.
    """
    size_here = config.batch_size // jax.process_count()
    here = slice(jax.process_index() * size_here, (jax.process_index() + 1) * size_here)
    augment = functools.partial(
        data.augment, mean=dataset.mean, std=dataset.std, max_value=dataset.max_value,
        crop_padding=dataset.crop_padding, flip=dataset.flip,
    )

    def make(split_key: jax.Array, size: int) -> Callable:
        order_key, augment_key = jax.random.split(split_key)

        def batch(images, labels, rows, step):
            chosen = rows[data.batch_indices(order_key, step, size, config.batch_size)]
            step_key = jax.random.fold_in(augment_key, step)
            return {"images": augment(step_key, images[chosen])[here],
                    "labels": labels[chosen][here]}

        return batch

    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    functions = {
        name: (make(jax.random.fold_in(key, number), len(rows)),
               (images, labels, jnp.asarray(rows)))
        for number, (name, rows) in enumerate(splits._asdict().items())
    }
    return functions


def entropy(alphas: jax.Array) -> float:
    """Return the mean entropy of the edges' distributions in bits; log2 O at the start."""
    logits = np.asarray(alphas, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    bits = -(probabilities * np.log2(np.maximum(probabilities, 1e-300))).sum(-1)
    return float(bits.mean())


def check_image_size(dataset: ImageDataset) -> None:
    """Check that two reductions can halve the images.

    Raises:
      ValueError: one sentence.
    """
    height, width = dataset.image_shape[:2]
    if height % 4 or width % 4:
        raise ValueError(
            f"images of {dataset.name} are {height}x{width}; the two reductions need height and "
            "width divisible by 4: crop or pad them."
        )


def check_search(config: Any, dataset: ImageDataset, splits: Splits) -> None:
    """Check what must fit together before anything is compiled.

    Raises:
      ValueError: one sentence.
    """
    check_image_size(dataset)
    for name, indices in splits._asdict().items():
        if config.batch_size > len(indices):
            raise ValueError(
                f"batch_size must be at most {len(indices)}, the images of the {name} split, got "
                f"{config.batch_size}."
            )
    if config.batch_size % config.all_devices:
        raise ValueError(
            f"batch_size must be divisible by devices, got {config.batch_size} and "
            f"{config.all_devices}" + (
                " of all processes." if config.all_devices > config.devices else ".")
        )
    if config.layers < 3 or config.features < 2 or config.features % 2:
        raise ValueError(
            f"layers must be 3 or more and features even and 2 or more, got {config.layers} and "
            f"{config.features}."
        )
    for name in ("epochs", "weights_lr", "alphas_lr", "clip_norm"):
        value = getattr(config, name)
        if not value > 0 or not math.isfinite(value):
            raise ValueError(f"{name} must be above 0, got {value}.")
    parallel.available_devices(config.devices)
