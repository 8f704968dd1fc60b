"""Many candidates ("children") trained from scratch by one compiled program.

The architecture is an argument of the network (`TracedNetwork`, `TracedPairNetwork`, the chains',
NAS-Bench-201's with weights), so that a population needs one compilation, whoever its members are.
Everything that is random in a member comes from its own key: it is the same alone, in any
population, in either form and on any number of devices, up to rounding. Keys of JAX's "rbg" are the
exception in the vmap form: vectorised, their bits depend on their neighbours'.

What the forms cost, for B members:

- **"sequential"**, one member after the other (`lax.map`): B times the FLOPs of one, and the memory
  of one whatever B is. A network that switches between operations runs the chosen one only. A
  member that diverges stops at the end of that epoch, and one that is not active costs nothing but
  its initial state.
- **"vmap"**, all at once: B times the memory of one. A network that switches runs every operation
  on every edge, about O times the FLOPs; one that weights or masks (NAS-Bench-201, NAS with RL)
  costs the same, but its convolutions become grouped ones. A diverged member is masked and still
  costs its share, and everybody waits for the last.
- **Over devices** (`populations`): either form inside, a share of the members on each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas import data, training
from jaxnas.data import ImageDataset, Validation
from jaxnas.evaluators.recipes import Recipe
from jaxnas.training import AugmentFn, TrainState

FORMS = ("sequential", "vmap")
CURVES = ("valid_accuracy", "valid_loss", "train_loss")

Inputs = Callable[[jax.Array], Mapping[str, jax.Array]]


class Network(Protocol):
    """A Flax module: `__call__(x, **inputs, train, drop_path_rate)` -> logits [N, classes]."""

    @property
    def apply(self) -> Callable[..., Any]:
        """(variables, x, ...) -> logits."""
        ...

    @property
    def lazy_init(self) -> Callable[..., Any]:
        """(key, shapes ...) -> variables."""
        ...


class Examples(NamedTuple):
    """What children learn from; on the device and arguments of the program, not constants in it."""

    images: jax.Array      # [N, H, W, C] uint8
    labels: jax.Array      # [N] int32
    train_rows: jax.Array  # [T] int32, rows of images
    valid_rows: jax.Array  # [V] int32


class ChildTrainer(NamedTuple):
    """Pure functions, for jit, vmap and pmap.

    Attributes:
      init: (key, arch, examples) -> TrainState of one member before its first step.
      train: (keys [B], archs [B, ...], examples, active [B] bool) -> {"valid_accuracy" in percent,
        "valid_loss", "train_loss": [B, epochs] float32, "diverged_epoch": [B] int32}. The training
        loss is the mean of an epoch's batches before their updates. `diverged_epoch` is the first,
        from 0, with a loss that is not finite, or -1; from there on curves are NaN. A member that
        is not active is not trained: NaN.
      recipe: what it trains by.
      form: "sequential" or "vmap".
    """

    init: Callable[[jax.Array, jax.Array, Examples], TrainState]
    train: Callable[[jax.Array, jax.Array, Examples, jax.Array], dict[str, jax.Array]]
    recipe: Recipe
    form: str


def default_form(platform: str) -> str:
    """Return the form for a platform, "cpu", "gpu" or "tpu".

    On CPU sequential: `benchmarks/bench_children.py`, 16 members on 2 loaded cores, found side by
    side 3.6 times slower for chains of NAS with RL and equally fast for cells of NAS-Bench-201, at
    16 times the memory. There choose `method="shifts"` where the network has a choice: gradients of
    `lax.conv` are slow inside loops, and those chains took 7 times as long. Elsewhere vmap, which
    was not measured: small members leave an accelerator idle. A network that switches between
    operations should be sequential there too.
    """
    return "sequential" if platform == "cpu" else "vmap"


def examples(dataset: ImageDataset, split: Validation) -> Examples:
    """Put the training images of a data set on the default device, with who trains on which."""
    return Examples(jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels, jnp.int32),
                    jnp.asarray(split.train, jnp.int32), jnp.asarray(split.valid, jnp.int32))


def member_keys(key: jax.Array, archs: jax.Array) -> jax.Array:
    """Fold architectures into a key: archs [B, L] int32 -> keys [B].

    Equal architectures have equal keys, whenever and by whomever they are asked for.
    """
    chex.assert_rank(archs, 2)

    def one(arch: jax.Array) -> jax.Array:
        return lax.scan(lambda key, value: (jax.random.fold_in(key, value), None), key, arch)[0]

    return jax.vmap(one)(archs)


def train_children(
    network: Network, recipe: Recipe, *, inputs: Inputs | None = None,
    augment: AugmentFn | None = None, normalize: Callable[[jax.Array], jax.Array] | None = None,
    form: str = "sequential", valid_batch_size: int | None = None,
) -> ChildTrainer:
    """Return a trainer of populations.

    Args:
      network: takes the architecture as an array; without an auxiliary head.
      recipe: how each is trained.
      inputs: arch -> what the network takes by name, such as `lambda a: {"weights":
        space.weights(a)}`; traced. None: {"arch": arch}.
      augment: (key, images) -> float images, for training; None: float32 of the images.
      normalize: images -> float images, for validation; None: as above.
      form: "sequential" or "vmap"; what they cost is written above, `default_form` chooses.
      valid_batch_size: of the validation, which it does not change; None: the recipe's.

    Raises:
      ValueError: an unknown form, or a batch size below 1.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}; default_form chooses one.")
    valid_size = recipe.batch_size if valid_batch_size is None else valid_batch_size
    if valid_size < 1:
        raise ValueError(f"valid_batch_size must be 1 or more, or None for the recipe's, got "
                         f"{valid_size}.")
    named: Inputs = (lambda arch: {"arch": arch}) if inputs is None else inputs

    def apply_named(names, variables, x, *values, rngs=None, **options):
        if rngs:  # networks that have dropout read a stream of their own
            rngs = rngs | {"dropout": jax.random.fold_in(rngs["drop_path"], 1)}
        return network.apply(variables, x, **dict(zip(names, values)), rngs=rngs, **options)

    def init(key: jax.Array, arch: jax.Array, examples: Examples) -> TrainState:
        image = jax.ShapeDtypeStruct((2, *examples.images.shape[1:]), jnp.float32)
        shapes = jax.eval_shape(lambda: dict(named(arch)))
        # lazy: the program draws the parameters and leaves the network out
        variables = network.lazy_init(key, image, train=False, **shapes)
        return training.init_state(variables, recipe.optimizer(len(examples.train_rows)))

    def one(key, arch, active, examples):
        init_key, order_key, step_key = jax.random.split(key, 3)
        images, labels, train_rows, valid_rows = examples
        arguments = named(arch)
        apply = functools.partial(apply_named, tuple(arguments))
        values = tuple(arguments.values())
        run_epoch = training.make_train_epoch(
            apply, recipe.optimizer(len(train_rows)), augment,
            label_smoothing=recipe.label_smoothing)
        valid = images[valid_rows], labels[valid_rows]

        def epoch(carry):
            number, state, _, curves = carry
            batches = train_rows[
                data.epoch_batches(order_key, number, len(train_rows), recipe.batch_size)]
            state, steps = run_epoch(
                step_key, state, images, labels, batches,
                drop_path_rate=recipe.drop_path(number), inputs=values)
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            result = training.evaluate(
                apply, variables, *valid, valid_size, normalize_fn=normalize, inputs=values)
            train_loss = steps["loss"].mean()
            alive = jnp.isfinite(train_loss) & jnp.isfinite(result["loss"])
            row = {"valid_accuracy": 100 * result["accuracy"], "valid_loss": result["loss"],
                   "train_loss": train_loss}
            curves = {name: curve.at[number].set(
                jnp.where(alive, row[name], jnp.nan).astype(curve.dtype))
                for name, curve in curves.items()}
            return number + 1, state, alive, curves

        # Of a while loop over members side by side JAX makes one that runs until all have ended,
        # and masks those that have: the form needs no second program text.
        number, _, alive, curves = lax.while_loop(
            lambda carry: (carry[0] < recipe.epochs) & carry[2], epoch,
            (jnp.int32(0), init(init_key, arch, examples), active,
             {name: jnp.full(recipe.epochs, jnp.nan, jnp.float32) for name in CURVES}))
        return curves | {"diverged_epoch": jnp.where(alive, -1, number - 1)}

    def train(keys, archs, examples, active):
        chex.assert_equal_shape_prefix([keys, archs, active], 1)
        chex.assert_rank(list(examples), [4, 1, 1, 1])
        if form == "vmap":
            return jax.vmap(one, (0, 0, 0, None))(keys, archs, active, examples)
        return lax.map(lambda m: one(m[0], m[1], m[2], examples), (keys, archs, active))

    return ChildTrainer(init, train, recipe, form)


def state_bytes(trainer: ChildTrainer, arch_shape: tuple[int, ...], examples: Examples) -> int:
    """Return the bytes of one member's state and gradient: parameters twice, the rest once."""
    arch = jax.ShapeDtypeStruct(arch_shape, jnp.int32)
    state = jax.eval_shape(trainer.init, jax.eval_shape(lambda: jax.random.key(0)), arch, examples)
    leaves = jax.tree.leaves(state) + jax.tree.leaves(state.params)
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
