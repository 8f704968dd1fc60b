"""Other people's dashboards and tuners over our runs, spaces and searchers; all are optional.

`JaxnasSampler` and `suggest_arch` are in `jaxnas.integrations.optuna_sampler`, which needs Optuna.
"""

from jaxnas.integrations.curves import Curves, Point
from jaxnas.integrations.optuna_export import (Evaluation, Exported, Part, export_evaluations,
                                               require_optuna, run_evaluations, stored_evaluations)
from jaxnas.integrations.parameters import Decision, choices, decisions, read_choices
from jaxnas.integrations.ray_tune import require_tune, tune_space
from jaxnas.integrations.tensorboard import FOLDER, Events, require_tensorboard

__all__ = [
    "Curves", "Decision", "Evaluation", "Events", "Exported", "FOLDER", "Part", "Point", "choices",
    "decisions", "export_evaluations", "read_choices", "require_optuna", "require_tensorboard",
    "require_tune",
    "run_evaluations", "stored_evaluations", "tune_space",
]
