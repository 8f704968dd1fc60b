"""One evaluation by whoever makes it: what a job's metrics are, or why it has failed."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxnas import trial_json
from jaxnas.farms.jobs import Evaluate, Job
from jaxnas.trials import Claimed, Store, Trial


class Outcome(NamedTuple):
    """Plain values, so that any carrier can carry it."""

    metrics: dict[str, float | list[float]]  # empty if the evaluation raised
    error: str | None                        # None: it has succeeded
    seconds: float


def evaluate_job(evaluate: Evaluate, job: Job) -> Outcome:
    """Evaluate; an exception is the job's failure, and its traceback goes to stderr."""
    start = time.perf_counter()
    try:
        metrics = trial_json.metrics_from_json(trial_json.metrics_to_json(evaluate(job)))
    except (Exception, SystemExit) as error:
        traceback.print_exc(file=sys.stderr)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome({}, text, time.perf_counter() - start)
    return Outcome(metrics, not_finite(metrics), time.perf_counter() - start)


def not_finite(metrics: Mapping[str, Any]) -> str | None:
    """Say why metrics are those of a failure: a number, not one of a curve, that is not finite."""
    if any(isinstance(value, (int, float)) and not math.isfinite(value)
           for value in metrics.values()):
        return "a metric is not finite"
    return None


def finish(store: Store, claimed: Claimed, outcome: Outcome) -> Trial:
    """Store an outcome; LeaseLost as `Store.finish` raises it."""
    return store.finish(claimed, outcome.metrics, seconds=outcome.seconds,
                        failed=outcome.error is not None, error=outcome.error)
