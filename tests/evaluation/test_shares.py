"""Requests over processes: every one exactly once, whatever the remainder, and back in their order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data.splits import RECOMMENDATION
from gensar_hf.evaluation import evaluate, evaluate_full_ranking, random_candidates, shares
from gensar_hf.evaluation.shares import OneProcess, joined, own_rows


@given(st.integers(0, 3000), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_every_request_is_asked_once_and_its_answer_comes_back_to_its_place(num_requests, num_processes):
    rows = [own_rows(num_requests, OneProcess(index, num_processes)) for index in range(num_processes)]

    assert sorted(np.concatenate(rows)) == list(range(num_requests))
    answers = joined([10 * own for own in rows], num_requests)
    np.testing.assert_array_equal(answers, 10 * np.arange(num_requests))
    # Nobody waits for one that has two blocks more.
    assert max(map(len, rows)) - min(map(len, rows)) <= 256


def test_shares_by_hand():
    assert own_rows(5, OneProcess(0, 2)).tolist() == [0, 1, 2]
    assert own_rows(5, OneProcess(1, 2)).tolist() == [3, 4]
    assert [len(own_rows(1, OneProcess(index, 3))) for index in range(3)] == [1, 0, 0]
    # Blocks of the scorers' batches: 0–255 and 512–599 for the first, 256–511 for the second.
    assert own_rows(600, OneProcess(1, 2)).tolist() == list(range(256, 512))


def test_one_process_that_fails_leaves_no_answers():
    assert joined([np.array([1, 2]), "ValueError: no", "ValueError: nor I"], 5) == "ValueError: no"


class NumberScorer:
    """The higher an item's number the better, with ties; notes the users it was asked about."""

    name = "numbers"
    tasks = frozenset({RECOMMENDATION})

    def __init__(self):
        self.users = []

    def score(self, requests, candidates):
        self.users.extend(requests.users.tolist())
        return (candidates // 3).astype(float)


@pytest.mark.parametrize("is_full", [False, True])
def test_processes_together_give_the_ranks_of_one(tiny_split, monkeypatch, is_full):
    requests = {RECOMMENDATION: tiny_split.test[RECOMMENDATION]}
    candidates = {RECOMMENDATION: random_candidates(requests[RECOMMENDATION], 4, seed=0)}

    def ranks(scorer, processes):
        if is_full:
            return evaluate_full_ranking([scorer], requests, processes=processes).ranks["numbers"][RECOMMENDATION]
        result = evaluate([scorer], requests, candidates, skip_clicked=True, processes=processes)
        return result.ranks["numbers"][RECOMMENDATION]

    shared: list[np.ndarray] = []
    monkeypatch.setattr(
        "gensar_hf.evaluation.protocol.gathered_outcomes", lambda own, *rest: shared.append(own) or np.ones(3, int)
    )
    scorers = [NumberScorer(), NumberScorer()]
    for index, scorer in enumerate(scorers):
        ranks(scorer, OneProcess(index, 2))
    monkeypatch.undo()

    assert sorted(scorers[0].users + scorers[1].users) == [0, 1, 2]
    np.testing.assert_array_equal(joined(shared, 3), ranks(NumberScorer(), shares.ALONE))
