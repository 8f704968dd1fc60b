"""What a farm is given and gives back: work, jobs, results, and the protocol of every farm."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from jaxnas import trial_json
from jaxnas.trials import Trial

MAX_RETRIES = 3  # of a job whose worker died or hung; then it has failed


class FarmError(RuntimeError):
    """No worker can do the work, or the farm is closed; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One evaluation to make; a trial of the store, see `trials.Store.claim`.

    Attributes:
      space: the name of the search space, not empty.
      arch: [L] integers, in the space's canonical form.
      recipe: JSON, everything else that changes the metrics.

    Raises:
      TrialError: one of them is no such thing.
    """

    space: str
    arch: tuple[int, ...]
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        arch: Any = getattr(self.arch, "tolist", lambda: self.arch)()
        trial_json.identify(self.space, arch, "")  # refuses what is no arch
        object.__setattr__(self, "arch", tuple(map(int, arch)))
        self.identity  # raises for a recipe that is no JSON

    @functools.cached_property
    def identity(self) -> tuple[str, str, str]:
        """What the store knows it by."""
        return trial_json.identify(self.space, self.arch, trial_json.canonical_json(self.recipe))


Evaluate = Callable[[Job], Mapping[str, Any]]  # name -> number or [n] numbers


@dataclasses.dataclass(frozen=True)
class Work:
    """What workers do: `function(config)` is called once in each, and what it returns for each job.

        # my_training.py, importable where the workers run
        def make(config):                   # once a worker: read data, compile
            train = compile_training(config["epochs"])
            def evaluate(job):              # job.arch is a tuple of integers
                return {"accuracy": train(job.arch)}
            return evaluate

        work = Work("my_training:make", {"epochs": 3})

    Metrics are numbers or lists of numbers. A job whose evaluation raises has failed, with the
    error's text, and so has one with a number that is not finite; neither is tried again.

    Attributes:
      function: "module:name", a function at the top of a module; never a script's own `__main__`
        where that is no module.
      config: JSON, what the function gets.

    Raises:
      ValueError: the module cannot be imported, or has no such function.
      TrialError: config is no JSON.
    """

    function: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        trial_json.canonical_json(self.config)
        self.load()

    def load(self) -> Callable[[Mapping[str, Any]], Evaluate]:
        """Import the module and return the function."""
        return load(self.function)


def load(name: str) -> Any:
    """Import "module:name", a function or class at the top level of a module, and return it.

    Raises:
      ValueError: it is no such name, the module cannot be imported, or has nothing of that name.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"what workers import must be 'module:name', got {name!r}.")
    if module_name == "__main__":
        raise ValueError(f"{name} is in the script that is running, which workers cannot import: "
                         "put it into a module of its own.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"the module of {name} cannot be imported ({error}): put it on the path "
                         "of Python, and give 'module:name'.") from error
    found = vars(module).get(attribute)
    if not callable(found):
        raise ValueError(f"the module of {name} has no function {attribute!r}: give 'module:name' "
                         "of one at its top level.")
    return found


def name_of(function: Callable[..., Any]) -> str:
    """Return the "module:name" of a function or class, also one of `python -m module`.

    Raises:
      ValueError: it is inside of another one, or of a script that is no module.
    """
    module, name = function.__module__, function.__qualname__
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if module == "__main__" and spec is not None:
        module = spec.name
    if module == "__main__" or not name.isidentifier():
        raise ValueError(f"workers cannot import {name} of {module}: put it at the top level of a "
                         "module that is not the script that is running.")
    return f"{module}:{name}"


def python_path() -> str:
    """Return what $PYTHONPATH of a worker is, so that it finds the modules that this process does.
    """
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


class Result(NamedTuple):
    """A job that is over."""

    ticket: int    # what `submit` returned
    trial: Trial   # as the store has it; perhaps failed, perhaps known before
    retries: int   # how often another worker had to begin again
    known: bool    # it was in the store when it was submitted


class Farm(Protocol):
    """Carries jobs to workers; use it in a `with`, which closes it.

    Every trial is in the store before its result is given: what was finished is kept, however the
    farm ends. A job whose worker dies, or gives no sign of life for a lease, is given to another at
    most `MAX_RETRIES` times; then it has failed. Jobs that are the same trial are evaluated once.
    """

    @property
    def workers(self) -> int:
        """How many jobs are worked on at once, at most."""
        ...

    def submit(self, job: Job) -> int:
        """Queue a job and return its ticket: 0, 1, 2, ...

        Raises:
          FarmError: the farm is closed.
        """
        ...

    def next(self, timeout: float | None = None) -> Result | None:
        """Wait for a job to finish; None after `timeout` seconds, or if nothing is submitted.

        Raises:
          FarmError: workers cannot begin, for a reason that another one would meet too.
        """
        ...

    def close(self) -> None:
        """End the workers; jobs in flight are given back to the store, unfinished."""
        ...

    def __enter__(self) -> Farm: ...

    def __exit__(self, *exception: object) -> None: ...
