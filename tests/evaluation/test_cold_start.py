"""Cold-start requests and evaluation by groups of items."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gensar_hf.data import RECOMMENDATION, SEARCH, InteractionDataset, training_mask
from gensar_hf.data.splits import Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.cold_start import catalogue_reach, cold_start_requests, evaluate_groups

ITEMS = pd.DataFrame({"item_id": [f"i{item}" for item in range(8)], "title": list("abcdefgh")})
NEW = ["i2", "i5"]
# user, item, time, query; a user's last clicks of either kind are held out of training
ROWS = [
    ("ann", "i0", 1, ""), ("ann", "i2", 2, "red"), ("ann", "i1", 3, "blue"), ("ann", "i5", 3, ""), ("ann", "i3", 4, ""),
    ("ann", "i2", 5, "blue"), ("ann", "i4", 5, "blue"), ("ann", "i6", 6, ""), ("ann", "i5", 7, "green"),
    ("bob", "i2", 1, ""), ("bob", "i7", 2, "red"), ("bob", "i2", 2, "red"), ("bob", "i2", 3, "red"),
    ("new", "i5", 1, ""), ("new", "i5", 2, "red"),
]  # fmt: skip


def as_dataset(rows, item_ids):
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"]).astype({"timestamp": float})
    items = ITEMS[ITEMS["item_id"].isin(item_ids)].reset_index(drop=True)
    return InteractionDataset.from_checked(items, interactions, ("title",))


@pytest.fixture
def parts():
    """The whole dataset, and the training part without the new items."""
    known = as_dataset(
        [row for row in ROWS if row[1] not in NEW], [item for item in ITEMS["item_id"] if item not in NEW]
    )
    return as_dataset(ROWS, list(ITEMS["item_id"])), known


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


def test_requests_are_all_clicks_on_new_items_with_earlier_training_events_as_history(parts):
    # ann trains on what happens before time 4: two clicks of either kind make a test request each
    assert training_mask(parts[1].split).tolist() == [True, True, True, False, False, False, False] + [True] * 2
    requests = cold_start_requests(*parts)

    before_3, training = [("i0", "")], [("i0", ""), ("", "blue"), ("i1", "blue")]
    assert described(requests[SEARCH]) == [
        ("ann", "i2", 2, "red", before_3),
        ("ann", "i2", 5, "blue", training),
        ("ann", "i5", 7, "green", training),
        ("bob", "i2", 2, "red", []),  # i7 was clicked at the same time, not before
        ("bob", "i2", 3, "red", [("i7", "red")]),  # the query of the request's session is not history
        ("new", "i5", 2, "red", []),
    ]
    assert described(requests[RECOMMENDATION]) == [
        ("ann", "i5", 3, "", before_3),
        ("bob", "i2", 1, "", []),
        ("new", "i5", 1, "", []),
    ]


def test_a_subset_keeps_its_histories(parts):
    requests = cold_start_requests(*parts)[SEARCH]
    assert described(requests.subset([4, 1])) == [described(requests)[row] for row in (4, 1)]


NUM_ITEMS = 12


@pytest.fixture
def knows(make_scorer: Callable) -> Callable:
    """A scorer that ranks items from `first` on before all others, each part in the order of the catalogue."""
    return lambda name, first: make_scorer(name, 100.0 * (np.arange(NUM_ITEMS) >= first) - np.arange(NUM_ITEMS))


@pytest.fixture
def requests(make_requests: Callable) -> dict[str, Requests]:
    clicks = [[0, 10], [0, 1], [0, 2], [0, 11]]
    return {RECOMMENDATION: make_requests(clicks, NUM_ITEMS)}


def items(first: int, end: int) -> np.ndarray:
    return (np.arange(NUM_ITEMS) >= first) & (np.arange(NUM_ITEMS) < end)


GROUPS = {"known": items(0, 10), "new": items(10, 11), "none": items(11, 11), "others": items(11, 12)}
TEXTS = [f"film {item}" for item in range(NUM_ITEMS)]


def test_each_group_has_its_requests(requests: dict[str, Requests], knows: Callable) -> None:
    scorers = [knows("before", 12), knows("after", 10)]
    result = evaluate_groups(scorers, requests, GROUPS, TEXTS, num_negatives=10)
    assert (result["systems"], result["groups"]) == (["before", "after"], list(GROUPS))
    measured = result["tasks"][RECOMMENDATION]
    assert set(measured) == {"known", "new", "others"}  # the empty group has no requests
    assert [measured[name]["num_requests"] for name in measured] == [2, 1, 1]
    assert [measured[name]["num_items"] for name in measured] == [2, 1, 1]
    assert {group["protocol"] for group in measured.values()} == {"random-10"}
    # Candidates are all items but 0, which was clicked: 1 and 2 are first and second, or behind 10 and 11.
    after = {name: group["systems"]["after"]["HR@1"]["value"] for name, group in measured.items()}
    before = {name: group["systems"]["before"]["HR@1"]["value"] for name, group in measured.items()}
    assert after == {"known": 0, "new": 1, "others": 0}
    assert before == {"known": 1 / 2, "new": 0, "others": 0}
    assert measured["known"]["difference"]["HR@1"]["value"] == -1 / 2
    assert measured["new"]["difference"]["NDCG@10"] == pytest.approx(
        {"value": 1 - 1 / np.log2(11), "low": 1 - 1 / np.log2(11), "high": 1 - 1 / np.log2(11)}
    )


def test_users_who_have_clicked_everything_are_left_out(make_requests: Callable, knows: Callable) -> None:
    requests = {RECOMMENDATION: make_requests([[0, 10], [*range(NUM_ITEMS)], [3, 11]], NUM_ITEMS)}
    result = evaluate_groups([knows("a", 12)], requests, GROUPS, TEXTS, num_negatives=5)
    assert [group["num_requests"] for group in result["tasks"][RECOMMENDATION].values()] == [1, 1]


def test_a_group_of_many_requests_is_sampled(requests: dict[str, Requests], knows: Callable) -> None:
    result = evaluate_groups([knows("one", 12)], requests, {"all": items(0, 12)}, TEXTS, 10, max_requests=3)
    assert result["tasks"][RECOMMENDATION]["all"]["num_requests"] == 3


def test_a_system_that_fails_is_named(requests: dict[str, Requests], knows: Callable, make_scorer: Callable) -> None:
    with pytest.raises(InputError, match="after failed in recommendation: IndexError"):
        evaluate_groups([knows("before", 12), make_scorer("after", [])], requests, {"all": items(0, 12)}, TEXTS, 10)


def test_intervals_may_be_over_items(make_requests: Callable, knows: Callable) -> None:
    """Two of four requests are for item 1, which is always first: over items HR@1 has the clusters {1, 1}, {2}, {3}."""
    requests = {RECOMMENDATION: make_requests([[0, 1], [0, 1], [0, 2], [0, 3]], NUM_ITEMS)}
    arguments = [knows("one", 12)], requests, {"all": items(0, 12)}, TEXTS, 10
    over_users, over_items = (evaluate_groups(*arguments, by_item=by_item)["tasks"] for by_item in (False, True))
    values = [each[RECOMMENDATION]["all"]["systems"]["one"]["HR@1"] for each in (over_users, over_items)]
    assert values[0]["value"] == values[1]["value"] == 1 / 2
    assert values[0] != values[1] or values[0]["low"] == 0


def test_reach_counts_requests_items_and_places(make_requests: Callable) -> None:
    requests = make_requests([[0, 1], [0, 1], [0, 2]], NUM_ITEMS)
    answers = [["item-1", "item-5"], ["item-5", "item-6"], ["item-5", "item-6"]]
    pipe = SimpleNamespace(recommend=lambda histories, top_k: [[{"item_id": name} for name in row] for row in answers])
    reach = catalogue_reach(pipe, requests, ["item-1", "item-2"])
    assert reach == {f"{what}@{depth}": value for depth in (10, 100) for what, value in (
        ("requests", 1 / 3), ("items", 1 / 2), ("places", 1 / 6),
    )}  # fmt: skip
