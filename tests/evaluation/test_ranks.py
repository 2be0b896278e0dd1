import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gensar_hf.evaluation.ranks import rank_in_catalogue, rank_of_target

SCORES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(-3, 3))


def test_equal_scores_are_ordered_by_column():
    assert rank_of_target(np.ones((4, 4)), np.arange(4)).tolist() == [1, 2, 3, 4]
    assert rank_of_target(np.array([[-np.inf, 2.0, -np.inf]]), np.array([2])).tolist() == [3]


@settings(max_examples=25)
@given(SCORES, st.data())
def test_a_stable_sort_gives_the_same_rank(scores, data):
    columns = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, scores.shape[1] - 1)))
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [list(order[row]).index(columns[row]) + 1 for row in range(len(scores))]
    assert rank_of_target(scores, columns).tolist() == expected


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_refused_in_every_column(place):
    scores = np.zeros((2, 3))
    scores[1, place] = np.nan
    with pytest.raises(ValueError, match="1 of 2 requests have NaN scores, the first is request 1"):
        rank_of_target(scores, np.array([0, 1]))
    with pytest.raises(ValueError, match="must not be NaN"):
        rank_in_catalogue(scores, np.array([0, 1]), np.zeros(2))


@pytest.mark.parametrize(("draw", "rank"), [(0.0, 2), (0.34, 3), (0.67, 4), (0.999, 4)])
def test_catalogue_ties_are_settled_by_the_draw(draw, rank):
    scores = np.array([[1.0, 1.0, 2.0, 1.0, 0.0]])  # one better, two equal: ranks 2, 3 and 4 are open
    assert rank_in_catalogue(scores, np.array([0]), np.array([draw])).tolist() == [rank]


@settings(max_examples=25)
@given(SCORES, st.data())
def test_catalogue_rank_lies_between_the_optimistic_and_the_pessimistic_one(scores, data):
    targets = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, scores.shape[1] - 1)))
    excluded = data.draw(hnp.arrays(bool, scores.shape))
    lowest = rank_in_catalogue(scores, targets, np.zeros(len(scores)), excluded)
    highest = rank_in_catalogue(scores, targets, np.full(len(scores), 1 - 1e-9), excluded)
    for row, target in enumerate(targets):
        others = [scores[row, i] for i in range(scores.shape[1]) if i != target and not excluded[row, i]]
        assert lowest[row] == 1 + sum(score > scores[row, target] for score in others)
        assert highest[row] == 1 + sum(score >= scores[row, target] for score in others)
