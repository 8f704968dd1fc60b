"""Search spaces as parameters of Ray Tune, for its searchers and schedulers.

    tuner = tune.Tuner(trainable, param_space=tune_space(space))

    def trainable(config):
        arch = read_choices(space, config)   # [L] int32
        tune.report({"accuracy": ...})

`python -m experiments.tune_table` is a whole program. Needs `pip install 'jaxnas[tune]'`.
"""

from __future__ import annotations

from typing import Any

from jaxnas.base import SearchSpace
from jaxnas.integrations import parameters


def require_tune() -> None:
    """Check that Ray Tune can be used, before anything long begins.

    Raises:
      ValueError: it is missing; the message says how to install it.
    """
    try:
        from ray import tune  # noqa: F401  (ray alone may be there without what Tune needs)
    except ImportError as error:
        raise ValueError("Tune's spaces need Ray Tune: pip install 'jaxnas[tune]'.") from error


def tune_space(space: SearchSpace) -> dict[str, Any]:
    """Return name -> `ray.tune.choice` of words for every decision; `read_choices` reads them.

    Tune draws every decision for itself, and knows nothing of what `space.is_valid` demands.

    Raises:
      ValueError: Ray Tune is missing.
    """
    require_tune()
    from ray import tune
    return {decision.name: tune.choice(list(decision.choices))
            for decision in parameters.decisions(space)}
