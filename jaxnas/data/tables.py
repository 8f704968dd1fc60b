"""`load_table`: a NAS benchmark by name or by path, from this package or from this machine's disk.

    table = load_table("nasbench201")             # in the package: 15,625 cells, 3 data sets
    table = load_table("nasbench_macro")          # in the package: 6,561 networks
    table = load_table("my/table.npz")            # archs [N, L], and metric arrays [N]
    table = load_table("NATS-tss-v1_0-3ffb9-simple")  # a folder of the official NATS-Bench files

Accuracies are percentages; a metric's name says its unit and the epochs of the training behind it.
Nothing is downloaded, and nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxnas.data.nats_bench import read_nats_bench
from jaxnas.data.table import Table, TableError, make_table

__all__ = ["Table", "TableError", "load_table", "nasbench201", "nasbench_macro"]

MAX_FILE_BYTES = 2 << 30
MAX_ARRAY_BYTES = 8 << 30  # of all arrays of a file together, when unpacked
UNSUPPORTED = -1.0  # in the column of the edge TPU
PROXY_FAILED = -1e8

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
_NASBENCH201 = {  # metric -> array of the file
    "cifar10_valid_accuracy_e12": "c10_valid_e12",
    "cifar10_test_accuracy_e12": "c10_test_e12",
    "cifar100_valid_accuracy_e12": "c100_valid_e12",
    "cifar100_test_accuracy_e12": "c100_test_e12",
    "imagenet16_valid_accuracy_e12": "im_valid_e12",
    "imagenet16_test_accuracy_e12": "im_test_e12",
    "cifar10_test_accuracy_e200": "c10_test_e200",
    "cifar10_half_test_accuracy_e200_s888": "c10_test_e200_half_s888",
    "cifar10_params": "c10_params",
    "cifar10_flops_m": "c10_flops_m",
    "cifar100_params": "c100_params",
    "cifar100_flops_m": "c100_flops_m",
    "imagenet16_params": "im_params",
    "imagenet16_flops_m": "im_flops_m",
    "edgegpu_latency_ms": "hw_c10_edgegpu_latency",
    "edgegpu_energy_mj": "hw_c10_edgegpu_energy",
    "raspi4_latency_ms": "hw_c10_raspi4_latency",
    "edgetpu_latency_ms": "hw_c10_edgetpu_latency",
    "pixel3_latency_ms": "hw_c10_pixel3_latency",
    "eyeriss_latency_ms": "hw_c10_eyeriss_latency",
    "eyeriss_energy_mj": "hw_c10_eyeriss_energy",
    "eyeriss_arithmetic_intensity": "hw_c10_eyeriss_arithmetic_intensity",
    "fpga_latency_ms": "hw_c10_fpga_latency",
    "fpga_energy_mj": "hw_c10_fpga_energy",
    **{f"zero_cost_{proxy}": f"zc_c10_{proxy}" for proxy in (
        "epe_nas", "fisher", "grad_norm", "grasp", "jacov", "l2_norm", "nwot", "plain", "snip",
        "synflow", "zen")},
}


def load_table(
    name_or_path: str | Path,
    metric: str | None = None,
    report_metric: str | None = None,
) -> Table:
    """Load a table of architectures and their metrics into host memory.

    Args:
      name_or_path: one of
        "nasbench201", "nasbench_macro": in the package.
        a folder of official NATS-Bench records: see `read_nats_bench`.
        the path of an .npz file with an array `archs` [N, L] of integers from 0, all rows
        different; a metric [N] of numbers in every other array; and optionally `num_choices` [L],
        by default 1 + the largest value of each column. Architectures of the product that have no
        row count as failed, as do values that are not finite.
      metric: what a search sees; default the table's own, or the only one of an .npz file.
      report_metric: what is reported; default the table's own, or `metric` of an .npz file.

    Raises:
      TableError: missing or unusable; one sentence naming file, array and what to do.
    """
    path = Path(name_or_path)
    if str(name_or_path) == "nasbench201":
        table = nasbench201()
    elif str(name_or_path) == "nasbench_macro":
        table = nasbench_macro()
    elif path.is_dir():
        table = read_nats_bench(path)
    else:
        return _read_npz(path, metric, report_metric)
    return dataclasses.replace(
        table,
        default_metric=metric or table.default_metric,
        default_report_metric=report_metric or table.default_report_metric,
    )


def nasbench201() -> Table:
    """All 15,625 cells of NAS-Bench-201 (Dong & Yang, 2020, https://arxiv.org/abs/2001.00326).

    A decision is the operation of an edge, 0>1, 0>2, 1>2, 0>3, 1>3, 2>3 in this order: none,
    skip_connect, nor_conv_1x1, nor_conv_3x3 or avg_pool_3x3. `ids` are the benchmark's own indices.

    Metrics, of trainings on CIFAR-10, CIFAR-100 and ImageNet16-120:
      cifar10_valid_accuracy_e12: 12 epochs on half of the training set, accuracy on the other half,
        mean of 2 seeds; the default.
      cifar10_test_accuracy_e12: 12 epochs on the training set, test accuracy, 1 seed.
      cifar100_valid_accuracy_e12, cifar100_test_accuracy_e12, imagenet16_valid_accuracy_e12,
        imagenet16_test_accuracy_e12: 12 epochs on the training set, 1 seed.
      cifar10_test_accuracy_e200: 200 epochs on the training set, test accuracy, mean of the seeds:
        what papers report; the default report.
      cifar10_half_test_accuracy_e200_s888: 200 epochs on half of the training set, test accuracy,
        the one seed 888; never to be mixed up with the former.
      {cifar10,cifar100,imagenet16}_params: parameters.
      {cifar10,cifar100,imagenet16}_flops_m: millions of multiply-adds.
      cifar10_estimated_seconds_e12: what one evaluation of the default metric took on the authors'
        machine, 12 epochs of training and one validation; ESTIMATED as 63.972 + 0.79172 * flops_m,
        the least squares line through the three official records at hand (indices 0, 11 and 284:
        89.2, 153.7 and 60.9 s; the line is off by 13 s at two of them).

    Metrics of HW-NAS-Bench (Li et al., 2021, https://arxiv.org/abs/2103.10584), for CIFAR-10:
      {edgegpu,raspi4,edgetpu,pixel3,eyeriss,fpga}_latency_ms: milliseconds; edgetpu cannot run
        4,699 cells.
      {edgegpu,eyeriss,fpga}_energy_mj: millijoules.
      eyeriss_arithmetic_intensity: in that paper's unit.

    Proxies that need no training, of NAS-Bench-Suite-Zero (Krishnakumar et al., 2022,
    https://arxiv.org/abs/2210.03230), for CIFAR-10 and 9,445 cells without unreachable operations:
      zero_cost_{epe_nas,fisher,grad_norm,grasp,jacov,l2_norm,nwot,plain,snip,synflow,zen}.
    """
    arrays, sha256 = _embedded("nasbench201.npz")
    metrics = {metric: arrays[array] for metric, array in _NASBENCH201.items()}
    metrics["cifar10_estimated_seconds_e12"] = 63.972 + 0.79172 * metrics["cifar10_flops_m"]
    for metric, values in metrics.items():
        if metric == "edgetpu_latency_ms":
            metrics[metric] = np.where(values == UNSUPPORTED, np.nan, values)
        elif metric.startswith("zero_cost_"):
            metrics[metric] = np.where(values == PROXY_FAILED, np.nan, values)
    return make_table(
        "nasbench201", "nasbench201.npz", arrays["ops"], metrics, sha256=sha256,
        num_choices=(5,) * 6, ids=np.arange(len(arrays["ops"])),
        default_metric="cifar10_valid_accuracy_e12",
        default_report_metric="cifar10_test_accuracy_e200",
    )


def nasbench_macro() -> Table:
    """All 6,561 networks of NAS-Bench-Macro (Su et al., 2021, https://arxiv.org/abs/2103.11922).

    A decision is the block of one of 8 layers: identity, MobileNetV2's with kernel 3 and expansion
    3, or with kernel 5 and expansion 6. Networks that an identity makes isomorphic share
    their results: there are 3,969 distinct ones.

    The benchmark has **test accuracies only**: CIFAR-10, three independent trainings. The default
    is to search on the first of them, as a noisy signal, and to report the mean of the three, which
    that first one is part of; such a result is optimistic and no unbiased test accuracy.

    Metrics:
      run0_accuracy, run1_accuracy, run2_accuracy: test accuracy of one training; run0 is the
        default.
      mean_accuracy: mean of the three; the default report.
      std: their standard deviation, in points of accuracy.
      params, flops: parameters, and FLOPs as the benchmark counts them.
    """
    arrays, sha256 = _embedded("nasbench_macro.npz")
    metrics = {
        **{f"run{run}_accuracy": arrays["test_acc"][:, run] for run in range(3)},
        "mean_accuracy": arrays["mean_acc"],
        **{metric: arrays[metric] for metric in ("std", "params", "flops")},
    }
    return make_table(
        "nasbench_macro", "nasbench_macro.npz", arrays["ops"], metrics, sha256=sha256,
        num_choices=(3,) * 8, default_metric="run0_accuracy", default_report_metric="mean_accuracy",
    )


def _embedded(file: str) -> tuple[dict[str, np.ndarray], str]:
    data = (importlib.resources.files("jaxnas.data") / "files" / file).read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return _read_arrays(file, archive), hashlib.sha256(data).hexdigest()


def _read_npz(path: Path, metric: str | None, report_metric: str | None) -> Table:
    if not path.is_file():
        raise TableError(
            f"There is no table {path}; give nasbench201, nasbench_macro, the path of an .npz file "
            "or a folder of NATS-Bench."
        )
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise TableError(
            f"{path} has {size} bytes, a table at most {MAX_FILE_BYTES}; store fewer architectures "
            "or metrics."
        )
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            with zipfile.ZipFile(file) as archive:
                arrays = _read_arrays(str(path), archive)
    except TableError:
        raise
    except _UNREADABLE as error:
        raise TableError(
            f"{path} is no readable .npz file ({_first_line(error)}); write it with "
            "numpy.savez(path, archs=..., accuracy=...)."
        ) from error
    if "archs" not in arrays:
        raise TableError(
            f"{path}: array archs is missing, present are {', '.join(sorted(arrays)) or 'none'}; "
            "store archs [N, L] integers."
        )
    archs, choices = arrays.pop("archs"), arrays.pop("num_choices", None)
    return make_table(
        path.stem, str(path), archs, arrays, sha256=sha256,
        num_choices=None if choices is None else _num_choices(path, choices),
        default_metric=metric or _only_metric(path, arrays), default_report_metric=report_metric,
    )


def _num_choices(path: Path, choices: np.ndarray) -> tuple[int, ...]:
    if choices.ndim != 1 or choices.dtype.kind not in "iu":
        raise TableError(
            f"{path}: array num_choices must be [L] integers, got {list(choices.shape)} "
            f"{choices.dtype}; store one a column of archs, or leave it out."
        )
    return tuple(int(n) for n in choices)


def _only_metric(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    if not arrays:
        raise TableError(f"{path} has no metric beside archs; store one, [N] numbers.")
    if len(arrays) > 1:
        raise TableError(
            f"{path} has {len(arrays)} metrics; choose what to search for with --metric: "
            f"{', '.join(arrays)}."
        )
    return next(iter(arrays))


def _read_arrays(source: str, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    total = sum(member.file_size for member in archive.infolist())
    if total > MAX_ARRAY_BYTES:
        raise TableError(
            f"{source} unpacks to {total} bytes, a table may to {MAX_ARRAY_BYTES}; store fewer "
            "architectures or metrics."
        )
    return {
        member.filename.removesuffix(".npy"): _read_array(source, archive, member)
        for member in archive.infolist()
    }


def _read_array(source: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an .npy file of an archive, whose header may claim anything.

    `numpy.load` allocates what the header claims; here it must agree with the bytes that are there.
    """
    where = f"{source}: array {member.filename.removesuffix('.npy')}"
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                           else np.lib.format.read_array_header_2_0)
            shape, fortran_order, dtype = read_header(file)
            if dtype.hasobject:
                raise TableError(f"{where} holds Python objects; store numbers only.")
            if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise TableError(f"{where} is damaged: its size is not that of its shape.")
            data = file.read()
            values = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
            return values.reshape(shape, order="F" if fortran_order else "C")
    except TableError:
        raise
    except _UNREADABLE as error:
        raise TableError(
            f"{where} cannot be read ({_first_line(error)}); write it with numpy.savez."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
