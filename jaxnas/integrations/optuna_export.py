"""Evaluations as trials of an Optuna study, for optuna-dashboard and Optuna's own plots.

Every decision is a categorical parameter (see `parameters`), the objectives are the values, what
failed is a trial that failed, curves are intermediate values, and the genotype and all other
metrics are user attributes. What a study has already is not added again, so that an export may be
repeated while a search goes on. Needs `pip install 'jaxnas[optuna]'`.
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxnas import genotypes, reporting, trial_json
from jaxnas.base import SearchSpace
from jaxnas.integrations import parameters
from jaxnas.search_spaces import DARTS, PairCellSpace
from jaxnas.trials import Store

Direction = Literal["maximize", "minimize"]
IDENTITY = "jaxnas_evaluation"  # the user attribute that says what a trial is
CURVE = "_by_epoch"             # ends the name of a curve in a store


class Evaluation(NamedTuple):
    """One evaluation, from wherever."""

    identity: str        # unique in its study, and the same at every export
    arch: tuple[int, ...]  # [L]
    metrics: Mapping[str, float]  # what is not finite is left out; all that may be an objective
    failed: bool
    finished: float      # seconds since 1970
    seconds: float       # that it took
    curves: Mapping[str, tuple[float, ...]] = {}  # metric -> by epoch; of the one objective shown
    facts: Mapping[str, Any] = {}  # JSON, for people


class Part(NamedTuple):
    """Evaluations of a run that are comparable; "" where there is no such thing."""

    phase: str   # "search", "retrain", "derive"
    stage: str   # of a search in stages, whose spaces differ
    group: str   # "found" or "random", or the strategy
    seed: str    # of a search with several

    @property
    def name(self) -> str:
        """What is not "", with blanks between."""
        return " ".join(filter(None, self))


class Exported(NamedTuple):
    """What an export did."""

    added: int
    known: int      # trials that were there before
    foreign: int    # evaluations of no architecture of the space, left out


def require_optuna() -> None:
    """Check that Optuna is there, before anything long begins.

    Raises:
      ValueError: it is missing; the message says how to install it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("studies need Optuna: pip install 'jaxnas[optuna]'.")


