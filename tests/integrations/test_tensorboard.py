"""Events beside metrics.jsonl: every number of it, once, whatever happened to the run."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxnas import reporting
from jaxnas.integrations import Curves, Events, Point

pytest.importorskip("tensorboardX")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"seed": 3}')
    return tmp_path


def records(path: Path):
    """Yield the events of a file of TFRecords, of which a torn last one is left out."""
    from tensorboardX.proto.event_pb2 import Event
    data = path.read_bytes()
    while len(data) >= 12:
        (size,) = struct.unpack("<Q", data[:8])
        if len(data) < 16 + size:
            return
        yield Event.FromString(data[12:12 + size])
        data = data[16 + size:]


def scalars(directory: Path):
    """Return (series, tag) -> [(step, value)]."""
    found: dict = {}
    folder = directory / "tensorboard"
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        series = path.parent.relative_to(folder).as_posix()
        for event in records(path):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault((series, value.tag), []).append(
                        (event.step, round(value.simple_value, 4)))
    return found


def write(directory: Path, events: Events, numbers, start: float = 0.0):
    path = directory / "metrics.jsonl"
    with reporting.MetricsWriter(path, start_seconds=start, on_line=events.write) as writer:
        for i in numbers:
            writer.write("epoch", epoch=i, phase="search", loss=1 / (i + 1), best=np.float32(i))
        return writer.offset


def test_points_of_every_kind_of_line():
    curves = Curves()

    def points(**line):
        return list(curves.points({"seconds": 1.0, **line}))

    assert points(kind="step", step=7, train_loss=0.5) == [Point("", "step/train_loss", 7, 0.5)]
    assert points(kind="step", strategy="ppo", evaluations=40, failed=1) == [
        Point("ppo", "step/failed", 40, 1.0)]
    assert points(kind="evaluation", phase="search", group="random", stage="a", number=4,
                  arch=[1, 2], fitness=0.25, failed=False, unit="epochs") == [
        Point("random", "search_a_evaluation/fitness", 4, 0.25),
        Point("random", "search_a_evaluation/failed", 4, 0.0)]
    for number in range(2):  # without a number they are counted, each seed by itself
        for seed in range(2):
            assert points(kind="evaluation", strategy="x", seed=seed, fitness=[1, 2.5]) == [
                Point(f"x-seed{seed}", "evaluation/fitness.0", number, 1.0),
                Point(f"x-seed{seed}", "evaluation/fitness.1", number, 2.5)]
    assert points(kind="epoch", epoch=3, group="found", run=1, phase="retrain", loss=None,
                  deep={"a": {"b": 2}}, nonfinite=["loss"]) == [
        Point("found-run1", "retrain_epoch/deep.a.b", 3, 2.0)]
    assert points(kind="evaluation", group="found", run=1, phase="retrain", test_accuracy=9.0) == [
        Point("found", "retrain_evaluation/test_accuracy", 1, 9.0)]
    assert points(kind="event", event="errors", run=0, x=float("nan"), y=1) == [
        Point("run0", "errors_event/y", 0, 1.0)]


def test_every_number_is_an_event_at_once(directory):
    with Events(directory) as events:
        write(directory, events, range(3))
        found = scalars(directory)  # before anything is closed: what kill -9 leaves
    assert found == {
        (".", "search_epoch/loss"): [(0, 1.0), (1, 0.5), (2, 0.3333)],
        (".", "search_epoch/best"): [(0, 0.0), (1, 1.0), (2, 2.0)]}


def test_times_and_configuration_are_the_runs(directory):
    with Events(directory) as events:
        write(directory, events, [0], start=100.0)
    (path,) = (directory / "tensorboard").iterdir()
    first, start, text, *points = records(path)
    began = (directory / "config.json").stat().st_mtime
    assert first.file_version == "brain.Event:2" and start.session_log.status == 1
    assert b'"seed": 3' in text.summary.value[0].tensor.string_val[0]
    assert all(began + 100 <= point.wall_time < began + 160 for point in points)


def test_a_resumption_goes_on_with_the_curves(directory):
    with Events(directory) as events:
        offset = write(directory, events, range(2))  # the checkpoint
        write(directory, events, range(2, 5))        # what the crash takes back
    (torn,) = (directory / "tensorboard").iterdir()
    torn.write_bytes(torn.read_bytes()[:-3])
    assert len(scalars(directory)[".", "search_epoch/loss"]) == 5
    reporting.truncate(directory / "metrics.jsonl", offset)
    with Events(directory) as events:
        write(directory, events, range(2, 4), start=5.0)
    assert scalars(directory)[".", "search_epoch/best"] == [(i, float(i)) for i in range(4)]


def test_old_runs_and_foreign_files(directory):
    with reporting.MetricsWriter(directory / "metrics.jsonl") as writer:
        for group in ("found", "random"):
            writer.write("evaluation", group=group, phase="search", number=0, fitness=2.0)
    (directory / "tensorboard").mkdir()
    (directory / "tensorboard" / "mine.txt").write_text("kept")
    for _ in range(2):  # and again
        Events(directory).close()
    assert scalars(directory) == {
        (group, "search_evaluation/fitness"): [(0, 2.0)] for group in ("found", "random")}
    assert (directory / "tensorboard" / "mine.txt").exists()


def test_drawings_are_images(directory):
    pytest.importorskip("matplotlib")
    reporting.plot_groups({"found": [1.0, 2.0]}, directory / "final", "value")
    (directory / "broken.png").write_bytes(b"none")
    with Events(directory) as events:
        events.add_drawings()
    (path,) = (directory / "tensorboard").iterdir()
    images = [value for event in records(path) for value in event.summary.value
              if value.WhichOneof("value") == "image"]
    (image,) = images
    assert image.tag == "final"
    assert image.image.encoded_image_string == (directory / "final.png").read_bytes()
    import matplotlib.image
    shape = matplotlib.image.imread(directory / "final.png").shape
    assert (image.image.height, image.image.width) == shape[:2]
    assert image.image.colorspace == shape[2]  # 3 is RGB, 4 is RGBA


def test_metrics_that_are_none(directory):
    (directory / "metrics.jsonl").write_text(json.dumps([1]) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        Events(directory)
