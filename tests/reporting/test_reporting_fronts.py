"""Fronts: the plot, and the drawing of the page whose points say what they are."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxnas.reporting import MAX_NETWORKS, front_svg, plot_fronts, write_front, write_report

HOSTILE = "</title></svg><script>alert(1)</script>&\""
VALUE = {
    "x_label": "latency_ms", "y_label": HOSTILE, "x_range": [0, 10], "y_range": [50, 100],
    "networks": [{"x": 5, "y": 75, "front": True, "text": f"the best {HOSTILE}"},
                 {"x": 2.5, "y": 60, "front": False, "text": "dominated"},
                 {"x": 1, "y": 10, "front": True, "text": "outside"}],
    "true_front": [[1, 10], [4, 80], [8, 90]], "header": ["target"], "rows": [[HOSTILE]]}


def test_points_are_where_they_belong_and_say_what_they_are():
    root = ElementTree.fromstring(front_svg(VALUE))
    circles = {c.find("title").text: c.attrib for c in root.iter("circle")}
    assert set(circles) == {f"the best {HOSTILE}", "dominated"}  # what is outside is not drawn
    best, other = circles[f"the best {HOSTILE}"], circles["dominated"]
    assert (best["class"], other["class"]) == ("on", "off")
    # 76 left, 16 right and above, 56 below, of 980 x 520; (5, 75) is in the middle
    assert float(best["cx"]) == pytest.approx(76 + 0.5 * 888, abs=0.1)
    assert float(best["cy"]) == pytest.approx(16 + 0.5 * 448, abs=0.1)
    assert float(other["cx"]) == pytest.approx(76 + 0.25 * 888, abs=0.1)
    assert float(other["cy"]) == pytest.approx(16 + 0.8 * 448, abs=0.1)
    texts = [text.text for text in root.iter("text")]
    assert HOSTILE in texts and "latency_ms" in texts and {"0", "2", "10", "60"} <= set(texts)


def test_the_true_front_is_a_stair():
    points = next(ElementTree.fromstring(front_svg(VALUE)).iter("polyline")).attrib["points"]
    xs, ys = np.array([pair.split(",") for pair in points.split()], float).T
    assert len(xs) == 5 and (np.diff(xs) >= 0).all() and (np.diff(ys) <= 0).all()
    steps = (np.diff(xs) > 0).astype(int) + (np.diff(ys) < 0)
    assert (steps == 1).all()  # across or up, never both
    assert ys.max() == 520 - 56  # what is below the drawing stays on its edge


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1, 3e7])
def test_ticks_are_round_numbers_at_any_scale(scale):
    value = {**VALUE, "x_range": [0, 10 * scale], "true_front": [], "networks": []}
    root = ElementTree.fromstring(front_svg(value))
    ticks = [float(t.text) for t in root.iter("text") if t.attrib.get("y") == "482.0"]
    assert 4 <= len(ticks) <= 11
    np.testing.assert_allclose(np.diff(ticks), np.diff(ticks)[0], rtol=1e-4)


def test_the_page_shows_it(make_run, tmp_path):
    make_run(tmp_path)
    assert "<circle" not in write_report(tmp_path).read_text(encoding="utf-8")
    write_front(tmp_path, VALUE)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<circle") == 2 and "<title>the best &lt;/title&gt;" in page
    assert "<script" not in page


@pytest.mark.parametrize("change", [
    {"networks": [{"x": 1}]}, {"x_range": [1, 1]}, {"y_range": [0, float("inf")]},
    {"true_front": [[1]]}, {"networks": [{"x": "a", "y": 1, "front": True, "text": ""}]}])
def test_a_malformed_file_is_refused(change):
    with pytest.raises(ValueError, match="front.json is malformed"):
        front_svg({**VALUE, **change})


@pytest.mark.parametrize("change", [{"rows": [["a", "b"]]}, {"rows": 3}, {"header": None}])
def test_a_malformed_table_is_refused(change, make_run, tmp_path):
    make_run(tmp_path)
    write_front(tmp_path, {**VALUE, **change})
    with pytest.raises(ValueError, match="front.json is malformed"):
        write_report(tmp_path)


def test_what_cannot_be_shown_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=f"at most {MAX_NETWORKS} networks"):
        write_front(tmp_path, {"networks": [{}] * (MAX_NETWORKS + 1)})
    with pytest.raises(ValueError):
        write_front(tmp_path, {**VALUE, "x_range": [float("nan"), 1]})
    write_front(tmp_path, VALUE)
    assert json.loads((tmp_path / "front.json").read_text()) == VALUE


def test_plot(tmp_path):
    front = np.array([[1.0, 60.0], [2.0, 80.0]])
    paths = plot_fronts({"20 evaluations": front[:1], "40 evaluations": front}, tmp_path / "front",
                        "latency_ms", "accuracy", dominated=np.array([[3.0, 50.0]]),
                        true_front=front + 1, y_range=(40, 100))
    assert [path.suffix for path in paths] == [".svg", ".png"]
    text = "".join(ElementTree.parse(paths[0]).getroot().itertext())
    for word in ("20 evaluations", "40 evaluations", "dominated", "true front", "latency_ms"):
        assert word in text
    for fronts in ({}, {"none": front[:0]}):
        with pytest.raises(ValueError, match="at least one front"):
            plot_fronts(fronts, tmp_path / "x", "x", "y")
