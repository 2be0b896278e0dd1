import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gensar_hf.evaluation.ranks import first_items, rank_in_catalogue, rank_of_target

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


@settings(max_examples=40)
@given(SCORES, st.data())
def test_the_first_items_are_a_stable_sort_with_the_target_at_its_rank(scores, data):
    columns = data.draw(hnp.arrays(np.int64, len(scores), elements=st.integers(0, scores.shape[1] - 1)))
    depth = data.draw(st.integers(1, 9))
    scores[data.draw(hnp.arrays(bool, scores.shape))] = -np.inf  # items that were not proposed
    excluded = data.draw(hnp.arrays(bool, scores.shape))
    excluded[np.arange(len(scores)), columns] = False
    items = np.tile(np.arange(scores.shape[1]) + 100, (len(scores), 1))
    draws = data.draw(hnp.arrays(np.float64, len(scores), elements=st.floats(0, 0.99)))
    ranks = rank_in_catalogue(scores, columns, draws, excluded)
    first = first_items(scores, items, columns + 100, ranks, excluded, depth)
    for row, column in enumerate(columns):
        order = np.argsort(-scores[row], kind="stable")
        expected = [100 + place for place in order if place != column and not excluded[row, place]]
        expected.insert(ranks[row] - 1, 100 + column)
        expected = [*expected, *[-1] * depth][:depth]
        listed, score_of = first[row].tolist(), {-1: np.nan, **dict(enumerate(scores[row].tolist(), start=100))}
        if depth >= scores.shape[1]:
            assert listed == expected
        np.testing.assert_array_equal([score_of[item] for item in listed], [score_of[item] for item in expected])
        assert len({item for item in listed if item >= 0}) == sum(item >= 0 for item in expected)
