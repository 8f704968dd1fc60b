"""A reader of NATS-Bench's own files (Dong et al., 2021, https://arxiv.org/abs/2009.00437).

The benchmark is a folder, `NATS-tss-v1_0-3ffb9-simple` (topology, 15,625 cells) or
`NATS-sss-v1_0-50262-simple` (size, 32,768 networks), with one bzip2 of a pickle for each
architecture. They are read by `safe_unpickler`, which executes nothing.
"""

from __future__ import annotations

import bz2
import hashlib
import math
import re
import statistics
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnas.data import safe_unpickler
from jaxnas.data.table import Table, TableError, make_table

# In the published order; `search_spaces`, which this layer may not import, has the same.
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CHANNEL_STEP, NUM_WIDTHS = 8, 8  # a width of the size space is 8, 16 ... 64 channels
MAX_RECORD_BYTES = 16 << 20  # of one architecture, packed and unpacked; real ones have 0.4 MB

_EPOCHS = {"01": 1, "12": 12, "90": 90, "200": 200}  # as the records write them
_FILE = re.compile(r"(\d{6})\.pickle\.pbz2")
_CELL = re.compile(
    r"\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|", re.ASCII)
_WIDTHS = re.compile(r"(\d\d?):(\d\d?):(\d\d?):(\d\d?):(\d\d?)", re.ASCII)
_ACCURACIES = (  # metric, data set of the records, split
    ("cifar10_valid_accuracy", "cifar10-valid", "x-valid"),
    ("cifar10_half_test_accuracy", "cifar10-valid", "ori-test"),
    ("cifar10_test_accuracy", "cifar10", "ori-test"),
    ("cifar100_valid_accuracy", "cifar100", "x-valid"),
    ("cifar100_test_accuracy", "cifar100", "x-test"),
    ("imagenet16_valid_accuracy", "ImageNet16-120", "x-valid"),
    ("imagenet16_test_accuracy", "ImageNet16-120", "x-test"),
)
_SECONDS = (("cifar10_seconds", "cifar10-valid"), ("cifar100_seconds", "cifar100"),
            ("imagenet16_seconds", "ImageNet16-120"))
_COSTS = (("cifar10", "cifar10"), ("cifar100", "cifar100"), ("imagenet16", "ImageNet16-120"))

Run = dict  # what is stored of one training


class _Record(NamedTuple):
    kind: str  # "tss" or "sss"
    arch: tuple[int, ...]  # [L]
    metrics: dict[str, float]


def read_nats_bench(folder: str | Path) -> Table:
    """Read the official records of a folder, as many as are there.

    A file takes some 40 ms, the whole topology benchmark ten minutes, on one core. To do that once,
    keep the table: `numpy.savez(path, archs=table.archs, num_choices=table.num_choices,
    **table.metrics)` writes what `load_table(path, metric=...)` reads.

    Topology ("tss"): the decisions are the operations of edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3, in the
    order of `OPERATIONS`. Size ("sss"): choice k of a decision is 8 (k + 1) channels. `ids` are the
    benchmark's own indices. N is the epochs of a training: 12 and 200 (tss), 1, 12 and 90 (sss);
    a metric is the mean of the seeds, after the last epoch.

    Metrics:
      cifar10_valid_accuracy_eN: half of the training set, accuracy on the other half; N = 12 is the
        default.
      cifar10_half_test_accuracy_eN: half of the training set, test accuracy.
      cifar10_test_accuracy_eN: the training set, test accuracy; the longest N is the default
        report.
      {cifar100,imagenet16}_{valid,test}_accuracy_eN: the training set of CIFAR-100 or
        ImageNet16-120.
      {cifar10,cifar100,imagenet16}_seconds_eN: what the authors' API charges for the validation
        accuracy: all N epochs of training, and one validation.
      {cifar10,cifar100,imagenet16}_params: parameters.
      {cifar10,cifar100,imagenet16}_flops_m: millions of multiply-adds.
      {cifar10,cifar100,imagenet16}_latency_ms: milliseconds, as the authors measured them.

    Raises:
      TableError: no such folder, no record in it, or a record that is damaged, is of another
        format, or asks for more than plain data; it is named.
    """
    folder = Path(folder)
    files = sorted(_files(folder))
    columns: dict[str, np.ndarray] = {}
    archs, kinds, digest = [], set(), hashlib.sha256()
    for row, (number, path) in enumerate(files):
        packed = _read_packed(path)
        digest.update(packed)
        record = _read_record(path, number, packed)
        archs.append(record.arch)
        kinds.add(record.kind)
        if len(kinds) > 1:
            raise TableError(
                f"{path} is of another space than the files before it; put them in two folders."
            )
        for name, value in record.metrics.items():
            if name not in columns:
                columns[name] = np.full(len(files), np.nan)
            columns[name][row] = value
    topology = kinds == {"tss"}
    return make_table(
        folder.name, str(folder), np.array(archs), columns, sha256=digest.hexdigest(),
        num_choices=(len(OPERATIONS),) * 6 if topology else (NUM_WIDTHS,) * 5,
        ids=np.array([number for number, _ in files]),
        default_metric="cifar10_valid_accuracy_e12",
        default_report_metric=f"cifar10_test_accuracy_e{200 if topology else 90}",
    )


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    if not folder.is_dir():
        raise TableError(f"There is no folder {folder}; give that of the unpacked NATS-Bench.")
    found = False
    for path in folder.iterdir():
        match = _FILE.fullmatch(path.name)
        if match and path.is_file():
            found = True
            yield int(match[1]), path
    if not found:
        raise TableError(
            f"{folder} holds no file such as 000000.pickle.pbz2; give the unpacked folder whose "
            "name ends in -simple."
        )


