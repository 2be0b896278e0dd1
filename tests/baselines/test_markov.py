"""The Markov chain against fractions computed by hand, a naive loop, and the rules of probability."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.baselines.markov import MarkovChain, MarkovConfig, transition_counts
from gensar_hf.data import Behavior, UserEvents
from gensar_hf.data.splits import RECOMMENDATION, Requests

NUM_ITEMS = 5
R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=8), min_size=1, max_size=4)
# The clicks are 0 1 2 and 0 1 0; the query does not come between them.
USERS = {"ann": [(R, 0), (Q, 0), (S, 1, 0), (R, 2)], "bob": [(R, 0), (R, 1), (R, 0)]}


@pytest.fixture
def events(make_events) -> UserEvents:
    return make_events(USERS, [f"film-{item}" for item in range(NUM_ITEMS)])


def log_of(histories: list[list[int]]) -> UserEvents:
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    return UserEvents(
        user_ids=[f"user-{user}" for user in range(len(histories))],
        item_ids=[f"film-{item}" for item in range(NUM_ITEMS)],
        query_texts=[],
        offsets=np.cumsum([0, *map(len, histories)]),
        behaviors=np.zeros(len(items), dtype=np.int8),
        items=items,
        queries=np.full(len(items), -1),
        timestamps=np.arange(len(items), dtype=np.float64),
    )


def test_probabilities_are_the_smoothed_shares(events):
    chain = MarkovChain(events, MarkovConfig(smoothing=4.0))

    # Of six clicks three are of film 0, two of film 1, one of film 2; 0 → 1 twice, 1 → 2 and 1 → 0 once.
    after = chain.probabilities(np.array([0, 1, 2, NUM_ITEMS]))
    shares = np.array([3 / 6, 2 / 6, 1 / 6, 0, 0])
    np.testing.assert_allclose(after[0], (np.array([0, 2, 0, 0, 0]) + 4 * shares) / (2 + 4), rtol=1e-6)
    np.testing.assert_allclose(after[1], (np.array([1, 0, 1, 0, 0]) + 4 * shares) / (2 + 4), rtol=1e-6)
    np.testing.assert_allclose(after[2:], [shares, shares], rtol=1e-6)  # never followed by anything, and no click


@given(HISTORIES, st.integers(0, 9), st.sampled_from([0.5, 1.0]))
@settings(max_examples=20, deadline=None)
def test_counts_are_those_of_a_naive_loop(histories, max_skip, skip_weight):
    expected: Counter = Counter()
    for history in histories:
        for i, earlier in enumerate(history):
            for skipped, later in enumerate(history[i + 1 : i + 2 + max_skip]):
                expected[earlier, later] += skip_weight**skipped

    counts = transition_counts(log_of(histories), max_skip, skip_weight)

    assert counts.nnz == len(expected)  # nothing is stored for pairs that never occurred
    for (earlier, later), count in expected.items():
        assert counts[earlier, later] == pytest.approx(count)


@given(HISTORIES.filter(any), st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_the_whole_catalogue_has_probability_one(histories, smoothing):
    chain = MarkovChain(log_of(histories), MarkovConfig(max_skip=2, smoothing=smoothing))

    np.testing.assert_allclose(chain.probabilities(np.arange(NUM_ITEMS + 1)).sum(axis=1), 1, rtol=1e-5)


def test_requests_are_scored_by_their_latest_click(events):
    chain = MarkovChain(events, MarkovConfig(smoothing=1.0))
    requests = Requests(RECOMMENDATION, events, np.array([3, 4, 6]))  # after film 1, after nothing, after film 1
    candidates = np.array([[4, 2, 0], [0, 1, 2], [0, 1, 2]])

    scores = chain.score(requests, candidates)

    every_item = chain.probabilities(np.array([1, NUM_ITEMS, 1]))
    np.testing.assert_array_equal(scores, np.take_along_axis(every_item, candidates, axis=1))
    np.testing.assert_allclose(scores[1], [3 / 6, 2 / 6, 1 / 6], rtol=1e-6)
