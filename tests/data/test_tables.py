"""Tables of NAS benchmarks: what is embedded, what a user's file may hold, what is refused."""

import io
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import data, encodings
from jaxnas.data import table as table_module
from jaxnas.data import tables


@pytest.fixture(scope="module")
def nasbench201():
    return data.nasbench201()


@pytest.fixture(scope="module")
def nasbench_macro():
    return data.nasbench_macro()


def small(**changes):
    values = {
        "name": "small", "source": "small.npz", "archs": np.array([[0, 1], [1, 2], [1, 0]]),
        "metrics": {"accuracy": np.array([10.0, np.inf, 30.0])}, "sha256": "",
        "default_metric": "accuracy"}
    return table_module.make_table(**(values | changes))


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def refused(path, *words, **options):
    with pytest.raises(data.TableError) as error:
        data.load_table(path, **options)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and str(path) in message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


# ---- NAS-Bench-201 -------------------------------------------------------------------------------


def test_nasbench201_is_the_published_file(nasbench201):
    assert nasbench201.sha256.startswith("c5a01497922d6327")
    assert nasbench201.num_choices == (5,) * 6 and nasbench201.space_size == 15_625
    assert nasbench201.archs.shape == (15_625, 6) and nasbench201.archs.dtype == np.int32
    np.testing.assert_array_equal(nasbench201.ids, np.arange(15_625))
    assert nasbench201.default_metric == "cifar10_valid_accuracy_e12"
    assert nasbench201.default_report_metric == "cifar10_test_accuracy_e200"


@pytest.mark.parametrize("metric, best, index", [
    ("cifar10_test_accuracy_e12", 89.16, 5374), ("cifar10_valid_accuracy_e12", 84.892, 13714),
    ("cifar10_test_accuracy_e200", 94.3733, 6111),
    ("cifar10_half_test_accuracy_e200_s888", 91.57, 1459)])
def test_nasbench201_published_optima(nasbench201, metric, best, index):
    values = nasbench201.metric(metric)
    assert values.argmax() == index and abs(values.max() - best) < 1e-4
    assert values.min() < 10.01  # chance


def test_nasbench201_decisions_are_the_edges_in_the_published_order(nasbench201):
    # index 0: |avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip~1|skip~2|
    assert nasbench201.archs[0].tolist() == [4, 2, 1, 2, 1, 1]
    # 73,306 parameters, 28,000 for a 1x1 and 243,040 for a 3x3 convolution, on any edge
    pointwise, full = ((nasbench201.archs == k).sum(axis=1) for k in (2, 3))
    np.testing.assert_array_equal(
        nasbench201.metric("cifar10_params"), 73_306 + 28_000 * pointwise + 243_040 * full)
    np.testing.assert_allclose(
        nasbench201.metric("cifar10_flops_m"), 7.78305 + 3.93216 * pointwise + 35.38944 * full)


def test_nasbench201_metrics_belong_to_their_rows(nasbench201):
    # The edges into the output alone: nothing reaches it if all are "none", and chance is 10%,
    # 1% and 1 / 120.
    cut = (nasbench201.archs[:, 3:] == 0).all(axis=1)
    assert cut.sum() == 5 ** 3
    for metric, chance in (("cifar10_test_accuracy_e200", 10.0), ("cifar10_test_accuracy_e12", 10),
                           ("cifar100_test_accuracy_e12", 1.0),
                           ("imagenet16_valid_accuracy_e12", 100 / 120)):
        np.testing.assert_allclose(nasbench201.metric(metric)[cut], chance, atol=1e-4)
    ranks = {metric: nasbench201.metric(metric).argsort().argsort() for metric in (
        "cifar10_valid_accuracy_e12", "cifar10_test_accuracy_e12", "cifar10_test_accuracy_e200")}
    valid, test, longest = ranks.values()
    assert abs(np.corrcoef(valid, longest)[0, 1] - 0.771) < 0.002
    assert np.corrcoef(test, longest)[0, 1] > 0.85


@pytest.mark.parametrize("metric, least, most, rank_correlation", [
    ("edgegpu_latency_ms", 0.50138, 11.6927, 0.491), ("edgegpu_energy_mj", 2.05919, 48.7804, 0.550),
    ("raspi4_latency_ms", 0.0112835, 98.8875, 0.873),
    ("edgetpu_latency_ms", 0.346546, 2.23806, 0.298),
    ("pixel3_latency_ms", 0.00327686, 36.7665, 0.841),
    ("eyeriss_latency_ms", 1.67954, 10.5269, 0.543), ("eyeriss_energy_mj", 0.346965, 2.22624, 0.67),
    ("fpga_latency_ms", 1.13296, 8.67856, 0.938), ("fpga_energy_mj", 7.93072, 60.7500, 0.938)])