def export_evaluations(
    evaluations: Iterable[Evaluation], space: SearchSpace, storage: Any, study_name: str,
    objectives: Mapping[str, Direction], *, facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Add evaluations to a study, which is made if there is none.

    Args:
      evaluations: those with an identity that the study has are skipped.
      space: of all of them.
      storage: what Optuna takes: the URL of a database, or a storage.
      study_name: of the study.
      objectives: metric -> direction; an evaluation that lacks one has failed.
      facts: JSON that identifies the study; it becomes user attributes of it.

    Raises:
      ValueError: Optuna is missing, there is no objective, or the study is there with other
        objectives or facts.
    """
    require_optuna()
    import optuna
    from optuna.trial import FrozenTrial, TrialState
    study = open_study(storage, study_name, objectives)
    for name, value in (facts or {}).items():
        if study.user_attrs.get(name, value) != value:
            raise ValueError(f"the study {study_name!r} is of another {name}: choose another name "
                             "or storage.")
        if name not in study.user_attrs:
            study.set_user_attr(name, value)
    distributions: dict[str, Any] = {
        decision.name: optuna.distributions.CategoricalDistribution(decision.choices)
        for decision in parameters.decisions(space)}
    known = {trial.user_attrs.get(IDENTITY) for trial in study.get_trials(deepcopy=False)}
    before, added, foreign = len(known), 0, 0
    for evaluation in evaluations:
        if evaluation.identity in known:
            continue
        try:
            params = parameters.choices(space, evaluation.arch)
        except ValueError:
            foreign += 1
            continue
        known.add(evaluation.identity)
        values = [evaluation.metrics.get(name, math.nan) for name in objectives]
        failed = evaluation.failed or not all(map(math.isfinite, values))
        finished = datetime.datetime.fromtimestamp(evaluation.finished)
        curve = evaluation.curves.get(next(iter(objectives)), ())
        study.add_trial(FrozenTrial(
            number=-1, trial_id=-1,  # the storage gives them
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            value=None, values=None if failed else values,
            datetime_start=finished - datetime.timedelta(seconds=evaluation.seconds),
            datetime_complete=finished, params=params, distributions=distributions,
            user_attrs=_attributes(evaluation, space), system_attrs={},
            intermediate_values=dict(enumerate(curve)) if len(objectives) == 1 else {}))
        added += 1
    return Exported(added, before, foreign)


def open_study(storage: Any, study_name: str, objectives: Mapping[str, Direction]) -> Any:
    """Return the Optuna study of this name, made if there is none, whose values are `objectives`.

    Raises:
      ValueError: there is no objective, or the study is there with others.
    """
    import optuna
    if not objectives:
        raise ValueError("objectives must name one metric at least.")
    names, directions = list(objectives), list(objectives.values())
    study = optuna.create_study(storage=storage, study_name=study_name, directions=directions,
                                load_if_exists=True)
    found = [direction.name.lower() for direction in study.directions]
    if study.metric_names not in (None, names) or found != directions:
        raise ValueError(f"the study {study_name!r} has the objectives {study.metric_names} "
                         f"({', '.join(found)}), not {names} ({', '.join(directions)}): choose "
                         "another name or storage.")
    if study.metric_names is None:
        with warnings.catch_warnings():  # it is marked as experimental since 3.2
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)
    return study


def stored_evaluations(store: Store, space: str, recipe: Mapping[str, Any] | None = None,
                       ) -> Iterator[Evaluation]:
    """Yield the finished trials of a store, of one space and one recipe, or of all recipes."""
    for trial in store.trials(space, recipe):
        sha256 = trial_json.sha256(trial_json.canonical_json(trial.recipe))
        metrics = {name: value for name, value in trial.metrics.items()
                   if isinstance(value, float)}
        curves = {name.removesuffix(CURVE): tuple(value) for name, value in trial.metrics.items()
                  if isinstance(value, list) and name.endswith(CURVE)}
        facts = {"recipe": sha256, "order": trial.order}
        if trial.error is not None:
            facts["error"] = trial.error
        yield Evaluation(f"{sha256[:16]} {list(trial.arch)}", trial.arch, metrics, trial.failed,
                         trial.finished_at, trial.seconds, curves, facts)


def run_evaluations(run_directory: Path) -> dict[Part, list[Evaluation]]:
    """Return the evaluations of a run's metrics.jsonl in order, those apart that differ in kind.

    Args:
      run_directory: as experiments write it.

    Returns:
      What has an arch, by the part of the run that it belongs to.

    Raises:
      OSError: there is no metrics.jsonl or config.json.
      ValueError: metrics.jsonl holds no metrics.
    """
    started = (run_directory / "config.json").stat().st_mtime
    found: dict[Part, list[Evaluation]] = {}
    for line in reporting.read_metrics(run_directory / "metrics.jsonl"):
        row: dict[str, Any] = line
        arch = row.get("arch")
        if row["kind"] != "evaluation" or not isinstance(arch, list) or not all(
                type(value) is int for value in arch):
            continue
        phase, stage, group, strategy = (
            str(row.get(name, "")) for name in ("phase", "stage", "group", "strategy"))
        part = Part(phase, stage, group or strategy, f"seed{row['seed']}" if "seed" in row else "")
        rows = found.setdefault(part, [])
        metrics = {name: float(value) for name, value in row.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool)
                   and name not in ("seconds", "number", "seed", "run", "cost_seconds", "budget")}
        facts: dict[str, Any] = {
            name: row[name] for name in ("run", "budget", "budget_unit", "canonical")
            if name in row}
        rows.append(Evaluation(
            f"{len(rows)} {arch}", tuple(arch), metrics, bool(row.get("failed")),
            started + row["seconds"], float(row.get("cost_seconds") or 0.0), {}, facts))
    return found


def _attributes(evaluation: Evaluation, space: SearchSpace) -> dict[str, Any]:
    """Return what a trial says besides: which evaluation, the genotype, metrics, facts."""
    arch = np.array(evaluation.arch, np.int32)
    readable = space.decode(arch)
    genotype = readable if isinstance(readable, genotypes.Genotype) else genotypes.Encoded(
        space.name, evaluation.arch, readable)
    return {IDENTITY: evaluation.identity, "arch": list(evaluation.arch),
            "genotype": genotypes.to_json_dict(
                genotype, space.rules if isinstance(space, (DARTS, PairCellSpace)) else None),
            **{name: value for name, value in evaluation.metrics.items() if math.isfinite(value)},
            **evaluation.facts}
