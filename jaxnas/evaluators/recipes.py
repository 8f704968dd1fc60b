"""How a candidate is trained from scratch, and which number of its training is its score.

The defaults are those of NAS with RL (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578, section
4.1): 50 epochs, SGD with Nesterov momentum, and the best of the last five validations, which
`objectives.power("valid_accuracy", 3)` cubes into the paper's reward. NASNet's children have 20
epochs (https://arxiv.org/abs/1707.07012), AmoebaNet's 25 (https://arxiv.org/abs/1802.01548).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from jaxnas import data, training

SCHEDULES = ("constant", "cosine")
SCORES = ("max", "mean", "best", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training from scratch; hashable, and as JSON a part of what identifies a trial.

    Attributes:
      epochs: passes over the training images, 1 or more.
      batch_size: images of a step, 1 or more; the paper of the defaults does not give it.
      learning_rate: of the first epoch, above 0.
      schedule: "constant", or "cosine" to 0, constant inside an epoch (`training.cosine_by_epoch`).
      momentum: in [0, 1).
      nesterov: as PyTorch defines it, g + momentum v for v.
      weight_decay: L2 added to the gradient, 0 or more; it shrinks unused slots of a network that
        holds all candidates, which nothing reads.
      clip_norm: largest global norm of the gradient, above 0; None is no limit.
      drop_path_rate: in [0, 1); the rate of epoch e is this times e / epochs.
      label_smoothing: in [0, 1), as in `training.cross_entropy`.
      score: of the validation accuracies of all epochs "best", "last", or of the last ones "max",
        "mean".
      last_epochs: how many "max" and "mean" look at, 1 or more; more than `epochs` is all.

    Raises:
      ValueError: an option out of range.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: str = "constant"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    drop_path_rate: float = 0.0
    label_smoothing: float = 0.0
    score: str = "max"
    last_epochs: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "last_epochs"):
            value = getattr(self, name)
            _check(name, value, _is_integer(value) and value >= 1, "an integer of 1 or more")
        for name in ("momentum", "drop_path_rate", "label_smoothing"):
            value = getattr(self, name)
            _check(name, value, _is_number(value) and 0 <= value < 1, "in [0, 1)")
        _check("learning_rate", self.learning_rate,
               _is_number(self.learning_rate) and self.learning_rate > 0, "finite and above 0")
        _check("weight_decay", self.weight_decay,
               _is_number(self.weight_decay) and self.weight_decay >= 0, "finite and 0 or more")
        _check("clip_norm", self.clip_norm, self.clip_norm is None or (
            _is_number(self.clip_norm) and self.clip_norm > 0), "above 0, or None for no limit")
        _check("nesterov", self.nesterov, isinstance(self.nesterov, bool), "True or False")
        _check("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {SCHEDULES}")
        _check("score", self.score, self.score in SCORES, f"one of {SCORES}")

    def to_json(self) -> dict[str, int | float | str | bool | None]:
        """Return all options by name, for a store of trials; `Recipe(**...)` reads it."""
        return dataclasses.asdict(self)

    def optimizer(self, num_images: int) -> optax.GradientTransformation:
        """Return the optimizer of a training on `num_images` images.

        Raises:
          ValueError: there are fewer images than one batch.
        """
        steps = data.steps_per_epoch(num_images, self.batch_size)
        rate: optax.ScalarOrSchedule = self.learning_rate
        if self.schedule == "cosine":
            rate = training.cosine_by_epoch(self.learning_rate, 0.0, self.epochs, steps)
        return optax.chain(
            optax.identity() if self.clip_norm is None else (
                optax.clip_by_global_norm(self.clip_norm)),
            optax.add_decayed_weights(self.weight_decay),
            optax.trace(decay=self.momentum, nesterov=self.nesterov),
            optax.scale_by_learning_rate(rate),
        )

    def drop_path(self, epoch: jax.Array) -> float | jax.Array:
        """Return the rate of an epoch, counted from 0; a number, 0, for networks without paths."""
        return self.drop_path_rate * epoch / self.epochs if self.drop_path_rate else 0.0

    def scores(self, curves: jax.Array) -> jax.Array:
        """Return the score of validation accuracies [..., epochs], [...]; NaN if one of them is."""
        if self.score == "best":
            return best(curves)
        if self.score == "last":
            return curves[..., -1]
        return (max_of_last if self.score == "max" else mean_of_last)(curves, self.last_epochs)


def best(curves: jax.Array) -> jax.Array:
    """Return the largest value of curves [..., epochs], [...]; NaN anywhere is NaN: failed."""
    return jnp.max(curves, -1)


def max_of_last(curves: jax.Array, count: int) -> jax.Array:
    """Return the largest of the last `count` values of [..., epochs]; NaN among them is NaN."""
    return jnp.max(curves[..., -count:], -1)


def mean_of_last(curves: jax.Array, count: int) -> jax.Array:
    """Return the mean of the last `count` values of [..., epochs]; NaN among them is NaN."""
    return jnp.mean(curves[..., -count:], -1)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be {allowed}, got {value!r}; change that option.")
