"""The file of a table: kept once, whole or not at all, and refused if it is not the one."""

import json
import os

import numpy as np
import pytest

from jaxnas.latency import tables
from jaxnas.latency.tables import Calibration, LatencyTable, LatencyTableError, Unit

SHAPE = (4, 4, 2)
UNITS = [Unit(name, SHAPE, lambda variables, x: 2 * x) for name in ("one", "two")]
CALIBRATIONS = [Calibration("a", SHAPE, {"one": 2, "two": 1}), Calibration("b", SHAPE, {"one": 1})]
MILLISECONDS = {"one": 1.0, "two": 10.0}
CHECKS = ((12.0, 13.0), (1.0, 3.0))


class Build:
    """Measures nothing, and counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, units, calibrations, *, batch_size, on_unit):
        self.calls += 1
        for unit in units:
            on_unit(unit.name)
        return LatencyTable(MILLISECONDS, tables.fit_overhead(CHECKS), CHECKS, 4)


def load(directory, build, **changes):
    options = {"title": "test", "units": UNITS, "calibrations": CALIBRATIONS, "batch_size": 2,
               **changes}
    return tables.load_or_build(**options, directory=directory, build=build)


def test_prediction_is_the_sum_and_the_mean_excess():
    table = LatencyTable(MILLISECONDS, tables.fit_overhead(CHECKS), CHECKS)
    assert table.overhead_ms == 1.5  # of 1 and 2
    assert table.predict({"one": 3, "two": 2}) == 1.5 + 3 + 20


def test_a_table_is_measured_once(tmp_path):
    build, seen = Build(), []
    first = load(tmp_path / "new", build, on_unit=seen.append)
    second = load(tmp_path / "new", build)
    assert build.calls == 1 and seen == ["one", "two"]
    assert first.programs == 4 and second == first._replace(programs=0)
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("changes", [
    {"batch_size": 3}, {"title": "other"}, {"units": UNITS[:1]},
    {"calibrations": [CALIBRATIONS[0]._replace(shape=(8, 8, 2)), CALIBRATIONS[1]]},
    {"calibrations": CALIBRATIONS[:1]}])
def test_other_networks_have_another_table(tmp_path, changes):
    build = Build()
    load(tmp_path, build)
    load(tmp_path, build, **changes)
    assert build.calls == 2 and len(list(tmp_path.iterdir())) == 2


def test_other_versions_and_devices_have_another_table(tmp_path, monkeypatch):
    build = Build()
    load(tmp_path, build)
    key = tables.device_key()
    monkeypatch.setattr(tables, "device_key", lambda: {**key, "device": "another"})
    load(tmp_path, build)
    assert build.calls == 2 and {"platform", "cores", "jax", "jaxlib"} <= set(key)


def test_without_a_directory_nothing_is_kept():
    build = Build()
    assert load(None, build) == load(None, build) and build.calls == 2


def damaged(value, change):
    value = json.loads(json.dumps(value))
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize("make, why", [
    (lambda value: "", "cannot be read"), (lambda value: json.dumps(value)[:-40], "cannot be read"),
    (lambda value: "[" * 100_000, "cannot be read"), (lambda value: "[]", "format"),
    (lambda value: damaged(value, lambda v: v.update(format="x")), "format"),
    (lambda value: damaged(value, lambda v: v.update(version=2)), "version"),
    (lambda value: damaged(value, lambda v: v["key"].update(jax="0")), "measured elsewhere"),
    (lambda value: damaged(value, lambda v: v["milliseconds"].pop("one")), "other parts"),
    (lambda value: damaged(value, lambda v: v["milliseconds"].update(one="1")), "milliseconds"),
    (lambda value: damaged(value, lambda v: v["milliseconds"].update(one=True)), "milliseconds"),
    (lambda value: damaged(value, lambda v: v["milliseconds"].update(one=-1.0)), "no time"),
    (lambda value: damaged(value, lambda v: v.update(overhead_ms=float("nan"))), "milliseconds"),
    (lambda value: damaged(value, lambda v: v.update(checks=[[1.0]])), "no pairs"),
    (lambda value: damaged(value, lambda v: v.pop("overhead_ms")), "milliseconds"),
])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, make, why):
    build = Build()
    load(tmp_path, build)
    path, = tmp_path.iterdir()
    path.write_text(make(json.loads(path.read_text())))
    before = path.read_bytes()
    with pytest.raises(LatencyTableError, match=why) as error:
        load(tmp_path, build)
    assert str(path) in str(error.value) and "delete it" in str(error.value)
    assert path.read_bytes() == before and build.calls == 1


def test_a_file_that_is_no_text(tmp_path):
    load(tmp_path, Build())
    path, = tmp_path.iterdir()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LatencyTableError, match="cannot be read"):
        load(tmp_path, Build())


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def stop(*args):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="no space"):
        load(tmp_path, Build())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_measurement_leaves_no_file(tmp_path):
    def build(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, build)
    assert list(tmp_path.iterdir()) == []


def test_build_counts_its_programs():
    class Double:
        def init(self, key, x, train):
            return {}

        def apply(self, variables, x, train):
            return 2 * x

    seen = []
    units = [UNITS[0], Unit("wide", (4, 4, 3), lambda variables, x: x @ np.ones((3, 3)))]
    table = tables.build(units, [Calibration(Double(), SHAPE, {"one": 1})], batch_size=2,
                         on_unit=seen.append)
    assert table.programs == 2 + 2 + 1  # the units, the loop at two shapes, a network
    assert set(table.milliseconds) == {"one", "wide"} and min(table.milliseconds.values()) >= 0
    (summed, measured), = table.checks
    assert summed == table.milliseconds["one"] and measured > 0
    assert table.overhead_ms == measured - summed and seen[-1] == "network 1"


@pytest.mark.parametrize("options, why", [
    ({"batch_size": 0}, "batch_size must be 1"), ({"calibrations": []}, "one network or more")])
def test_wrong_arguments(options, why):
    with pytest.raises(ValueError, match=why):
        tables.build(**{"units": UNITS, "calibrations": CALIBRATIONS, "batch_size": 1, **options})
