"""What a NAS benchmark is here: architectures with stored metrics, and the one check of them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

MAX_CHOICES = 1 << 16  # of one decision; jaxnas.draws draws no more
MAX_DENSE_SIZE = 1 << 24  # entries of `Table.dense`: 64 MiB


class TableError(ValueError):
    """A table is missing or unusable; the message is one sentence naming file and array."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Architectures of a product of decisions, and what was measured of them, on the host.

    Make one with `make_table`, which converts what files hold. The arrays are read-only; two tables
    are equal only if they are the same object.

    Attributes:
      name: what results call it.
      source: the file or folder it was read from, for messages.
      num_choices: [L] choices of every decision.
      archs: [N, L] int32, all rows different; decision l in [0, num_choices[l]).
      metrics: name -> [N] float32 or float64; NaN means failed, or not measured.
      sha256: of the source's bytes.
      default_metric: what a search sees unless told otherwise.
      default_report_metric: what a result is reported in unless told otherwise.
      ids: [N] int32, the architectures' numbers in the published benchmark, or None.

    Raises:
      TableError: an attribute is not as above; the message names the array and the rows.
    """

    name: str
    source: str
    num_choices: tuple[int, ...]
    archs: np.ndarray
    metrics: Mapping[str, np.ndarray]
    sha256: str
    default_metric: str
    default_report_metric: str
    ids: np.ndarray | None = None

    def __post_init__(self):
        _check_archs(self.source, self.archs, self.num_choices)
        for name, values in self.metrics.items():
            if values.shape != self.archs.shape[:1] or values.dtype not in (np.float32, np.float64):
                raise TableError(
                    f"{self.source}: metric {name} must be [{len(self.archs)}] float32 or float64, "
                    f"one value a row of archs, got {list(values.shape)} {values.dtype}."
                )
            if np.isinf(values).any():
                raise TableError(f"{self.source}: metric {name} is infinite; a failure is NaN.")
        for name in (self.default_metric, self.default_report_metric):
            if np.isnan(self.metric(name)).all():
                raise TableError(
                    f"{self.source}: metric {name} has no finite value; choose another one."
                )
        if self.ids is not None and (
            self.ids.shape != self.archs.shape[:1] or self.ids.dtype != np.int32
        ):
            raise TableError(
                f"{self.source}: ids must be [{len(self.archs)}] int32, got "
                f"{list(self.ids.shape)} {self.ids.dtype}."
            )
        for array in (self.archs, self.ids, *self.metrics.values()):
            if array is not None:
                array.setflags(write=False)
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))

    @property
    def space_size(self) -> int:
        """Combinations of all decisions, in the table or not."""
        return math.prod(self.num_choices)

    def metric(self, name: str) -> np.ndarray:
        """Return a metric's values, [N] float32 or float64.

        Raises:
          TableError: there is no such metric; the message names near matches, and all there are.
        """
        if name not in self.metrics:
            near = difflib.get_close_matches(name, self.metrics, n=3)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise TableError(
                f"{self.source} has no metric {name!r}{hint}; choose one of "
                f"{', '.join(self.metrics) or 'none'}."
            )
        return self.metrics[name]

    def dense(self, name: str) -> np.ndarray:
        """Spread a metric over the whole space: [space_size] float32, NaN where there is no row.

        The order is that of `jaxnas.encodings.flat_index`: the last decision varies fastest.

        Raises:
          TableError: no such metric, or a space of more than 2 ** 24 combinations.
        """
        values = self.metric(name)
        if self.space_size > MAX_DENSE_SIZE:
            raise TableError(
                f"{self.source}: a dense table needs a space of at most {MAX_DENSE_SIZE} "
                f"combinations, num_choices has {self.space_size}; look rows up by "
                "jaxnas.encodings.words instead."
            )
        everywhere = np.full(self.space_size, np.nan, np.float32)
        rows = np.ravel_multi_index(tuple(self.archs.T), self.num_choices)
        with np.errstate(over="ignore"):
            everywhere[rows] = values
        everywhere[np.isinf(everywhere)] = np.nan  # too large for float32
        return everywhere


def make_table(
    name: str,
    source: str,
    archs: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    *,
    sha256: str,
    default_metric: str,
    default_report_metric: str | None = None,
    num_choices: tuple[int, ...] | None = None,
    ids: np.ndarray | None = None,
) -> Table:
    """Convert what a file holds and make a `Table` of it.

    Args:
      name: the table's name.
      source: the file or folder, for messages.
      archs: [N, L] integers of any width.
      metrics: name -> [N] floats, integers or booleans; what is not finite becomes NaN.
      sha256: of the source's bytes.
      default_metric: the search signal.
      default_report_metric: what is reported; default the search signal.
      num_choices: [L]; default 1 + the largest value of every decision.
      ids: [N] integers, the published numbers.

    Raises:
      TableError: an array is of another kind or shape, see also `Table`.
    """
    if archs.ndim != 2 or 0 in archs.shape:
        raise TableError(
            f"{source}: array archs must be [N, L], N architectures of L decisions, got shape "
            f"{list(archs.shape)}."
        )
    if archs.dtype.kind not in "iu":
        raise TableError(
            f"{source}: array archs must hold integers, got {archs.dtype}; store it with "
            ".astype('int32')."
        )
    outside = (archs < 0) | (archs >= MAX_CHOICES)
    if outside.any():
        row, decision = np.argwhere(outside)[0]
        raise TableError(
            f"{source}: array archs must hold 0 to {MAX_CHOICES - 1}, got {archs[row, decision]} "
            f"in row {row}, decision {decision}; number the choices of a decision from 0."
        )
    if num_choices is None:
        num_choices = tuple(int(n) + 1 for n in archs.max(axis=0))
    return Table(
        name, source, num_choices, np.array(archs, np.int32),
        {metric: _to_float(source, metric, values) for metric, values in metrics.items()},
        sha256, default_metric, default_report_metric or default_metric,
        None if ids is None else np.array(ids, np.int32),
    )


def _to_float(source: str, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiub":
        raise TableError(
            f"{source}: array {name} must hold numbers to be a metric, got {values.dtype}; store "
            "archs, num_choices and metrics only."
        )
    narrow = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    values = np.array(values, np.float32 if narrow else np.float64)
    values[np.isinf(values)] = np.nan
    return values


def _check_archs(source: str, archs: np.ndarray, num_choices: tuple[int, ...]) -> None:
    if archs.ndim != 2 or 0 in archs.shape or archs.dtype != np.int32:
        raise TableError(
            f"{source}: archs must be [N, L] int32, got {list(archs.shape)} {archs.dtype}."
        )
    if len(num_choices) != archs.shape[1] or any(not 1 <= n <= MAX_CHOICES for n in num_choices):
        raise TableError(
            f"{source}: num_choices must be {archs.shape[1]} integers in [1, {MAX_CHOICES}], one a "
            f"column of archs, got {list(num_choices)}."
        )
    outside = (archs < 0) | (archs >= np.array(num_choices))
    if outside.any():
        row, decision = np.argwhere(outside)[0]
        raise TableError(
            f"{source}: array archs must hold 0 to num_choices - 1, got {archs[row, decision]} of "
            f"{num_choices[decision]} choices in row {row}, decision {decision}."
        )
    _, first, which = np.unique(archs, axis=0, return_index=True, return_inverse=True)
    first = first[which.reshape(-1)]
    repeated = np.flatnonzero(first != np.arange(len(archs)))
    if repeated.size:
        raise TableError(
            f"{source}: array archs holds an architecture twice, in rows {first[repeated[0]]} and "
            f"{repeated[0]}; keep one row of each."
        )
