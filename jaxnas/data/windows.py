"""Windows of text for truncated back-propagation: B texts side by side, lengths that vary.

A text of N tokens becomes `columns` [R, B], R = N // B: column b is a contiguous part, so that
hidden states can be carried from one window to the next. A window is a start and a length; taken
from the columns it has always T rows, of which `length` count, so that one program serves all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_LONGER = 20  # time steps above `bptt` that a jittered window may have
MIN_LENGTH = 5


class Windows(NamedTuple):
    """W windows, in order."""

    starts: np.ndarray | jax.Array   # [W] int32, rows of the columns
    lengths: np.ndarray | jax.Array  # [W] int32 in [0, T]; 0 is no window at all


def columns(tokens: np.ndarray, batch_size: int, bptt: int = 1) -> np.ndarray:
    """Lay a text [N] side by side as [N // B, B]; the rest of N % B tokens is left out.

    Args:
      tokens: [N] int32.
      batch_size: B.
      bptt: rows that a window needs at least, beside one for the last target.

    Raises:
      ValueError: the text is too short.
    """
    if batch_size < 1 or bptt < 1:
        raise ValueError(f"batch_size and bptt must be 1 or more, got {batch_size} and {bptt}.")
    rows = len(tokens) // batch_size
    if rows < bptt + 1:
        raise ValueError(
            f"a text of {len(tokens)} tokens is too short for batch_size={batch_size} and "
            f"bptt={bptt}, which need {batch_size * (bptt + 1)}; lower one of them.")
    return np.ascontiguousarray(tokens[: rows * batch_size].reshape(batch_size, rows).T)


def largest_length(bptt: int, deviation: float = 0.0) -> int:
    """Return T, the rows of a window: `bptt`, or 20 more where lengths vary by `deviation`."""
    return bptt + MAX_LONGER if deviation > 0 else bptt


def most_windows(rows: int, bptt: int, deviation: float = 0.0) -> int:
    """Return the largest W that `windows` can give, to fill up to: one program for all epochs."""
    return -(-(rows - 1) // _shortest(bptt, deviation))


def windows(
    rows: int, bptt: int, *, seed: int | tuple[int, ...] | None = None,
    half_probability: float = 0.05, deviation: float = 0.0,
) -> Windows:
    """Divide columns into windows that follow each other (Merity et al., 2018, section 5).

    Args:
      rows: R of the columns; there are R - 1 targets.
      bptt: the usual length; a window's mean is this, or half of it with `half_probability`.
      seed: of the lengths, for instance (seed, epoch); None is always `bptt`, for evaluation.
      half_probability: 0.05 in AWD-LSTM and DARTS.
      deviation: standard deviation round the mean, then cut to [5, bptt + 20]; 5 in AWD-LSTM and
        DARTS's evaluation, 0 in its search.

    Raises:
      ValueError: an option out of range.
    """
    if rows < 2 or bptt < 1 or not 0 <= half_probability <= 1 or deviation < 0:
        raise ValueError(
            "rows must be 2 or more, bptt 1 or more, half_probability in [0, 1] and deviation 0 or "
            f"more, got {rows}, {bptt}, {half_probability} and {deviation}.")
    random = None if seed is None else np.random.default_rng(seed)
    starts, lengths, start = [], [], 0
    while start < rows - 1:
        length = bptt
        if random is not None:
            mean = bptt / 2 if random.random() < half_probability else float(bptt)
            drawn = random.normal(mean, deviation) if deviation > 0 else mean
            length = min(max(_shortest(bptt, deviation), int(drawn)),
                         largest_length(bptt, deviation))
        length = min(length, rows - 1 - start)
        starts.append(start)
        lengths.append(length)
        start += length
    return Windows(np.array(starts, np.int32), np.array(lengths, np.int32))


def chunks(found: Windows, size: int) -> Iterator[Windows]:
    """Yield the windows `size` at a time, the last ones filled up with windows of length 0.

    Raises:
      ValueError: size is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be 1 or more, got {size}.")
    missing = -len(found.starts) % size
    padded = [np.pad(np.asarray(part), (0, missing)).reshape(-1, size) for part in found]
    for starts, lengths in zip(*padded):
        yield Windows(starts, lengths)


def take_window(text: jax.Array, start: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Return tokens and targets, one row later, of a window: [T, B] int32 each. Traceable.

    Args:
      text: columns [R, B].
      start: [] int32.
      length: T, static; rows after the end of the text repeat its last and must not count.
    """
    rows = jnp.minimum(start + jnp.arange(length + 1), text.shape[0] - 1)
    taken = text[rows]
    return taken[:-1], taken[1:]


def _shortest(bptt: int, deviation: float) -> int:
    """Return the length that all windows but the last have at least."""
    return min(MIN_LENGTH, bptt) if deviation > 0 else max(1, bptt // 2)
