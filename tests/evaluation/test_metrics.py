import doctest
import math

import numpy as np
import pytest

from gensar_hf.errors import InputError
from gensar_hf.evaluation import metrics, report
from gensar_hf.evaluation.metrics import (
    coverage,
    gini,
    hit_rate,
    hit_rate_per_request,
    metric_per_request,
    ndcg,
    ndcg_per_request,
)


@pytest.mark.parametrize("module", [metrics, report])
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


def test_metrics_have_any_depth():
    ranks = np.array([1, 2, 30])
    assert metric_per_request("HR@20", ranks).tolist() == [1, 1, 0]
    assert metric_per_request("NDCG@50", ranks).tolist() == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(31)])
    assert metric_per_request("MRR", ranks).tolist() == [1, 1 / 2, 1 / 30]
    assert metric_per_request("MRR@10", ranks).tolist() == [1, 1 / 2, 0]


@pytest.mark.parametrize("name", ["HR", "HR@0", "ndcg@10", "MAP@10", "MRR@", ""])
def test_metrics_that_there_are_not_are_refused(name):
    with pytest.raises(InputError, match=r"HR@k, NDCG@k, MRR and MRR@k"):
        metric_per_request(name, np.array([1]))


def test_spread_by_hand():
    items = np.array([[0, 1], [0, 2], [0, -1]])  # three of five items, of which the first is in every list
    assert coverage(items, num_items=5) == 3 / 5
    # Counts 0 0 1 1 3: 2 · (3·1 + 4·1 + 5·3) / (5 · 5) - 6 / 5
    assert gini(items, num_items=5) == pytest.approx(2 * 22 / 25 - 6 / 5)
    assert gini(np.array([[0, 1], [2, 3]]), num_items=4) == pytest.approx(0)