def test_nasbench201_costs_of_six_devices(nasbench201, metric, least, most, rank_correlation):
    # multiply-adds predict the latency of some devices well, and of others hardly
    costs, work = nasbench201.metric(metric), nasbench201.metric("cifar10_flops_m")
    known = np.isfinite(costs)
    assert known.sum() == (10_926 if metric.startswith("edgetpu") else 15_625)
    np.testing.assert_allclose((np.nanmin(costs), np.nanmax(costs)), (least, most), rtol=1e-5)
    assert abs(stats.spearmanr(costs[known], work[known])[0] - rank_correlation) < 0.001


def test_nasbench201_marks_of_failure_are_nan(nasbench201):
    assert np.isnan(nasbench201.metric("edgetpu_latency_ms")).sum() == 4_699
    assert abs(nasbench201.metric("edgegpu_latency_ms")[0] - 5.8074) < 1e-4
    proxies = [metric for metric in nasbench201.metrics if metric.startswith("zero_cost_")]
    assert len(proxies) == 11 and len(nasbench201.metrics) == 36
    for metric in proxies:
        failed = 1 if metric[10:] in ("epe_nas", "jacov", "nwot", "zen") else 0
        assert np.isnan(nasbench201.metric(metric)).sum() == 15_625 - 9_445 + failed, metric
    for metric, values in nasbench201.metrics.items():
        assert not np.isinf(values).any() and np.nanmin(values) > -1e7, metric
        if not metric.startswith("zero_cost_"):
            assert np.nanmin(values) > 0, metric
    assert all(metric.removeprefix("zero_cost_") in data.nasbench201.__doc__ for metric in proxies)


# ---- NAS-Bench-Macro -----------------------------------------------------------------------------


def test_nasbench_macro(nasbench_macro):
    assert nasbench_macro.archs.shape == (6_561, 8) and nasbench_macro.num_choices == (3,) * 8
    mean = nasbench_macro.metric("mean_accuracy")
    best = {"".join(map(str, arch)) for arch in nasbench_macro.archs[mean >= mean.max() - 1e-6]}
    assert best == {"22212220", "22212202"} and abs(mean.max() - 93.12667) < 1e-4
    assert abs(mean.min() - 45.3633) < 1e-4
    runs = np.stack([nasbench_macro.metric(f"run{run}_accuracy") for run in range(3)])
    np.testing.assert_allclose(runs.mean(axis=0), mean, rtol=1e-5)
    assert len(np.unique(runs, axis=1).T) == 3_969
    assert nasbench_macro.default_metric == "run0_accuracy"
    assert nasbench_macro.default_report_metric == "mean_accuracy"
    assert list(nasbench_macro.metrics)[-3:] == ["std", "params", "flops"]
    assert nasbench_macro.sha256.startswith("59d6673ab1bb05d7")


# ---- a table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nasbench201", "nasbench_macro"])
def test_dense_is_in_the_order_of_flat_index(name):
    table = data.load_table(name)
    dense = table.dense(table.default_metric)
    assert dense.dtype == np.float32 and dense.shape == (table.space_size,)
    index = encodings.flat_index(jnp.asarray(table.archs), table.num_choices)
    assert len(set(index.tolist())) == table.space_size
    np.testing.assert_array_equal(
        dense[index], table.metric(table.default_metric).astype(np.float32))


def test_what_is_missing_or_infinite_has_failed():
    table = small()
    assert table.num_choices == (2, 3) and table.default_report_metric == "accuracy"
    np.testing.assert_array_equal(table.metric("accuracy"), [10, np.nan, 30])
    np.testing.assert_array_equal(
        table.dense("accuracy"), [np.nan, 10, np.nan, 30, np.nan, np.nan])
    wide = small(metrics={"accuracy": np.array([1.0, 1e300, 2.0])}).dense("accuracy")
    assert np.isnan(wide).sum() == 4  # float32 has no 1e300


def test_metrics_of_other_types_are_converted():
    table = small(metrics={
        "accuracy": np.array([1, 2, 3], ">i4"), "solved": np.array([True, False, True]),
        "half": np.array([0.5, 1, 2], np.float16), "big_endian": np.array([1, 2, 3.5], ">f8")})
    kinds = {name: str(values.dtype) for name, values in table.metrics.items()}
    assert kinds == {"accuracy": "float64", "solved": "float64", "half": "float32",
                     "big_endian": "float64"}
    assert table.metric("big_endian").tolist() == [1, 2, 3.5]


