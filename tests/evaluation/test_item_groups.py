"""Systems before and after, on the same requests, by kinds of items."""

from collections.abc import Callable

import numpy as np
import pytest

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.item_groups import evaluate_groups

NUM_ITEMS = 12


class Knows:
    """Puts items from some row on before all others, in the order of their rows."""

    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, name: str, first: int) -> None:
        self.name, self.first = name, first

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        return np.where(candidates >= self.first, 100.0, 0.0) - candidates


class Breaks(Knows):
    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        raise ValueError("no scores today")


@pytest.fixture
def requests(make_requests: Callable) -> dict[str, Requests]:
    clicks = [[0, 10], [0, 1], [0, 2], [0, 11]]
    return {RECOMMENDATION: make_requests(clicks, NUM_ITEMS)}


GROUPS = {"known": (0, 10), "new": (10, 11), "none": (11, 11), "others": (11, 12)}
TEXTS = [f"film {item}" for item in range(NUM_ITEMS)]


def test_each_group_is_asked_for_by_itself(requests: dict[str, Requests]) -> None:
    scorers = [Knows("before", 12), Knows("after", 10)]
    result = evaluate_groups(scorers, requests, GROUPS, TEXTS, num_negatives=10)
    assert (result["systems"], result["groups"]) == (["before", "after"], list(GROUPS))
    found = result["tasks"][RECOMMENDATION]
    assert set(found) == {"known", "new", "others"}  # nobody asked for one of no items
    assert [found[name]["num_requests"] for name in found] == [2, 1, 1]
    assert [found[name]["num_items"] for name in found] == [2, 1, 1]
    assert {group["protocol"] for group in found.values()} == {"random-10"}
    # All items but 0, which was clicked: 1 and 2 are first and second, behind 10 and 11 where these come first.
    after = {name: group["systems"]["after"]["HR@1"]["value"] for name, group in found.items()}
    before = {name: group["systems"]["before"]["HR@1"]["value"] for name, group in found.items()}
    assert after == {"known": 0, "new": 1, "others": 0}
    assert before == {"known": 1 / 2, "new": 0, "others": 0}
    assert found["known"]["difference"]["HR@1"]["value"] == -1 / 2
    assert found["new"]["difference"]["NDCG@10"] == pytest.approx(
        {"value": 1 - 1 / np.log2(11), "low": 1 - 1 / np.log2(11), "high": 1 - 1 / np.log2(11)}
    )


def test_a_group_of_many_requests_is_sampled(requests: dict[str, Requests]) -> None:
    result = evaluate_groups([Knows("one", 12)], requests, {"all": (0, 12)}, TEXTS, 10, max_requests=3)
    assert result["tasks"][RECOMMENDATION]["all"]["num_requests"] == 3


def test_a_system_that_fails_is_named(requests: dict[str, Requests]) -> None:
    with pytest.raises(InputError, match="after failed in recommendation: ValueError: no scores today"):
        evaluate_groups([Knows("before", 12), Breaks("after", 0)], requests, {"all": (0, 12)}, TEXTS, 10)
