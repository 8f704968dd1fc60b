"""A search that trains children from scratch: any space, network, searcher, recipe and objective.

The search, then random search at equal cost (as many children, by the same programs), then both
best networks and some random ones retrained with several seeds by one program. Every child is in
the trial store as soon as it is trained (`child_trials`); every step of a searcher is a checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from experiments import child_trials, common, retraining
from experiments.child_trials import Child, FarmTrials, Kind, SharedTrials
from jaxnas import data, evaluators, parallel, reporting, search
from jaxnas.base import Objective, Readable, Searcher, SearchSpace
from jaxnas.costs import Cost
from jaxnas.data import ImageDataset, Validation
from jaxnas.evaluators import Examples, Recipe
from jaxnas.evaluators.from_scratch import METRICS
from jaxnas.farms import Farm
from jaxnas.trials import Store

GROUPS = ("found", "random")  # the search, and random search
CLOCKS = ("search", "retrain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChildrenConfig(common.CommonConfig):
    """Children of any kind."""

    evaluations: int = 40
    """Children of the search, and as many of the random search beside it."""
    child_seed: int = 0
    """Of the split and of all children's trainings; runs that share it can share a store."""
    population: int = 0
    """Children that one call of the program trains; 0: one a device."""
    form: Literal["auto", "sequential", "vmap"] = "auto"
    """One child after the other, or side by side; see jaxnas/evaluators/children.py."""
    store: Path | None = None
    """Trial store to share with other runs; default trials.sqlite in the run directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChildConfig(retraining.RetrainingConfig, ChildrenConfig, child_trials.FarmConfig):
    """What every search that trains children on images has."""

    num_seeds: int = 3
    """Retrainings of each network that is compared, and random networks retrained."""
    recipe: Recipe = Recipe()
    """How a child is trained."""
    valid_fraction: float = 0.1
    """Share of the training images that children are judged by."""
    limit: int | None = None
    """At most so many training images for the children."""


class Measured(NamedTuple):
    """What a search reads of its children."""

    names: tuple[str, ...]                     # metrics of a child; NaN where it has none
    shown: str                                 # the one of them that progress shows
    unit: str
    best: Callable[[np.ndarray], Any]          # of the values [n] of `shown`, NaN and all
    epochs: int                                # that a child is trained


class AnyStage(Protocol):
    """Steps of a search whose children are of one kind."""

    @property
    def name(self) -> str:
        """Of the stage."""
        ...

    @property
    def space(self) -> SearchSpace:
        """Of the children: arch [L]."""
        ...

    @property
    def searcher(self) -> Searcher:
        """Asks for archs [B, L' >= L], of which the first L decisions count."""
        ...

    @property
    def baseline(self) -> Searcher:
        """Random search, likewise."""
        ...

    @property
    def steps(self) -> int:
        """Of B children."""
        ...


class AnySystem(Protocol):
    """What `Searches` needs of a system."""

    @property
    def stages(self) -> Sequence[AnyStage]:
        """One after the other; the states of their searchers have one structure."""
        ...

    @property
    def objective(self) -> Objective:
        """Of the children's metrics."""
        ...

    @property
    def costs(self) -> Callable[[np.ndarray], Mapping[str, Any]]:
        """Further metrics [B] of archs [B, L]."""
        ...


class Stage(NamedTuple):
    """Steps of a search whose children are of one kind.

    Stages of one network and one `num_choices` share its program.
    """

    name: str
    space: SearchSpace    # of the children: arch [L]
    network: Any          # Flax module that takes the architecture as an array
    inputs: Callable[[jax.Array], Mapping[str, jax.Array]]  # `given` [P] -> what it takes by name
    searcher: Searcher    # asks for archs [B, L' >= L], of which the first L decisions count
    baseline: Searcher    # random search, likewise
    steps: int            # of B children
    multiply_adds: Callable[[], float]  # of the program, for one image; for estimates
    num_choices: tuple[int, ...] | None = None  # [P] of `given`; None: the space's
    given: Callable[[np.ndarray], np.ndarray] = lambda archs: archs  # archs [B, L] -> [B, P]

    @property
    def program_choices(self) -> tuple[int, ...]:
        """[P] choices of the decisions that the program takes."""
        return self.space.num_choices if self.num_choices is None else self.num_choices

    def shares(self, other: Stage) -> bool:
        """Tell whether one program trains the children of both."""
        return self.network == other.network and self.program_choices == other.program_choices


class Conclusion(NamedTuple):
    """What a system adds to the report of its run."""

    metrics: Mapping[str, reporting.Metric]
    extra: Mapping[str, Any]  # of result.json
    text: str                 # lines for the terminal


class System(NamedTuple):
    """What is searched, how, and what becomes of it."""

    experiment: str                     # python -m experiments.<experiment>
    title: str                          # of the published system
    stages: tuple[Stage, ...]           # the states of their searchers have one structure
    objective: Objective
    final: Any                          # Flax module of the retraining, for the last stage's archs
    final_inputs: Callable[[np.ndarray], jax.Array]   # arch [L] -> what `final` takes
    final_cost: Callable[[np.ndarray], Cost]          # arch [L], of the fixed network
    decode: Callable[[np.ndarray], Readable]          # arch [L] -> what genotype.json holds
    published: Mapping[str, reporting.Published] = {}  # data set -> test accuracy
    costs: Callable[[np.ndarray], Mapping[str, Any]] = lambda archs: {}  # metrics [B] of [B, L]
    conclude: Callable[[Any], Conclusion] | None = None  # what a `child_run` run reports besides


MakeTrain = Callable[[Stage, Any, ImageDataset, Examples], child_trials.Train]


def make_train(stage: Stage, config: Any, dataset: ImageDataset,
               examples: Examples) -> child_trials.Train:
    """Compile the training of a stage's children, `given` as the program takes them."""
    options: dict[str, Any] = {
        "mean": dataset.mean, "std": dataset.std, "max_value": dataset.max_value}
    trainer = evaluators.train_children(
        stage.network, config.recipe, inputs=stage.inputs, form=form(config),
        augment=functools.partial(data.augment, crop_padding=dataset.crop_padding,
                                  flip=dataset.flip, **options),
        normalize=functools.partial(data.normalize, **options))
    seen: dict[tuple[int, ...], dict[str, Any]] = {}

    def record(arch: np.ndarray, metrics: dict[str, float], curves: dict[str, Any]) -> None:
        seen[tuple(arch.tolist())] = {
            **metrics, **{f"{name}_by_epoch": curve for name, curve in curves.items()}}

    evaluate = evaluators.from_scratch(
        trainer, examples, stage.program_choices,
        population=population(config), seed=config.child_seed, record=record,
        devices=parallel.available_devices(config.devices) if config.devices > 1 else None)
    key = jax.random.key(0)  # is not used: a child's randomness is its own

    def train(archs: np.ndarray) -> list[dict[str, Any]]:
        seen.clear()
        evaluate(key, archs)
        return [seen[tuple(arch)] for arch in archs.tolist()]

    return train


def form(config: ChildrenConfig) -> str:
    """Return "sequential" or "vmap"."""
    if config.form != "auto":
        return config.form
    return evaluators.default_form(jax.default_backend())


def population(config: ChildrenConfig) -> int:
    """Return how many children one call trains."""
    return config.population or config.devices


def identity(stage: Stage, config: ChildConfig, dataset: ImageDataset) -> Kind:
    """Return what identifies a stage's children in a store."""
    versions = common.versions()
    return Kind(stage.space.name, {
        "recipe": config.recipe.to_json(), "network": describe_module(stage.network),
        "data": {"sha256": dataset.sha256, "valid_fraction": config.valid_fraction,
                 "limit": config.limit},
        "seed": config.child_seed, "platform": jax.default_backend(),
        "versions": {name: versions[name] for name in ("jax", "jaxlib", "flax", "jaxnas")}})


def describe_module(network: Any) -> dict[str, Any]:
    """Return the attributes of a Flax module as JSON; what has no JSON form by its repr."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)

    fields = [field.name for field in dataclasses.fields(network)
              if field.name not in ("parent", "name")]
    return {"class": type(network).__name__,
            **{name: plain(common.to_json(getattr(network, name))) for name in fields}}


def load(config: ChildConfig) -> tuple[ImageDataset, Validation]:
    """Read and split the data, and check what every search of children needs.

    Raises:
      ValueError: one sentence.
    """
    reporting.require_matplotlib()
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    split = data.split_validation(
        dataset, fraction=config.valid_fraction, seed=config.child_seed, limit=config.limit)
    retraining.check_retraining(config, dataset)
    if config.recipe.batch_size > len(split.train):
        raise ValueError(f"recipe.batch_size must be at most {len(split.train)}, the images that "
                         f"children are trained on, got {config.recipe.batch_size}.")
    check_children(config)
    parallel.available_devices(config.devices)
    return dataset, split


def check_children(config: ChildrenConfig) -> None:
    """Check the settings of children.

    Raises:
      ValueError: one sentence.
    """
    if config.population < 0 or 0 < config.population < config.devices:
        raise ValueError("population must be at least devices, or 0 for one a device, got "
                         f"{config.population} and {config.devices}.")
    if config.evaluations < 1:
        raise ValueError(f"evaluations must be 1 or more, got {config.evaluations}.")
    if config.store is not None and not config.store.absolute().parent.is_dir():
        raise ValueError(f"--store {config.store}: its folder does not exist; make it first.")


def steps(evaluations: int, batch_size: int, flag: str) -> int:
    """Return how many batches are `evaluations`.

    Raises:
      ValueError: no whole number of them.
    """
    if evaluations % batch_size:
        raise ValueError(f"evaluations must be a multiple of {flag}, got {evaluations} and "
                         f"{batch_size}.")
    return evaluations // batch_size


def group_key(seed: int, group: str) -> jax.Array:
    """Return the key of a search; random search has its own."""
    return jax.random.fold_in(jax.random.key(seed), GROUPS.index(group))


class Searches:
    """The search and the random search of one run; `state` is their part of a checkpoint.

    A child that failed and has a finite fitness all the same is told to the searcher with it.
    """

    def __init__(self, system: AnySystem, config: Any, kinds: list[Kind],
                 trains: list[child_trials.Train], store: Store, progress: reporting.Progress,
                 stop: Callable[[], bool], measured: Measured | None = None,
                 farm: Farm | None = None) -> None:
        """Prepare; `measured` (None: what images have) is of `config`; a farm replaces `trains`."""
        self.system, self.config, self.kinds, self.trains = system, config, kinds, trains
        self.store, self.progress, self.stop, self.farm = store, progress, stop, farm
        self.measured = measured or Measured(
            METRICS, "valid_accuracy", " %", np.nanmax, config.recipe.epochs)
        self.trained = 0
        first = system.stages[0]
        self.state = {group: jax.jit(functools.partial(search.init, searcher=searcher))(
            group_key(config.seed, group)) for group, searcher in zip(
                GROUPS, (first.searcher, first.baseline))}
        self.canonical = [jax.jit(jax.vmap(stage.space.canonical)) for stage in system.stages]

    @property
    def steps(self) -> int:
        """Steps of each group."""
        return sum(stage.steps for stage in self.system.stages)

    @property
    def children(self) -> int:
        """Children of each group."""
        return sum(stage.steps * stage.searcher.batch_size for stage in self.system.stages)

    def run(self, group: str, rows: list[dict[str, Any]],
            on_step: Callable[[list[dict[str, Any]], search.History], None]) -> bool:
        """Go on to the end of a group's search; False if it was stopped before.

        Args:
          group: of GROUPS.
          rows: of the children so far, as `on_step` got them.
          on_step: called after a step, when `state` is new, with its children and history.
        """
        before = 0
        name = "search" if group == "found" else "random search"
        with self.progress.phase(name, total=self.children, completed=len(rows)) as bar:
            shown = self.measured.shown
            scores = [row[shown] for row in rows if row[shown] is not None]
            for number, stage in enumerate(self.system.stages):
                done = max(0, int(self.state[group].step) - before)
                before += stage.steps
                if done < stage.steps and not self._stage(
                        group, number, stage.steps - done, bar, scores, on_step):
                    return False
        return True

    def _stage(self, group, number, count, bar, scores, on_step) -> bool:
        stage, measured = self.system.stages[number], self.measured
        batch: list[tuple[list[int], list[int], Child]] = []

        def on_child(child: Child) -> None:
            score = child.metrics.get(measured.shown, np.nan)
            scores.append(score)
            best = np.nan if np.isnan(scores).all() else measured.best(np.array(scores))
            bar.advance(1, f"{score:.2f}{measured.unit}, best {best:.2f}{measured.unit}")

        hooks: dict[str, Any] = {"stop": self.stop, "on_child": on_child}
        shared = SharedTrials(
            self.store, self.kinds[number], self.trains[number], **hooks,
            population=population(self.config)) if self.farm is None else FarmTrials(
                self.farm, self.kinds[number], **hooks)

        def evaluate(key: jax.Array, archs: np.ndarray) -> dict[str, np.ndarray]:
            del key
            asked = archs[:, :len(stage.space.num_choices)]
            canonical = np.asarray(self.canonical[number](asked))
            children = shared.evaluate(canonical)
            batch[:] = zip(asked.tolist(), canonical.tolist(), children)
            trained = {name: np.array([child.metrics.get(name, np.nan) for child in children])
                       for name in measured.names}
            return {**trained, **self.system.costs(canonical)}

        def stepped(state: search.SearchState, history: search.History) -> bool:
            self.state[group] = state
            rows = [{"phase": "search", "group": group, "stage": stage.name, "arch": arch,
                     "canonical": canonical,
                     **{name: float(value[0, i]) for name, value in history.metrics.items()},
                     "fitness": float(history.fitness[0, i]),
                     "failed": child.failed or not np.isfinite(history.fitness[0, i]).item(),
                     "cost_seconds": child.seconds, "budget": measured.epochs,
                     "budget_unit": "epochs"}
                    for i, (arch, canonical, child) in enumerate(batch)]
            on_step(rows, history)
            return self.stop()

        searcher = stage.searcher if group == "found" else stage.baseline
        start = int(self.state[group].step)
        try:
            search.run_on_host(self.state[group], searcher, evaluate, self.system.objective,
                               num_steps=count, on_step=stepped)
        except child_trials.Stopped:
            return False
        finally:
            self.trained += shared.trained
        return int(self.state[group].step) - start == count
