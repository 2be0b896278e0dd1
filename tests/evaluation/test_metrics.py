import doctest
import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.evaluation import bm25_index, metrics, report
from gensar_hf.evaluation.metrics import (
    METRICS,
    hit_rate,
    hit_rate_per_request,
    metrics_per_request,
    ndcg,
    ndcg_per_request,
)


@pytest.mark.parametrize("module", [metrics, bm25_index, report])
def test_docstring_examples_are_true(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_fractions():
    ranks = np.array([1, 2, 3, 5, 10, 11, 100])
    assert hit_rate(ranks, 1) == pytest.approx(1 / 7)
    assert hit_rate(ranks, 5) == pytest.approx(4 / 7)
    assert hit_rate(ranks, 10) == pytest.approx(5 / 7)
    gains = [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(6), 1 / math.log2(11)]
    assert ndcg(ranks, 5) == pytest.approx(sum(gains[:4]) / 7)
    assert ndcg(ranks, 10) == pytest.approx(sum(gains) / 7)
    np.testing.assert_allclose(ndcg_per_request(ranks, 10), [*gains, 0, 0])


@settings(max_examples=20)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 20))
def test_ir_measures_agrees(ranks, k):
    qrels = [ir_measures.Qrel(str(row), "target", 1) for row in range(len(ranks))]
    run = [
        ir_measures.ScoredDoc(str(row), "target" if place == rank else f"other-{place}", -float(place))
        for row, rank in enumerate(ranks)
        for place in range(1, 61)
    ]
    oracle = ir_measures.calc_aggregate([ir_measures.Success @ k, ir_measures.nDCG @ k], qrels, run)
    assert hit_rate(np.array(ranks), k) == pytest.approx(oracle[ir_measures.Success @ k])
    assert ndcg(np.array(ranks), k) == pytest.approx(oracle[ir_measures.nDCG @ k])


@given(st.lists(st.integers(1, 200), min_size=1))
def test_relations_between_the_metrics(ranks):
    values = dict(zip(METRICS, metrics_per_request(np.array(ranks)).mean(axis=0), strict=True))
    assert list(values) == list(METRICS)
    assert values["HR@1"] == ndcg(np.array(ranks), 1)  # only one place to gain
    assert values["HR@1"] <= values["NDCG@5"] <= values["HR@5"] <= values["HR@10"]
    assert values["NDCG@5"] <= values["NDCG@10"] <= values["HR@10"]


@pytest.mark.parametrize(
    ("ranks", "k", "message"),
    [
        ([1, 2], 0, "at least 1; got 0"),
        ([1, 0], 5, "smallest rank is 0"),
        ([], 5, "at least one"),
        ([[1]], 5, "shape"),
    ],
)
@pytest.mark.parametrize("metric", [hit_rate_per_request, ndcg_per_request])
def test_impossible_input_is_refused(metric, ranks, k, message):
    with pytest.raises(ValueError, match=message):
        metric(np.array(ranks), k)