def test_a_table_cannot_be_changed():
    table = small()
    with pytest.raises(ValueError, match="read-only"):
        table.metric("accuracy")[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        table.archs[0] = 0
    with pytest.raises(TypeError):
        table.metrics["other"] = table.metric("accuracy")


def test_an_unknown_metric_names_its_neighbours(nasbench201):
    with pytest.raises(data.TableError) as error:
        nasbench201.metric("cifar10_test_accuracy_e20")
    assert "did you mean cifar10_test_accuracy_e200" in str(error.value)
    assert "zero_cost_zen" in str(error.value)
    with pytest.raises(data.TableError, match="has no metric 'xyz'; choose one of accuracy"):
        small().dense("xyz")
    with pytest.raises(data.TableError, match="has no metric 'valid'"):
        data.load_table("nasbench201", metric="valid")


def test_a_large_space_has_no_dense_form():
    table = small(num_choices=(5_000, 5_000))
    with pytest.raises(data.TableError, match="16777216 combinations, num_choices has 25000000"):
        table.dense("accuracy")


@pytest.mark.parametrize("changes, message", [
    ({"num_choices": (2, 2)}, "got 2 of 2 choices in row 1, decision 1"),
    ({"num_choices": (2,)}, "num_choices must be 2 integers"),
    ({"num_choices": (2, 1 << 17)}, r"integers in \[1, 65536\]"),
    ({"ids": np.arange(2)}, r"ids must be \[3\] int32"),
    ({"metrics": {"accuracy": np.full(3, np.nan)}}, "accuracy has no finite value"),
    ({"metrics": {"accuracy": np.ones((3, 2))}}, r"accuracy must be \[3\] float32 or float64"),
    ({"default_report_metric": "time"}, "has no metric 'time'")])
def test_inconsistent_tables_are_refused(changes, message):
    with pytest.raises(data.TableError, match=message):
        small(**changes)


def test_the_record_itself_is_checked_too():
    table = small()
    fields = {"name": "x", "source": "x", "num_choices": (2, 3), "sha256": "",
              "default_metric": "accuracy", "default_report_metric": "accuracy"}
    infinite = {"accuracy": np.array([1, np.inf, 2])}
    for archs, metrics, message in (
        (table.archs.astype(np.int64), table.metrics, r"archs must be \[N, L\] int32"),
        (table.archs - 1, table.metrics, "got -1 of 2 choices"),
        (table.archs, infinite, "accuracy is infinite"),
        (table.archs, {"accuracy": np.ones(3, int)}, "got .3. int64"),
    ):
        with pytest.raises(data.TableError, match=message):
            data.Table(archs=archs, metrics=metrics, **fields)


# ---- load_table ----------------------------------------------------------------------------------


def test_defaults_can_be_replaced(nasbench201):
    table = data.load_table("nasbench201", metric="cifar100_valid_accuracy_e12")
    assert table.default_metric == "cifar100_valid_accuracy_e12"
    assert table.default_report_metric == nasbench201.default_report_metric
    table = data.load_table("nasbench_macro", report_metric="run2_accuracy")
    assert (table.default_metric, table.default_report_metric) == ("run0_accuracy", "run2_accuracy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_users_table(tmp_path, save):
    path = tmp_path / "mine.npz"
    archs = np.asfortranarray(np.array([[0, 2], [1, 0], [1, 1]], np.uint8))
    save(path, archs=archs, accuracy=np.array([1.5, 2.5, np.nan]))
    table = data.load_table(str(path))
    assert (table.name, table.source, table.num_choices) == ("mine", str(path), (2, 3))
    np.testing.assert_array_equal(table.archs, archs)
    assert table.default_metric == table.default_report_metric == "accuracy"
    assert table.sha256 == data.load_table(path).sha256 and len(table.sha256) == 64
    save(path, archs=archs, num_choices=[4, 4], accuracy=[1, 2, 3], seconds=[9, 8, 7])
    table = data.load_table(path, metric="accuracy")
    assert table.num_choices == (4, 4) and table.default_report_metric == "accuracy"
    assert data.load_table(path, "accuracy", "seconds").default_report_metric == "seconds"
    refused(path, "has 2 metrics", "--metric", "accuracy, seconds")
    refused(path, "no metric 'second'", "did you mean seconds", metric="second")


def test_a_table_survives_numpy_savez(tmp_path, nasbench201):
    path = saved(tmp_path / "copy.npz", archs=nasbench201.archs,
                 num_choices=nasbench201.num_choices, **nasbench201.metrics)
    copy = data.load_table(path, metric=nasbench201.default_metric)
    np.testing.assert_array_equal(copy.archs, nasbench201.archs)
    for metric, values in nasbench201.metrics.items():
        np.testing.assert_array_equal(copy.metric(metric), values)


GOOD = {"archs": np.array([[0, 1], [1, 0], [2, 1]]), "accuracy": np.array([1.0, 2.0, 3.0])}


@pytest.mark.parametrize("changes, words", [
    ({"archs": None}, ["array archs is missing", "present are accuracy"]),
    ({"archs": np.arange(3)}, ["archs must be [N, L]", "got shape [3]"]),
    ({"archs": np.zeros((0, 2), int)}, ["archs must be [N, L]", "got shape [0, 2]"]),
    ({"archs": np.zeros((3, 2))}, ["archs must hold integers, got float64", "astype"]),
    ({"archs": np.array([[0, 1], [1, -1], [2, 1]])}, ["got -1 in row 1, decision 1"]),
    ({"archs": np.array([[0, 1], [1, 1 << 16], [2, 1]])}, ["0 to 65535, got 65536 in row 1"]),
    ({"archs": np.array([[1, 1], [2, 0], [2, 0]])}, ["twice, in rows 1 and 2"]),
    ({"accuracy": np.ones(4)}, ["accuracy must be [3]", "got [4]"]),
    ({"accuracy": np.ones((3, 3))}, ["accuracy must be [3]", "got [3, 3]"]),
    ({"accuracy": np.array(["a", "b", "c"])}, ["accuracy must hold numbers", "got <U1"]),
    ({"accuracy": np.ones(3, complex)}, ["accuracy must hold numbers", "got complex128"]),
    ({"accuracy": np.array([1, 2.0, None])}, ["array accuracy holds Python objects"]),
    ({"num_choices": np.array([3, 1])}, ["got 1 of 1 choices in row 0, decision 1"]),
    ({"num_choices": np.array([3.0, 2.0])}, ["num_choices must be [L] integers, got [2] float64"]),
    ({"num_choices": np.array([3])}, ["num_choices must be 2 integers", "got [3]"]),
    ({"op_names": np.array(["conv", "pool", "none"])}, ["array op_names must hold numbers"]),
    ({"accuracy": np.full(3, np.nan)}, ["accuracy has no finite value"])])
def test_bad_arrays_are_refused(tmp_path, changes, words):
    arrays = {name: value for name, value in (GOOD | changes).items() if value is not None}
    path = saved(tmp_path / "bad.npz", **arrays)
    refused(path, *words, metric="accuracy")


def test_bad_files_are_refused(tmp_path):
    refused(saved(tmp_path / "bare.npz", archs=GOOD["archs"]), "has no metric beside archs")
    refused(tmp_path / "none.npz", "There is no table", "nasbench201")
    refused("nasbench301", "There is no table nasbench301")
    path = tmp_path / "bad.npz"
    path.write_text("archs")
    refused(path, "is no readable .npz file", "numpy.savez")
    np.save(tmp_path / "plain.npy", GOOD["archs"])
    refused(tmp_path / "plain.npy", "is no readable .npz file")
    data_bytes = saved(path, **GOOD).read_bytes()
    path.write_bytes(data_bytes[:-30])
    refused(path, "is no readable .npz file")
    path.write_bytes(data_bytes[:150] + bytes(8) + data_bytes[158:])
    refused(path, "array archs cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "array readme.txt cannot be read")
    refused(tmp_path, "holds no file such as 000000.pickle.pbz2")


def npy(header):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(1 << 50,), (4,), (-1, -3)])
def test_headers_that_claim_other_sizes_are_refused(tmp_path, shape):
    path = tmp_path / "bad.npz"
    header = npy({"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("accuracy.npy", header + bytes(24))
    refused(path, "array accuracy", "damaged" if shape != (-1, -3) else "cannot be read")


def test_sizes_are_limited(tmp_path, monkeypatch):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, archs=GOOD["archs"], accuracy=np.zeros(100_000))
    monkeypatch.setattr(tables, "MAX_ARRAY_BYTES", 500_000)
    refused(path, "unpacks to 800", "to 500000")
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 100)
    refused(path, "a table at most 100")
    assert path.stat().st_size < 5_000


def test_estimated_seconds_are_the_line_through_the_official_records(nasbench201):
    flops = nasbench201.metric("cifar10_flops_m")
    seconds = nasbench201.metric("cifar10_estimated_seconds_e12")
    rows = [0, 11, 284]
    assert abs(seconds[rows] - [89.202, 153.696, 60.899]).max() < 13.0
    slope, intercept = np.polyfit(flops[rows], [89.202, 153.696, 60.899], 1)
    np.testing.assert_allclose(seconds, intercept + slope * flops, rtol=1e-4)
    assert round(12_000 / seconds.mean()) == 112  # the default budget of experiments.compare