def _read_record(path: Path, number: int, packed: bytes) -> _Record:
    try:
        record = safe_unpickler.loads(_unpack(path, packed))
    except safe_unpickler.PickleRefused as error:
        raise TableError(f"{path} is not a record of NATS-Bench: {error}.") from error
    trainings = record if isinstance(record, dict) else {}
    parts = {
        _EPOCHS[epochs]: part for epochs, part in trainings.items()
        if epochs in _EPOCHS and isinstance(part, dict)
    }
    if not parts or any(part.get("arch_index") != number for part in parts.values()):
        raise TableError(
            f"{path} is not the record of NATS-Bench's architecture {number}; fetch it anew."
        )
    texts = {part["arch_str"] for part in parts.values() if isinstance(part.get("arch_str"), str)}
    kind, arch = _parse_arch(path, texts.pop() if len(texts) == 1 else "")
    runs = {epochs: _runs(part) for epochs, part in parts.items()}
    metrics = _costs(runs.values())
    for epochs in runs:
        metrics |= _results(runs[epochs], epochs)
    return _Record(kind, arch, metrics)


def _read_packed(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise TableError(f"{path} is too large for a record of NATS-Bench; fetch it anew.")
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.") from error


def _unpack(path: Path, packed: bytes) -> bytes:
    decompressor = bz2.BZ2Decompressor()
    try:
        data = decompressor.decompress(packed, max_length=MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise TableError(f"{path} is no bzip2 file, or damaged; fetch it anew.") from error
    if len(data) > MAX_RECORD_BYTES:
        raise TableError(
            f"{path} unpacks to more than {MAX_RECORD_BYTES} bytes, which no record of NATS-Bench "
            "does; fetch it anew."
        )
    if not decompressor.eof:
        raise TableError(f"{path} is cut off; fetch it anew.")
    return data


def _parse_arch(path: Path, text: str) -> tuple[str, tuple[int, ...]]:
    if (match := _CELL.fullmatch(text)) and set(match.groups()) <= set(OPERATIONS):
        return "tss", tuple(OPERATIONS.index(name) for name in match.groups())
    if match := _WIDTHS.fullmatch(text):
        widths = [int(width) for width in match.groups()]
        if all(w % CHANNEL_STEP == 0 and 0 < w <= CHANNEL_STEP * NUM_WIDTHS for w in widths):
            return "sss", tuple(width // CHANNEL_STEP - 1 for width in widths)
    raise TableError(
        f"{path}: the architecture {text[:100]!r} is neither a cell of NATS-Bench's topology space "
        "nor five widths of its size space; fetch it anew."
    )


def _runs(part: dict) -> dict[str, list[Run]]:
    """Return the trainings on each data set, one a seed."""
    runs: dict[str, list[Run]] = {}
    results = part.get("all_results")
    for key, run in results.items() if isinstance(results, dict) else ():
        if isinstance(key, tuple) and isinstance(run, dict):
            runs.setdefault(key[0], []).append(run)
    return runs


def _results(runs: dict[str, list[Run]], epochs: int) -> dict[str, float]:
    """Return what the trainings of so many epochs gave and took."""
    last = epochs - 1
    metrics = {
        f"{metric}_e{epochs}": _mean(_at(run, "eval_acc1es", f"{split}@{last}")
                                     for run in runs.get(data_set, ()))
        for metric, data_set, split in _ACCURACIES
    }
    for metric, data_set in _SECONDS:
        metrics[f"{metric}_e{epochs}"] = _mean(
            _seconds(run, epochs) for run in runs.get(data_set, ()))
    return metrics


def _costs(trainings: Collection[dict[str, list[Run]]]) -> dict[str, float]:
    """Return what does not depend on the training."""
    metrics = {}
    for prefix, data_set in _COSTS:
        stored = [run for runs in trainings for run in runs.get(data_set, ())]
        metrics[f"{prefix}_params"] = round(
            1e6 * _mean(_number(run.get("params")) for run in stored), 0)  # stored in millions
        metrics[f"{prefix}_flops_m"] = _mean(_number(run.get("flop")) for run in stored)
        metrics[f"{prefix}_latency_ms"] = 1e3 * _mean(
            value for run in stored for value in _latencies(run))
    return metrics


def _seconds(run: Run, epochs: int) -> float:
    train = sum(_at(run, "train_times", epoch) for epoch in range(epochs))
    return train + _mean(_at(run, "eval_times", f"x-valid@{epoch}") for epoch in range(epochs))


def _latencies(run: Run) -> list[float]:
    stored = run.get("latency")
    values = [_number(value) for value in stored] if isinstance(stored, list) else []
    return [value for value in values if value > 0]  # -1 where it was not measured


def _at(run: Run, field: str, key: str | int) -> float:
    values = run.get(field)
    return _number(values.get(key)) if isinstance(values, dict) else math.nan


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan
