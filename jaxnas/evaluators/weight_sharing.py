"""Evaluation with shared weights: ENAS (Pham et al., 2018, https://arxiv.org/abs/1802.03268).

One network holds weights for all architectures. They are trained with another architecture at
every step (section 2.2, M = 1), and an architecture is scored by the accuracy that it has with
them on a minibatch of validation images. All functions here are pure; who draws the architectures
is not known here, and weights and controller are two pytrees that never meet: a score has no
derivative with respect to either.

Batch normalisation of a score. "batch", the default, takes the statistics of the images scored, as
the released micro search does. "running" takes the running ones, as the released macro search
does: they mix the statistics of all architectures, fit none of them, and make its validation noisy.

What a step changes. "used", the default, leaves every parameter that the sampled architectures do
not use as it is, bit by bit: no gradient, no weight decay, no momentum, and its momentum waits.
"all" is what the released code does: one momentum optimiser over all variables, the L2 term of all
variables in the loss, so that unused weights shrink and drift on between their turns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas import training
from jaxnas.base import Evaluator, Metrics, PyTree
from jaxnas.training import ApplyFn, AugmentFn, TrainState

UPDATES = ("used", "all")
STATISTICS = ("batch", "running")
MINIBATCHES = ("each", "shared")

UsedFn = Callable[[PyTree, jax.Array], PyTree]  # (params, arch) -> bool, broadcast against params
NormalizeFn = Callable[[jax.Array], jax.Array]


class WeightSharing(NamedTuple):
    """Shared weights as pure functions over a `training.TrainState`; A is an arch's own shape.

    Attributes:
      init: variables of the one-shot network -> state.
      train_step: (key, state, archs [M, *A] int32, images [N, H, W, C], labels [N] int32, *,
        drop_path_rate=0.0) -> (state, {"loss", "accuracy"} []), means over the M architectures of
        the batch before its update.
      train_epoch: (key, state, archs [steps, M, *A], images, labels, batches [steps, batch] int32,
        *, drop_path_rate=0.0) -> (state, {"loss", "accuracy"} [steps]): one scan of steps. The key
        of a step is folded from `key` and `state.step`.
      evaluator: (state, images, labels, *, batch_size, minibatch="each") -> `base.Evaluator` with
        "valid_accuracy" (percent) and "valid_loss" on a minibatch drawn without replacement from
        the images: one for each architecture, as published, or one "shared" by all of a call.
      rescore: (state, archs [B, *A], images, labels, *, batch_size) -> the same metrics on all
        images, each counted once. With "batch" statistics, the last batch is filled up with images
        from the front, so that its statistics are those of as many images.
    """

    init: Callable[..., TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    train_epoch: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluator: Callable[..., Evaluator]
    rescore: Callable[..., Metrics]


def weight_sharing(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    *,
    used_fn: UsedFn | None = None,
    update: str = "used",
    statistics: str = "batch",
    score_fn: ApplyFn | None = None,
    augment_fn: AugmentFn | None = None,
    normalize_fn: NormalizeFn | None = None,
) -> WeightSharing:
    """Train weights that all architectures share, and score architectures with them.

    Architectures are taken one after the other, in training as in scoring: under `vmap` a one-shot
    network runs every operation.

    Args:
      apply_fn: of the one-shot network: (variables, images, arch, train=..., drop_path_rate=...,
        rngs=..., mutable=...) -> logits; random streams "drop_path" and "dropout".
      optimizer: of the shared weights.
      used_fn: such as `networks.used_parameters.used_parameters` of the network; needed where
        `update` is "used".
      update: "used" or "all", see the module.
      statistics: "batch" or "running", see the module; a network without running ones has "batch".
      score_fn: the same network without dropout, for scoring by batch statistics; None is
        `apply_fn`, for a network that has none.
      augment_fn: (key, uint8 images) -> float images, for training; None is float32 of them.
      normalize_fn: images -> float images, for scoring; None is float32 of them.

    Raises:
      ValueError: an unknown option, or "used" without `used_fn`.
    """
    for name, value, allowed in (("update", update, UPDATES),
                                 ("statistics", statistics, STATISTICS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
    if update == "used" and used_fn is None:
        raise ValueError("used_fn must be given where update is 'used'; 'all' needs none.")
    scored = apply_fn if score_fn is None else score_fn

    def gradient(params, batch_stats, arch, x, labels, key, drop_path_rate):
        drop_key, dropout_key = key

        def loss_fn(params):
            logits, updated = apply_fn(
                training.network_variables(params, batch_stats), x, arch, train=True,
                drop_path_rate=drop_path_rate, mutable=["batch_stats"],
                rngs={"drop_path": drop_key, "dropout": dropout_key})
            loss = training.cross_entropy(logits, labels)
            accuracy = jnp.mean(logits.argmax(-1) == labels)
            stats = updated.get("batch_stats", batch_stats)  # not every network has running ones
            return loss, (stats, {"loss": loss, "accuracy": accuracy})

        return jax.grad(loss_fn, has_aux=True)(params)

    def train_step(
        key: jax.Array, state: TrainState, archs: jax.Array, images: jax.Array, labels: jax.Array,
        *, drop_path_rate: float | jax.Array = 0.0
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        chex.assert_rank([images, labels], [4, 1])
        augment_key, drop_key = jax.random.split(key)
        x = images.astype(jnp.float32) if augment_fn is None else augment_fn(augment_key, images)
        number = len(archs)
        keys = (drop_key, jax.random.fold_in(drop_key, 1))
        if number == 1:
            grads, (batch_stats, metrics) = gradient(
                state.params, state.batch_stats, archs[0], x, labels, keys, drop_path_rate)
        else:
            def add(carry, xs):
                batch_stats, total = carry
                arch, place = xs
                own = tuple(jax.random.fold_in(key, place) for key in keys)
                grads, (batch_stats, metrics) = gradient(
                    state.params, batch_stats, arch, x, labels, own, drop_path_rate)
                return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (batch_stats, grads), metrics = lax.scan(
                add, (state.batch_stats, zeros), (archs, jnp.arange(number)))
            grads = jax.tree.map(lambda total: total / number, grads)
            metrics = jax.tree.map(jnp.mean, metrics)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if update == "used":
            assert used_fn is not None
            masks = used_fn(state.params, archs[0]) if number == 1 else jax.tree.map(
                lambda mask: mask.any(0), jax.vmap(used_fn, (None, 0))(state.params, archs))
            params = where_used(masks, params, state.params)
            optimizer_state = where_used(masks, optimizer_state, state.optimizer_state)
        return TrainState(params, batch_stats, optimizer_state, state.step + 1), metrics

    def train_epoch(
        key: jax.Array, state: TrainState, archs: jax.Array, images: jax.Array, labels: jax.Array,
        batches: jax.Array, *, drop_path_rate: float | jax.Array = 0.0
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        chex.assert_rank([images, labels, batches], [4, 1, 2])

        def step(state, xs):
            archs, batch = xs
            return train_step(jax.random.fold_in(key, state.step), state, archs, images[batch],
                              labels[batch], drop_path_rate=drop_path_rate)

        return lax.scan(step, state, (archs, batches))

    def logits_of(state: TrainState, arch: jax.Array, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) if normalize_fn is None else normalize_fn(images)
        variables = training.network_variables(state.params, state.batch_stats)
        if statistics == "running":
            return scored(variables, x, arch, train=False)
        return scored(variables, x, arch, train=True, mutable=["batch_stats"])[0]

    def evaluator(
        state: TrainState, images: jax.Array, labels: jax.Array, *, batch_size: int,
        minibatch: str = "each"
    ) -> Evaluator:
        chex.assert_rank([images, labels], [4, 1])
        _check_batch_size(batch_size, len(labels))
        if minibatch not in MINIBATCHES:
            raise ValueError(f"minibatch must be one of {MINIBATCHES}, got {minibatch!r}.")

        def evaluate(key: jax.Array, archs: jax.Array) -> Metrics:
            def one(xs):
                place, arch = xs
                own = key if minibatch == "shared" else jax.random.fold_in(key, place)
                batch = jax.random.permutation(own, len(labels))[:batch_size]
                logits = logits_of(state, arch, images[batch])
                return _means(*_counts(logits, labels[batch]), batch_size)

            return lax.map(one, (jnp.arange(len(archs)), archs))

        return evaluate

    def rescore(
        state: TrainState, archs: jax.Array, images: jax.Array, labels: jax.Array, *,
        batch_size: int
    ) -> Metrics:
        chex.assert_rank([images, labels], [4, 1])
        count = len(labels)
        size = min(batch_size, count)
        _check_batch_size(size, count)
        batches = jnp.arange(-(-count // size) * size).reshape(-1, size)

        def one(arch):
            def add(totals, batch):
                rows = batch % count
                hits, losses = _counts(logits_of(state, arch, images[rows]), labels[rows])
                real = batch < count
                return (totals[0] + jnp.sum(hits & real),
                        totals[1] + jnp.sum(jnp.where(real, losses, 0.0))), None

            start = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
            (hits, losses), _ = lax.scan(add, start, batches)
            return _means(hits, losses, count)

        return lax.map(one, archs)

    def init(variables: Any) -> TrainState:
        return training.init_state(variables, optimizer)

    return WeightSharing(init, train_step, train_epoch, evaluator, rescore)


def where_used(masks: PyTree, new: PyTree, old: PyTree) -> PyTree:
    """Take `new` where the masks are True and `old` elsewhere, in whatever mirrors the parameters.

    Args:
      masks: bool, the structure of the parameters.
      new, old: the parameters, or an optimiser's state that holds trees of their structure, such
        as a momentum; all else in it is taken from `new`.
    """
    structure: Any = jax.tree.structure(masks)

    def mirrors(tree: PyTree) -> bool:
        return structure == jax.tree.structure(tree)

    def choose(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(jnp.where, masks, new, old) if mirrors(new) else new

    return jax.tree.map(choose, new, old, is_leaf=mirrors)


def _counts(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return hits [N] bool and cross-entropies [N]."""
    return logits.argmax(-1) == labels, training.cross_entropies(logits, labels)


def _means(hits: jax.Array, losses: jax.Array, count: int) -> Metrics:
    """Return percent and mean loss; an architecture whose loss is not finite has failed."""
    loss = jnp.sum(losses, dtype=jnp.float32) / count
    accuracy = 100 * jnp.sum(hits).astype(jnp.float32) / count
    return {"valid_accuracy": jnp.where(jnp.isfinite(loss), accuracy, jnp.nan),
            "valid_loss": loss}


def _check_batch_size(size: int, count: int) -> None:
    if not 1 <= size <= count:
        raise ValueError(f"batch_size must be in [1, {count}], the images, got {size}.")
