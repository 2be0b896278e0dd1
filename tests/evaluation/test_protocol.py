import json
import logging
import math

import numpy as np
import pandas as pd
import pytest

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.evaluation import METRICS, bm25_candidates, evaluate, evaluate_full_ranking, random_candidates
from gensar_hf.evaluation.report import describe_protocol
from gensar_hf.files import read_json

TEXTS = [f"film {item} {'comedy' if item % 2 else 'drama'}" for item in range(12)]


class BrokenScorer:
    name = "Broken"
    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, answer):
        self.answer = answer

    def score(self, requests, candidates):
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.full((len(candidates), 2), self.answer)[:, : candidates.shape[1]]


@pytest.fixture
def requests_by_task(make_requests):
    return {
        RECOMMENDATION: make_requests([[0, 1], [2, 3], [4, 5], [6, 7]], num_items=12),
        SEARCH: make_requests([[0, 3], [1, 6]], num_items=12, task=SEARCH, queries=["comedy", "drama"]),
    }


@pytest.fixture
def sets_by_task(requests_by_task):
    return {
        RECOMMENDATION: random_candidates(requests_by_task[RECOMMENDATION], num_negatives=9),
        SEARCH: bm25_candidates(requests_by_task[SEARCH], TEXTS, num_negatives=9),
    }


def perfect_table(requests):
    table = np.zeros((len(requests), requests.events.num_items))
    table[np.arange(len(requests)), requests.target_items] = 1
    return table


def test_a_clairvoyant_and_its_opposite(make_scorer, requests_by_task, sets_by_task):
    table = perfect_table(requests_by_task[RECOMMENDATION])
    scorers = [make_scorer("Clairvoyant", table, [RECOMMENDATION]), make_scorer("Opposite", -table, [RECOMMENDATION])]
    result = evaluate(scorers, requests_by_task, sets_by_task)
    assert result.ranks["Clairvoyant"][RECOMMENDATION].tolist() == [1, 1, 1, 1]
    assert result.ranks["Opposite"][RECOMMENDATION].tolist() == [10, 10, 10, 10]
    figures = result.metrics()["tasks"][RECOMMENDATION]["systems"]
    assert figures["Clairvoyant"] == {name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in METRICS}
    assert [figures["Opposite"][name]["value"] for name in METRICS] == [0, 0, 1, 0, pytest.approx(1 / math.log2(11))]


def test_metrics_are_means_within_their_intervals(make_scorer, requests_by_task, sets_by_task):
    # Users 0 and 1 answered first, users 2 and 3 last: HR@1 = 2/4, and resamples reach from none to all.
    table = perfect_table(requests_by_task[RECOMMENDATION]) * np.array([1, 1, -1, -1])[:, None]
    result = evaluate([make_scorer("Half", table)], requests_by_task, sets_by_task, num_resamples=500)
    task = result.metrics()["tasks"][RECOMMENDATION]
    assert task["systems"]["Half"]["HR@1"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    counts = {"protocol": "random-9", "num_requests": 4, "num_users": 4, "num_candidates": 10}
    assert {name: task[name] for name in counts} == counts
    assert result.metrics()["tasks"][SEARCH]["protocol"] == "bm25-hard-9"


def test_a_system_is_asked_for_its_tasks_only(make_scorer, requests_by_task, sets_by_task):
    scorers = [make_scorer("Search only", np.arange(12), [SEARCH]), make_scorer("Both", np.arange(12))]
    result = evaluate(scorers, requests_by_task, sets_by_task)
    assert scorers[0].asked == [(SEARCH, 2)]
    assert scorers[1].asked == [(RECOMMENDATION, 4), (SEARCH, 2)]
    assert {system: list(by_task) for system, by_task in result.ranks.items()} == {
        "Search only": [SEARCH],
        "Both": [RECOMMENDATION, SEARCH],
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RuntimeError("no memory left"), "RuntimeError: no memory left"),
        (1.0, "ValueError: Scores of shape (4, 2) for candidates of shape (4, 10)"),
    ],
)
def test_a_failure_is_kept_and_the_others_go_on(make_scorer, requests_by_task, sets_by_task, caplog, answer, message):
    scorers = [BrokenScorer(answer), make_scorer("Sound", np.arange(12))]
    with caplog.at_level(logging.ERROR):
        result = evaluate(scorers, requests_by_task, sets_by_task)
    assert result.failures["Broken"][RECOMMENDATION].startswith(message)
    assert set(result.ranks["Sound"]) == {RECOMMENDATION, SEARCH}
    assert "Broken" not in result.metrics()["tasks"][RECOMMENDATION]["systems"]
    assert "Broken failed in recommendation" in caplog.text


def test_nan_scores_are_a_failure_not_a_first_rank(make_scorer, requests_by_task, sets_by_task):
    for result in (
        evaluate([make_scorer("NaN", np.full(12, np.nan))], requests_by_task, sets_by_task),
        evaluate_full_ranking([make_scorer("NaN", np.full(12, np.nan))], requests_by_task),
    ):
        assert "hold NaN" in result.failures["NaN"][SEARCH]
        assert result.metrics()["tasks"][SEARCH]["systems"] == {}


def test_an_interrupt_is_no_failure_of_the_system(requests_by_task, sets_by_task):
    class Interrupted(BrokenScorer):
        def score(self, requests, candidates):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([Interrupted(None)], requests_by_task, sets_by_task)


