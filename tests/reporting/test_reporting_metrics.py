"""metrics.jsonl: whole lines, torn lines, resuming."""

import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.reporting import MetricsWriter, read_metrics, truncate


def test_lines_and_scalars(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    with MetricsWriter(path, start_seconds=100.0, fsync=True) as writer:
        writer.write("step", loss=np.float32(0.5), count=jnp.int32(3), arch=jnp.arange(2),
                     ok=np.bool_(True), name="x\ny", nested={"a": (1, None)})
        writer.write("event", text="saved")
        assert writer.offset == path.stat().st_size
    first, second = read_metrics(path)
    seconds = first.pop("seconds")
    assert first == {"kind": "step", "loss": 0.5, "count": 3, "arch": [0, 1], "ok": True,
                     "name": "x\ny", "nested": {"a": [1, None]}}
    assert 100.0 <= seconds <= second["seconds"] < 160.0
    assert path.read_text().startswith('{"kind": "step", "seconds": ')


def test_non_finite_becomes_null_with_its_name(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as writer:
        writer.write("evaluation", fitness=float("nan"), ok=1.0, list=[1.0, np.float32("inf")],
                     deep={"x": jnp.array(-jnp.inf)})
    line, = read_metrics(tmp_path / "m.jsonl")
    assert line["nonfinite"] == ["fitness", "list[1]", "deep.x"]
    assert (line["fitness"], line["list"], line["deep"]) == (None, [1.0, None], {"x": None})


def test_refusals(tmp_path):
    writer = MetricsWriter(tmp_path / "m.jsonl")
    for kind, fields, error, message in (
            ("party", {}, ValueError, "step, epoch, evaluation, event"),
            ("step", {"seconds": 1}, ValueError, "'seconds'"),
            ("step", {"nonfinite": 1}, ValueError, "'nonfinite'"),
            ("step", {"x": object()}, TypeError, "'x' is a object")):
        with pytest.raises(error, match=message):
            writer.write(kind, **fields)
    assert writer.offset == 0
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write("step")
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="start_seconds"):
            MetricsWriter(tmp_path / "m.jsonl", start_seconds=seconds)


def test_every_cut_is_readable_and_can_be_continued(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        for i in range(3):
            writer.write("epoch", epoch=i, text="ä" * 5)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        assert len(read_metrics(path)) in (complete, complete + 1)  # + 1: only "\n" is missing
        with MetricsWriter(path) as writer:
            writer.write("event", name="resumed")
        lines = read_metrics(path)
        assert len(lines) == complete + 1 and lines[-1]["name"] == "resumed"


def test_only_the_last_line_may_be_torn(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"kind": "step"}\n{"kind"\n{"kind": "step"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)
    path.write_bytes(b'{"kind": "step"}\n\xff\x00')
    assert read_metrics(path) == [{"kind": "step"}]
    path.write_bytes(b"")
    assert read_metrics(path) == []


def test_truncate_and_resume(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        writer.write("epoch", epoch=0)
        offset = writer.offset
        writer.write("epoch", epoch=1)
    for bad in (-1, offset - 2, offset + 1, 10_000):
        with pytest.raises(ValueError, match="offset"):
            truncate(path, bad)
    truncate(path, offset)
    with MetricsWriter(path) as writer:
        assert writer.offset == offset
        writer.write("epoch", epoch=1)
    assert [line["epoch"] for line in read_metrics(path)] == [0, 1]
    truncate(path, 0)
    assert read_metrics(path) == []


def test_writers_do_not_mix_inside_a_line(tmp_path):
    path = tmp_path / "m.jsonl"

    def work(index: int) -> None:
        with MetricsWriter(path) as writer:
            for i in range(50):
                writer.write("step", worker=index, i=i, text="x" * 2000)

    # All are opened on an empty file first: opening cuts torn lines, which another may be writing.
    path.write_bytes(b"")
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(path.read_bytes().splitlines()) == 150
    assert all(json.loads(line)["kind"] == "step" for line in path.read_bytes().splitlines())
