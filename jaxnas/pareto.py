"""Pareto fronts of several objectives at once: who is on them, how crowded, what they dominate.

Functions of points [N, M] float32, M objectives that are all maximised (negate a cost). Buffers
keep their size: `mask` [N] bool says which rows count; a row with a value that is not finite has
failed and never counts. All can be traced; `jax.vmap` them over seeds.

A point dominates another if it is nowhere worse and somewhere better.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_OBJECTIVES = 3  # of `hypervolume`


class Front(NamedTuple):
    """A front as the first rows of a buffer."""

    indices: jax.Array  # [N] int32; rows of the points, the front first, then all others
    size: jax.Array     # [] int32; how many are on the front


def dominates(first: jax.Array, second: jax.Array) -> jax.Array:
    """Tell whether first dominates second: [..., M], [..., M] -> [...] bool; false for NaN."""
    return jnp.all(first >= second, axis=-1) & jnp.any(first > second, axis=-1)


def counted(points: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Tell which rows count, those with finite values within the mask: [N, M] -> [N] bool.

    Raises:
      ValueError: points are no [N >= 1, M >= 1], or the mask no [N].
    """
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points must be [N >= 1, M >= 1], got {list(points.shape)}.")
    if mask is not None and mask.shape != points.shape[:1]:
        raise ValueError(f"mask must be [{points.shape[0]}], got {list(mask.shape)}.")
    finite = jnp.all(jnp.isfinite(points), axis=-1)
    return finite if mask is None else finite & mask


def non_dominated(points: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Tell which rows no other dominates: [N, M] -> [N] bool. Equal rows are so all or none.

    By sorting for M = 2, N log N steps; else by comparing all pairs.

    Raises:
      ValueError: a shape does not fit.
    """
    rows = counted(points, mask)
    lowest = jnp.where(rows[:, None], points, -jnp.inf)
    if points.shape[1] != 2:
        return rows & ~jnp.any(dominates(lowest[None], lowest[:, None]), axis=1)
    order = jnp.lexsort((-lowest[:, 1], -lowest[:, 0]))  # what may dominate a row comes before it
    ordered = lowest[order]
    best = jax.lax.cummax(ordered[:, 1])
    before = jnp.concatenate([jnp.full(1, -jnp.inf), best[:-1]])
    new = jnp.concatenate([jnp.ones(1, bool), jnp.any(ordered[1:] != ordered[:-1], axis=-1)])
    first = jax.lax.cummax(jnp.where(new, jnp.arange(len(new)), 0))  # of the rows equal to it
    wins = (ordered[:, 1] > before)[first]
    return rows & jnp.zeros_like(rows).at[order].set(wins)


def ranks(points: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the front of every row, from 0: [N, M] -> [N] int32; N for rows that do not count.

    Non-dominated sorting (Deb et al., 2002, https://doi.org/10.1109/4235.996017, section III-A):
    front 0 is what nothing dominates, front 1 what only front 0 does, and so on.

    Raises:
      ValueError: a shape does not fit.
    """
    rows = counted(points, mask)
    above = dominates(points[None], points[:, None]) & rows[None]  # [N, N]: column over row

    def peel(state):
        rank, left, number = state
        front = left & ~jnp.any(above & left[None], axis=1)
        return jnp.where(front, number, rank), left & ~front, number + 1

    start = (jnp.full(rows.shape, len(rows), jnp.int32), rows, jnp.int32(0))
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), peel, start)[0]


