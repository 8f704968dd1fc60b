"""report.html: self-contained, escaped, and honest about chance."""

from html.parser import HTMLParser

import pytest

from jaxnas.reporting import validate_run_directory, welch_interval, write_checklist, write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & \x00\u202e"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(directory) -> Page:
    page = Page(write_report(directory).read_text(encoding="utf-8"))
    assert page.open == []
    assert not any(tag in ("script", "link", "iframe", "object", "base") for tag, _ in page.tags)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,") and attributes["alt"]
        else:
            assert "src" not in attributes and "href" not in attributes
    return page


def test_complete_directory(tmp_path, make_run):
    make_run(tmp_path)
    write_checklist(tmp_path, {"tuning": "not tuned | <defaults>"})
    page = report(tmp_path)
    for word in ("94.20 ± 0.20 against random 92.50 ± 0.50", "3 seeds", "Better than random search",
                 "standard error", "1806.09055, table 1", "digits", "inner.rate", "not stated",
                 "not tuned | <defaults>", "experiments.retrain --genotype",
                 f"python -m experiments.darts --resume {tmp_path.name}\n",
                 "6.50 s", "10.000 ms", "failed"):
        assert word in page.text, word
    assert str(tmp_path.parent) not in page.text
    assert validate_run_directory(tmp_path) == []


@pytest.mark.parametrize("metric, found, random, verdict", [
    ("test_accuracy", (90.0, 90.1), (95.0, 95.1), "Worse than random search"),
    ("perplexity", (60.0, 60.1), (70.0, 70.1), "Better than random search"),
    ("latency_ms", (6.0, 6.1), (5.0, 5.1), "Worse than random search"),
    ("test_accuracy", (94.0, 92.0), (93.0, 94.0), "not distinguishable"),
    ("test_accuracy", (94.0,), (93.0,), "fewer than two seeds"),
    ("test_accuracy", (94.0, 94.0), (94.0, 94.0), "not distinguishable"),
    ("test_accuracy", (94.0, 95.0), None, "no random baseline")])
def test_verdicts(tmp_path, metric, found, random, verdict, make_run):
    make_run(tmp_path, metric=metric, found=found, random=random)
    assert verdict in report(tmp_path).text


def test_interrupted_directory_has_a_report(tmp_path, make_run):
    make_run(tmp_path, complete=False)
    for name in ("genotype.json", "metrics.jsonl", "groups.svg"):
        (tmp_path / name).unlink()
    page = report(tmp_path)
    assert "did not finish" in page.text and "experiments.retrain" not in page.text


def test_hostile_text_is_escaped(tmp_path, make_run):
    make_run(tmp_path, system=HOSTILE, programs=(HOSTILE,), metric=HOSTILE)
    (tmp_path / "checklist.md").write_text(f"## {HOSTILE}\n| {HOSTILE} | b |\n{HOSTILE}\n")
    (tmp_path / '"><script>.svg').write_text("<svg onload='alert(1)'><script>1</script></svg>")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "epoch", "seconds": 1, "<script>": "<script>", "x": [null, {}]}\n')
    (tmp_path / "config.json").write_text(
        '{"config": {"<b onclick=1>": "\\ud800<script>"}, "versions": 3}')
    page = report(tmp_path)
    assert "alert(1)" in page.text


def test_malformed_files_are_refused(tmp_path, make_run):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path)
    make_run(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks the key"):
        write_report(tmp_path)


def test_welch_interval_against_tables():
    # Equal variances and sizes give 2 (n - 1) degrees of freedom: t(0.975, 4) = 2.776445.
    difference, error, half = welch_interval([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert difference == -3.0
    assert error == pytest.approx((2 / 3) ** 0.5)
    assert half / error == pytest.approx(2.776445, abs=1e-4)
    # One side without spread has n - 1 of the other: t(0.975, 1) = 12.7062.
    _, error, half = welch_interval([1.0, 2.0], [3.0, 3.0])
    assert half / error == pytest.approx(12.7062, rel=1e-3)
    assert welch_interval([1.0], [2.0, 3.0]) is None
    assert welch_interval([2.0, 2.0], [2.0, 2.0]) == (0.0, 0.0, 0.0)
