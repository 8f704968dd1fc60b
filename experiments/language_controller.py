"""What the searches of recurrent cells by a controller share: its settings, and the reward."""

from __future__ import annotations

import dataclasses

from experiments.language_retraining import LanguageConfig
from jaxnas.base import Objective

POSITIVE = ("controller_samples", "controller_size", "controller_lr", "reward_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControllerConfig(LanguageConfig):
    """A search by REINFORCE."""

    controller_samples: int = 10
    """Architectures of a step."""
    controller_size: int = 64
    """Of the controller's LSTM."""
    controller_lr: float = 3.5e-3
    """Learning rate of the controller's Adam."""
    entropy_weight: float = 1e-5
    """Of the controller's entropy, added to the reward."""
    baseline_decay: float = 0.99
    """Of the moving mean of rewards."""
    reward_scale: float = 80.0
    """c of the reward, which is c / perplexity, of NASRL c / perplexity^2."""


def check_controller(config: ControllerConfig) -> None:
    """Check what `language_retraining.check` does not, beside `POSITIVE`.

    Raises:
      ValueError: one sentence.
    """
    if not 0 <= config.baseline_decay <= 1:
        raise ValueError(f"baseline_decay must be in [0, 1], got {config.baseline_decay}.")
    if not config.entropy_weight >= 0:
        raise ValueError(f"entropy_weight must be 0 or more, got {config.entropy_weight}.")


def inverse_perplexity(scale: float, exponent: int = 1) -> Objective:
    """Return the objective scale / perplexity^exponent.

    ENAS has c = 80 and exponent 1, NASRL 2 and, as far as is known, the same c. Nothing is clipped:
    a perplexity is 1 or more, so that a reward is in (0, c], and that of an infinite one is 0.
    """
    return lambda metrics: scale / metrics["perplexity"] ** exponent
