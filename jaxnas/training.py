"""The supervised trainer: an epoch as one scan over data that lie on the device.

Recipe of Liu et al., 2019, appendix A.2 (https://arxiv.org/abs/1806.09055) by default, with the
conventions of the PyTorch code it was published in: weight decay is added to the gradient before
the momentum and after clipping, and it covers batch normalisation and biases too. A network is any
`apply_fn(variables, x, *inputs, train=..., drop_path_rate=..., rngs=..., mutable=...)` that returns
logits, or (logits, auxiliary logits or None): the `apply` of a Flax module.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

PyTree = Any
ApplyFn = Callable[..., Any]
AugmentFn = Callable[[jax.Array, jax.Array], jax.Array]  # key, images [N, H, W, C] -> the same
TrainEpochFn = Callable[..., tuple["TrainState", dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """What training carries from step to step."""

    params: PyTree
    batch_stats: PyTree  # running statistics; an empty dict where the network has none
    optimizer_state: optax.OptState
    step: jax.Array      # [] int32, steps taken


def init_state(
    variables: Mapping[str, PyTree], optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step, from the variables that a network's `init` gave."""
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    return TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32))


def zeros(shapes: PyTree) -> PyTree:
    """Return arrays of zeros of the shapes and dtypes of a tree, with nothing compiled.

    What stands for a `TrainState` before the first epoch, and as the form of a restored one.
    """
    return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Return the mean cross-entropy, [].

    Args:
      logits: [N, classes].
      labels: [N] integers in [0, classes).
      label_smoothing: s in [0, 1): the target is (1 - s) one-hot + s / classes, as in
        quark0/darts train_imagenet.py (s = 0.1 there).
    """
    return cross_entropies(logits, labels, label_smoothing).mean()


def cross_entropies(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Return the cross-entropy of every example, [N]; arguments as in `cross_entropy`."""
    chex.assert_rank([logits, labels], [2, 1])
    log_probabilities = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0]
    if isinstance(label_smoothing, (int, float)) and label_smoothing == 0:
        return -chosen
    return -(1 - label_smoothing) * chosen - label_smoothing * log_probabilities.mean(1)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    clip_norm: float | None = 5.0,
) -> optax.GradientTransformation:
    """Return SGD with momentum and coupled weight decay, as PyTorch defines them.

    v <- momentum v + (clip(g) + weight_decay w); w <- w - learning_rate v.

    Args:
      learning_rate: a number, or a function of the step such as `cosine_by_epoch`.
      momentum: in [0, 1).
      weight_decay: L2 penalty, 0 or more.
      clip_norm: the largest global norm of the gradient (before weight decay); None is no limit.

    Raises:
      ValueError: an argument out of range.
    """
    _check("momentum", momentum, 0 <= momentum < 1 if _is_number(momentum) else True, "[0, 1)")
    _check_positive("clip_norm", clip_norm)
    _check_weight_decay(weight_decay)
    return optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam(
    learning_rate: optax.ScalarOrSchedule = 3e-4,
    b1: float = 0.5,
    b2: float = 0.999,
    weight_decay: float = 1e-3,
) -> optax.GradientTransformation:
    """Return Adam with coupled weight decay, as PyTorch's `Adam` (and not AdamW) defines it.

    The decay is added to the gradient before the moments. Defaults are those of the DARTS alphas.

    Args:
      learning_rate: a number, or a function of the step.
      b1, b2: decay of the first and the second moment, in [0, 1).
      weight_decay: L2 penalty, 0 or more.

    Raises:
      ValueError: an argument out of range.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        _check(name, value, 0 <= value < 1 if _is_number(value) else True, "[0, 1)")
    _check_weight_decay(weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam(b1, b2, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate),
    )


def cosine_by_epoch(
    peak: float, floor: float, num_epochs: int, steps_per_epoch: int
) -> optax.Schedule:
    """Return a cosine schedule that is constant inside an epoch.

    Epoch e = 0 .. E - 1 has floor + (peak - floor) (1 + cos(pi e / E)) / 2, PyTorch's
    `CosineAnnealingLR` stepped once an epoch; the floor itself is never reached.

    Args:
      peak: learning rate of the first epoch.
      floor: what it falls towards.
      num_epochs: E, 1 or more.
      steps_per_epoch: 1 or more.

    Returns:
      A function of the step, counted from 0 over all epochs, which may be traced.

    Raises:
      ValueError: a count below 1.
    """
    for name, count in (("num_epochs", num_epochs), ("steps_per_epoch", steps_per_epoch)):
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}.")

    def schedule(step: jax.Array | int) -> jax.Array:
        epoch = jnp.minimum(step // steps_per_epoch, num_epochs)
        return floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * epoch / num_epochs))

    return schedule


def make_train_epoch(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    augment_fn: AugmentFn | None = None,
    *,
    auxiliary_weight: float = 0.4,
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
) -> TrainEpochFn:
    """Build a pure function that runs an epoch, or any number of steps, as one scan.

    Args:
      apply_fn: see the module's docstring; called with `train=True`.
      optimizer: for instance `sgd(...)`.
      augment_fn: (key, uint8 images) -> float images, for instance `data.augment` with its options
        bound; None passes the images on as float32.
      auxiliary_weight: of the auxiliary head's loss, where the network has one.
      label_smoothing: as in `cross_entropy`.
      axis_name: mapped axis over which gradients, running statistics and metrics are averaged
        (each device has its own batches, same state, same key); None is one device.

    Returns:
      `train_epoch(key, state, images, labels, batches, *, drop_path_rate=0.0, inputs=())` ->
      `(state, metrics)`, with images [N, H, W, C] uint8, labels [N] int32, batches [steps, batch]
      int32 (rows of `data.epoch_batches`), `inputs` given to `apply_fn` after the images (the
      architecture of a `TracedNetwork`), and metrics {"loss", "accuracy"}, [steps] each, of the
      batch before its update. The key of a step is folded from `key` and `state.step`, so that an
      epoch in two chunks is the epoch in one.
    """

    def train_step(key, state, x, labels, drop_path_rate, inputs):
        augment_key, drop_key = jax.random.split(key)
        x = x.astype(jnp.float32) if augment_fn is None else augment_fn(augment_key, x)

        def loss_fn(params):
            outputs, updated = apply_fn(
                network_variables(params, state.batch_stats),
                x,
                *inputs,
                train=True,
                drop_path_rate=drop_path_rate,
                rngs={"drop_path": drop_key},
                mutable=["batch_stats"],
            )
            logits, auxiliary = _logits(outputs)
            loss = cross_entropy(logits, labels, label_smoothing)
            total = loss
            if auxiliary is not None:
                total += auxiliary_weight * cross_entropy(auxiliary, labels, label_smoothing)
            metrics = {"loss": loss, "accuracy": jnp.mean(logits.argmax(-1) == labels)}
            return total, (updated.get("batch_stats", state.batch_stats), metrics)

        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        if axis_name is not None:
            grads, batch_stats, metrics = lax.pmean((grads, batch_stats, metrics), axis_name)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, batch_stats, optimizer_state, state.step + 1), metrics

    def train_epoch(
        key: jax.Array,
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        batches: jax.Array,
        *,
        drop_path_rate: float | jax.Array = 0.0,
        inputs: tuple[jax.Array, ...] = (),
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        chex.assert_rank([images, labels, batches], [4, 1, 2])

        def step(state, batch):
            step_key = jax.random.fold_in(key, state.step)
            if axis_name is not None:  # every device augments and drops on its own
                step_key = jax.random.fold_in(step_key, lax.axis_index(axis_name))
            return train_step(
                step_key, state, images[batch], labels[batch], drop_path_rate, inputs
            )

        return lax.scan(step, state, batches)

    return train_epoch


def evaluate(
    apply_fn: ApplyFn,
    variables: Mapping[str, PyTree],
    images: jax.Array,
    labels: jax.Array,
    batch_size: int,
    *,
    normalize_fn: Callable[[jax.Array], jax.Array] | None = None,
    inputs: tuple[jax.Array, ...] = (),
) -> dict[str, jax.Array]:
    """Return mean loss and accuracy over a whole split; every example counts once.

    The last batch is filled up with masked examples, so the program has one shape; batch
    normalisation must use running statistics (`train=False`), or the filling would be seen.

    Args:
      apply_fn: see the module's docstring; called with `train=False`.
      variables: "params", and "batch_stats" if the network has them.
      images: [N, H, W, C].
      labels: [N] int32.
      batch_size: 1 or more, static; more than N is N.
      normalize_fn: images [batch, H, W, C] -> float; None passes them on as float32.
      inputs: given to `apply_fn` after the images.

    Returns:
      {"loss": [], "accuracy": []} float32.

    Raises:
      ValueError: batch_size below 1, or no images.
    """
    chex.assert_rank([images, labels], [4, 1])
    count = len(labels)
    if batch_size < 1 or count < 1:
        raise ValueError(
            f"batch_size and the number of images must be 1 or more, got {batch_size} and {count}."
        )
    batch_size = min(batch_size, count)
    steps = -(-count // batch_size)

    def step(totals, batch):
        index = jnp.minimum(batch, count - 1)
        x = images[index]
        x = x.astype(jnp.float32) if normalize_fn is None else normalize_fn(x)
        logits, _ = _logits(apply_fn(variables, x, *inputs, train=False))
        real = batch < count
        losses = jnp.where(real, cross_entropies(logits, labels[index]), 0)
        hits = real & (logits.argmax(-1) == labels[index])
        sums = {"loss": losses.sum(), "accuracy": hits.sum().astype(losses.dtype)}
        return jax.tree.map(jnp.add, totals, sums), None

    batches = jnp.arange(steps * batch_size).reshape(steps, batch_size)
    dtype = jnp.result_type(float, *jax.tree.leaves(variables["params"]))
    totals, _ = lax.scan(step, dict.fromkeys(("loss", "accuracy"), jnp.zeros((), dtype)), batches)
    return jax.tree.map(lambda total: total / count, totals)


def _logits(outputs: Any) -> tuple[jax.Array, jax.Array | None]:
    return outputs if isinstance(outputs, tuple) else (outputs, None)


def network_variables(params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    """Return what `apply` takes; without the collection of statistics where there are none."""
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))  # a tracer is not checked


def _check(name: str, value: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be in {allowed}, got {value}.")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and _is_number(value):
        _check(name, value, value > 0, "(0, inf), or None for no limit")


def _check_weight_decay(value: float) -> None:
    if _is_number(value):
        _check("weight_decay", value, value >= 0, "[0, inf)")
