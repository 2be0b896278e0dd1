import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.evaluation.full_ranking import full_ranks, history_items

CLICKS = [[0, 1, 4], [5, 2], [3, 3, 3], [1]]


def test_ranks_by_hand(make_requests, make_scorer):
    scorer = make_scorer("numbers", np.arange(6))  # item 5 first, item 0 last
    requests = make_requests(CLICKS, num_items=6)
    assert full_ranks(scorer, requests).tolist() == [2, 4, 3, 5]
    # Request 1 loses item 5 before its target 2; request 2 has its own target in the history, where it stays.
    assert full_ranks(scorer, requests, exclude_history=True).tolist() == [2, 3, 3, 5]


def test_history_holds_what_came_before_the_target(make_requests):
    expected = np.zeros((4, 6), dtype=bool)
    expected[0, [0, 1]] = expected[1, 5] = expected[2, 3] = True
    np.testing.assert_array_equal(history_items(make_requests(CLICKS, num_items=6)), expected)


def test_queries_in_a_history_are_no_items(make_requests):
    requests = make_requests([[0, 2]], num_items=3, task="search", queries=["words"])
    assert history_items(requests).tolist() == [[True, False, False]]


@settings(max_examples=30)
@given(table=st.lists(st.integers(0, 3), min_size=6, max_size=6), chunk_size=st.integers(1, 5), exclude=st.booleans())
def test_the_chunk_size_changes_nothing(make_requests, make_scorer, table, chunk_size, exclude):
    requests = make_requests(CLICKS, num_items=6)
    scorer = make_scorer("table", table)
    at_once = full_ranks(scorer, requests, exclude, seed=2)
    np.testing.assert_array_equal(full_ranks(scorer, requests, exclude, seed=2, chunk_size=chunk_size), at_once)
    assert scorer.asked[0] == ("recommendation", 4)
    assert sum(length for _, length in scorer.asked[1:]) == 4
    assert max(length for _, length in scorer.asked[1:]) <= chunk_size


def test_a_constant_score_gets_the_hit_rate_of_chance(make_requests, make_scorer):
    requests = make_requests([[0]] * 5000, num_items=20)
    ranks = full_ranks(make_scorer("constant", np.zeros(20)), requests)
    assert (ranks <= 5).mean() == pytest.approx(1 / 4, abs=0.03)  # 5 standard deviations
    assert (ranks == 1).mean() == pytest.approx(1 / 20, abs=0.016)


def test_no_requests_give_no_ranks(make_requests, make_scorer):
    requests = make_requests(CLICKS, num_items=6).subset(np.zeros(0, dtype=np.int64))
    assert full_ranks(make_scorer("numbers", np.arange(6)), requests).shape == (0,)
