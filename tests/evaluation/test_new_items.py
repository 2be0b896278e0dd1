"""Requests for held-out items read nothing of them, and borrowed scores are the neighbors' means."""

import numpy as np
import pandas as pd
import pytest

from gensar_hf.data import RECOMMENDATION, SEARCH, InteractionLog, events_from_log, leave_one_out, training_mask
from gensar_hf.evaluation import CandidateSets
from gensar_hf.evaluation.new_items import new_item_requests, ranks_as_new

ITEMS = pd.DataFrame({"item_id": [f"i{item}" for item in range(8)], "title": list("abcdefgh")})
NEW = ["i2", "i5"]
# user, item, time, query; a user's last clicks of either kind are held out of training
ROWS = [
    ("ann", "i0", 1, ""), ("ann", "i2", 2, "red"), ("ann", "i1", 3, "blue"), ("ann", "i5", 3, ""), ("ann", "i3", 4, ""),
    ("ann", "i2", 5, "blue"), ("ann", "i4", 5, "blue"), ("ann", "i6", 6, ""), ("ann", "i5", 7, "green"),
    ("bob", "i2", 1, ""), ("bob", "i7", 2, "red"), ("bob", "i2", 2, "red"), ("bob", "i2", 3, "red"),
    ("new", "i5", 1, ""), ("new", "i5", 2, "red"),
]  # fmt: skip


def as_log(rows, item_ids):
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"]).astype({"timestamp": float})
    items = ITEMS[ITEMS["item_id"].isin(item_ids)].reset_index(drop=True)
    return InteractionLog(items, interactions.reset_index(drop=True), ("title",))


@pytest.fixture
def parts():
    """The log without the new items, its split, and the held-out part."""
    known = as_log([row for row in ROWS if row[1] not in NEW], [item for item in ITEMS["item_id"] if item not in NEW])
    held_out = as_log([row for row in ROWS if row[1] in NEW], NEW)
    return known, leave_one_out(events_from_log(known)), held_out


def described(requests):
    """Per request: user, item, time, query, and the history as (item, query) pairs."""
    events, found = requests.events, []
    for row, target in enumerate(requests.targets):
        history = [
            (events.item_ids[events.items[event]] if events.items[event] >= 0 else "",
             events.query_texts[events.queries[event]] if events.queries[event] >= 0 else "")
            for event in requests.history(row)
        ]  # fmt: skip
        user, item = events.user_ids[requests.users[row]], events.item_ids[requests.target_items[row]]
        found.append((user, item, events.timestamps[target], requests.query_texts[row], history))
    return found


def test_requests_are_all_clicks_on_new_items_and_histories_earlier_training_events(parts):
    known, split, held_out = parts
    # ann trains on what happens before time 4: two clicks of either kind make a test request each
    assert training_mask(split).tolist() == [True, True, True, False, False, False, False] + [True] * 2
    requests = new_item_requests(known, split, held_out)

    assert requests[SEARCH].events.item_ids == ["i0", "i1", "i3", "i4", "i6", "i7", *NEW]
    before_3, training = [("i0", "")], [("i0", ""), ("", "blue"), ("i1", "blue")]
    assert described(requests[SEARCH]) == [
        ("ann", "i2", 2, "red", before_3),
        ("ann", "i2", 5, "blue", training),
        ("ann", "i5", 7, "green", training),
        ("bob", "i2", 2, "red", []),  # i7 was clicked at the same time, not before
        ("bob", "i2", 3, "red", [("i7", "red")]),  # the session's own query is handed over by itself
        ("new", "i5", 2, "red", []),
    ]
    assert described(requests[RECOMMENDATION]) == [
        ("ann", "i5", 3, "", before_3),
        ("bob", "i2", 1, "", []),
        ("new", "i5", 1, "", []),
    ]


def test_a_subset_keeps_its_histories(parts):
    requests = new_item_requests(*parts)[SEARCH]
    assert described(requests.subset([4, 1])) == [described(requests)[row] for row in (4, 1)]


class CountingScorer:
    """Probability of item i is `weights[i]`, whatever is asked."""

    name, tasks = "counting", frozenset({SEARCH, RECOMMENDATION})

    def __init__(self, weights):
        self.weights = np.asarray(weights, dtype=float)

    def score(self, requests, candidates):
        return np.log(self.weights[candidates])


WEIGHTS = [0.30, 0.20, 0.10, 0.15, 0.05, 0.01, 1e-9, 1e-9]


def test_known_targets_are_ranked_by_what_they_would_borrow(parts):
    _, split, _ = parts
    requests = split.test[RECOMMENDATION]
    assert requests.target_items.tolist() == [4]  # i6, in the catalogue without the new items
    sets = CandidateSets(np.array([[0, 4, 1, 5]]), np.array([1]), "random-3", 0)
    neighbors = np.zeros((6, 3), dtype=int)
    neighbors[4] = [0, 1, 5]

    ranks = ranks_as_new(CountingScorer(WEIGHTS[:6]), requests, sets, neighbors, [1, 2, 3])

    # own .05: third; borrowed .30 ties with the candidate before it, .25 lies between .30 and .20, .17 below both
    assert {num: found.tolist() for num, found in ranks.items()} == {1: [2], 2: [2], 3: [3]}