def test_a_task_without_requests_is_passed_over(make_scorer, requests_by_task, sets_by_task):
    requests_by_task[SEARCH] = requests_by_task[SEARCH].subset(np.zeros(0, dtype=np.int64))
    del sets_by_task[SEARCH]
    result = evaluate([make_scorer("Both", np.arange(12))], requests_by_task, sets_by_task)
    assert list(result.metrics()["tasks"]) == [RECOMMENDATION]
    assert result.metrics()["empty_tasks"] == [SEARCH]


def test_mistakes_of_the_caller_are_errors(make_scorer, requests_by_task, sets_by_task):
    scorer = make_scorer("Same", np.arange(12))
    with pytest.raises(ValueError, match=r"name of its own.*\['Same', 'Same'\]"):
        evaluate([scorer, scorer], requests_by_task, sets_by_task)
    with pytest.raises(ValueError, match="4 recommendation requests, but no candidate sets"):
        evaluate([scorer], requests_by_task, {SEARCH: sets_by_task[SEARCH]})
    other_order = {**sets_by_task, RECOMMENDATION: sets_by_task[RECOMMENDATION].subset(np.array([1, 0, 2, 3]))}
    with pytest.raises(ValueError, match="do not hold the targets of the 4 requests"):
        evaluate([scorer], requests_by_task, other_order)


def test_full_ranking_names_itself_and_ranks_all_items(make_scorer, requests_by_task):
    scorer = make_scorer("Numbers", np.arange(12))
    result = evaluate_full_ranking([scorer], requests_by_task, chunk_size=3)
    assert result.ranks["Numbers"][RECOMMENDATION].tolist() == [11, 9, 7, 5]
    assert result.protocols == {RECOMMENDATION: "full-ranking", SEARCH: "full-ranking"}
    assert result.num_candidates == {RECOMMENDATION: 12, SEARCH: 12}
    unseen = evaluate_full_ranking([scorer], requests_by_task, exclude_history=True)
    assert unseen.protocols[SEARCH] == "full-ranking-unseen"


def test_what_is_saved(make_scorer, requests_by_task, sets_by_task, tmp_path):
    scorers = [make_scorer("Numbers", np.arange(12)), BrokenScorer(RuntimeError("no memory left"))]
    result = evaluate(scorers, requests_by_task, sets_by_task, seed=3)
    result.save(tmp_path / "results")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["metrics.json", "ranks.parquet"]
    assert read_json(tmp_path / "results" / "metrics.json") == json.loads(json.dumps(result.metrics()))
    ranks = pd.read_parquet(tmp_path / "results" / "ranks.parquet")
    assert list(ranks.columns) == ["system", "task", "protocol", "user_id", "item_id", "rank"]
    recommended = ranks[ranks["task"] == RECOMMENDATION]
    assert recommended["user_id"].tolist() == ["user-0", "user-1", "user-2", "user-3"]
    assert recommended["item_id"].tolist() == ["item-1", "item-3", "item-5", "item-7"]
    assert recommended["rank"].tolist() == result.ranks["Numbers"][RECOMMENDATION].tolist()
    assert set(ranks["protocol"]) == {"random-9", "bm25-hard-9"}
    assert len(ranks) == 4 + 2


def test_the_result_of_nothing_can_be_saved(requests_by_task, sets_by_task, tmp_path):
    result = evaluate([BrokenScorer(RuntimeError("gone"))], requests_by_task, sets_by_task)
    result.save(tmp_path)
    assert len(pd.read_parquet(tmp_path / "ranks.parquet")) == 0


def test_intervals_are_over_users_not_requests(make_requests, make_scorer):
    events = make_requests([[0, 1, 2], [3]], num_items=12).events
    requests = Requests(RECOMMENDATION, events, np.arange(4))  # three of user 0, all hit; one of user 1, missed
    table = np.array([np.ones(12), -np.ones(12)]) * np.isin(np.arange(12), requests.target_items)
    result = evaluate_full_ranking([make_scorer("One user's", table)], {RECOMMENDATION: requests})
    figures = result.metrics()["tasks"][RECOMMENDATION]
    assert (figures["num_requests"], figures["num_users"]) == (4, 2)
    # Items 0 to 2 tie for user 0's first three places, so HR@5 is 3/4; a quarter of the resamples is user 1 twice.
    assert figures["systems"]["One user's"]["HR@5"] == {"value": 0.75, "low": 0.0, "high": 1.0}


def test_candidates_clicked_before_stand_behind_all_others(make_scorer, make_requests):
    """Users 0 and 1 clicked 5 and 6 before; user 2 clicks an item a second time, which must not cost its rank."""
    requests = {SEARCH: make_requests([[5, 3], [6, 5, 3], [4, 4]], 12, SEARCH, ["comedy", "comedy", "drama"])}
    sets = {SEARCH: bm25_candidates(requests[SEARCH], TEXTS, num_negatives=11)}
    scorer = make_scorer("By number", np.arange(12), [SEARCH])
    plain = evaluate([scorer], requests, sets)
    skipping = evaluate([scorer], requests, sets, skip_clicked=True)
    assert plain.ranks["By number"][SEARCH].tolist() == [9, 9, 8]  # nine items, or eight, have higher numbers
    assert skipping.ranks["By number"][SEARCH].tolist() == [8, 7, 8]
    assert skipping.protocols[SEARCH] == "bm25-hard-11-unseen"
    assert "those clicked before by the user last" in describe_protocol(skipping.protocols[SEARCH])