def crowding_distance(points: jax.Array, rank: jax.Array) -> jax.Array:
    """Return how far the neighbours on its own front are: [N, M], [N] -> [N] float32 in [0, inf].

    Deb et al. (2002, section III-B): the sum over objectives of the gap between the next better and
    the next worse row, as a share of the front's range; infinite for the front's first and last
    row in any objective, of equal ones for one of them. 0 for rows that do not count.

    Args:
      points: [N, M].
      rank: [N] from `ranks`.
    """
    num_rows = len(rank)
    known = rank < num_rows
    finite = jnp.where(known[:, None], points, 0)

    def one(values: jax.Array) -> jax.Array:
        order = jnp.lexsort((values, rank))
        value, front = values[order], rank[order]
        same = jnp.concatenate([jnp.zeros(1, bool), front[1:] == front[:-1], jnp.zeros(1, bool)])
        gap = jnp.roll(value, -1) - jnp.roll(value, 1)
        low = jax.ops.segment_min(value, front, num_rows + 1)[front]
        high = jax.ops.segment_max(value, front, num_rows + 1)[front]
        share = jnp.where(high > low, gap / jnp.where(high > low, high - low, 1), 0)
        return jnp.zeros_like(values).at[order].set(
            jnp.where(same[:-1] & same[1:], share, jnp.inf))

    return jnp.where(known, jnp.sum(jax.vmap(one, 1)(finite), axis=0), 0)


def front(points: jax.Array, mask: jax.Array | None = None) -> Front:
    """Return the non-dominated rows without repetitions, in ascending order of objective 0.

    Of equal rows the first in the buffer stays. On the host, `indices[:size]` are the rows.

    Raises:
      ValueError: a shape does not fit.
    """
    on_front = non_dominated(points, mask)
    lowest = jnp.where(on_front[:, None], points, 0)
    columns = tuple(lowest[:, m] for m in reversed(range(points.shape[1])))
    order = jnp.lexsort((*columns, ~on_front))  # stable
    ordered = lowest[order]
    repeated = jnp.concatenate([jnp.zeros(1, bool), jnp.all(ordered[1:] == ordered[:-1], axis=-1)])
    kept = on_front[order] & ~repeated
    return Front(order[jnp.argsort(~kept)].astype(jnp.int32), jnp.sum(kept).astype(jnp.int32))


def hypervolume(points: jax.Array, reference: jax.Array,
                mask: jax.Array | None = None) -> jax.Array:
    """Return the volume between a reference point and the front of the points, exactly: [] float32.

    Zitzler & Thiele (1998). Dominated rows add nothing, nor do those that are not above the
    reference in every objective. For M = 2 the area under a staircase, N log N steps; for M = 3 the
    sum of such areas over slabs of the third objective, N ** 2 steps.

    Args:
      points: [N, M], M in 1 to 3.
      reference: [M], such as the worst values of interest.
      mask: [N] bool; which rows count.

    Raises:
      ValueError: a shape does not fit, or M is above 3.
    """
    rows = counted(points, mask)
    num_objectives = points.shape[1]
    if num_objectives > MAX_OBJECTIVES:
        raise ValueError(f"hypervolume takes 1 to {MAX_OBJECTIVES} objectives, got "
                         f"{num_objectives}; leave some out.")
    reference = jnp.asarray(reference, points.dtype)
    if reference.shape != (num_objectives,):
        raise ValueError(f"reference must be [{num_objectives}], got {list(reference.shape)}.")
    above = rows & jnp.all(points > reference, axis=-1)
    sides = jnp.where(above[:, None], points - reference, 0)
    if num_objectives == 1:
        return jnp.max(sides)
    sides = sides[jnp.argsort(-sides[:, 0])]
    if num_objectives == 2:
        return _area(sides[:, 0], sides[:, 1])
    # Of the slab between two heights, the cross-section is that of all points as high as its top.
    heights = -jnp.sort(-sides[:, 2])
    areas = jax.lax.map(
        lambda height: _area(sides[:, 0], jnp.where(sides[:, 2] >= height, sides[:, 1], 0)),
        heights)
    return jnp.sum(areas * _steps(heights))


def _area(widths: jax.Array, heights: jax.Array) -> jax.Array:
    """Return the area of the union of rectangles from the origin; widths descend."""
    return jnp.sum(_steps(widths) * jax.lax.cummax(heights))


def _steps(descending: jax.Array) -> jax.Array:
    return descending - jnp.concatenate([descending[1:], jnp.zeros(1, descending.dtype)])
