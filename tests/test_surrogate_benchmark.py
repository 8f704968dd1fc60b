"""The benchmark of surrogates: what it compares, and that baselines are judged as they are."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import bench_surrogates
from jaxnas import data


def test_smoke(capsys):
    pytest.importorskip("sklearn")
    bench_surrogates.main(["--smoke", "--models", "gp", "forest", "ridge", "parameters"])
    out = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out[:4]]
    assert [row["model"] for row in rows] == ["gp", "forest", "ridge", "parameters"]
    assert all(row["observed"] == 20 and row["spearman"][0] > 0.2 for row in rows)
    assert len(out) == 4 + 1 + 4 and out[5].startswith("gp")
    # Parameters rank all cells about as they rank 2,000 of them.
    table = data.load_table("nasbench201")
    expected = stats.spearmanr(bench_surrogates.SPACE.num_parameters(table.archs),
                               table.metric(bench_surrogates.METRIC))[0]
    assert abs(rows[-1]["spearman"][0] - expected) < 0.05


def test_bad_flags(capsys):
    for flags in (["--models", "x"], ["--seeds", "0"], ["--sizes", "3"]):
        with pytest.raises(SystemExit):
            bench_surrogates.main(flags)
        assert flags[0] in capsys.readouterr().err


def test_buffer_changes_nothing():
    archs = np.random.default_rng(0).integers(0, 5, (30, 6)).astype(np.int32)
    scores = archs.sum(1).astype(np.float32)
    surrogate = bench_surrogates.gaussian_process(
        bench_surrogates.hamming_kernel(bench_surrogates.SPACE.num_choices))
    one, other = (bench_surrogates.ours(surrogate, capacity)(archs[:20], scores[:20], 0, archs[20:])
                  for capacity in (20, 33))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
