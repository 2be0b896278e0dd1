"""Items added after training get the mean probability of their nearest trained items."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.generator.item_scores import mean_probability, rank_with_cold_items


def test_the_mean_is_one_of_probabilities_not_of_logarithms():
    assert mean_probability(np.log([0.5, 0.1])) == pytest.approx(np.log(0.3))
    assert mean_probability(np.array([np.log(0.5), -np.inf])) == pytest.approx(np.log(0.25))
    assert mean_probability(np.array([-np.inf, -np.inf])) == -np.inf
    assert mean_probability(np.array([-1000.0, -1000.0])) == pytest.approx(-1000)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6))
def test_the_mean_lies_between_the_least_and_the_greatest(values):
    mean = mean_probability(np.array(values))
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_cold_items_rank_by_the_scores_of_their_neighbors():
    rows, scores = np.array([3, 0, 2]), np.log([0.5, 0.3, 0.1])
    # 7 borrows (0.5 + 0.3) / 2, 8 borrows (0.1 + 0) / 2, and none of 9's neighbors was found
    neighbors = np.array([[3, 0], [2, 1], [1, 4]])

    ranked, ranked_scores = rank_with_cold_items(rows, scores, np.array([7, 8, 9]), neighbors)

    np.testing.assert_array_equal(ranked, [3, 7, 0, 2, 8])
    np.testing.assert_allclose(np.exp(ranked_scores), [0.5, 0.4, 0.3, 0.1, 0.05])


def test_a_cold_item_may_be_among_its_own_neighbors():
    rows, scores = np.array([7, 3, 0]), np.log([0.5, 0.3, 0.1])
    ranked, ranked_scores = rank_with_cold_items(rows, scores, np.array([7, 8]), np.array([[7, 3], [8, 0]]))
    np.testing.assert_array_equal(ranked, [7, 3, 0, 8])
    np.testing.assert_allclose(np.exp(ranked_scores), [0.4, 0.3, 0.1, 0.05])


def test_without_cold_items_or_without_results_nothing_changes():
    rows, scores = np.array([3, 0]), np.array([-1.0, -2.0])
    ranked, ranked_scores = rank_with_cold_items(rows, scores, np.zeros(0, int), np.zeros((0, 5), int))
    np.testing.assert_array_equal(ranked, rows)
    np.testing.assert_array_equal(ranked_scores, scores)
    ranked, _ = rank_with_cold_items(rows[:0], scores[:0], np.array([7]), np.array([[0, 3]]))
    assert len(ranked) == 0
