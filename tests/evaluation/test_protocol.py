import io
import json
import logging
import math
from types import SimpleNamespace

import ir_measures
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from gensar_hf.data import InteractionDataset
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation import METRICS, bm25_candidates, evaluate, protocol, random_candidates
from gensar_hf.evaluation.metrics import COMPARED_METRICS
from gensar_hf.evaluation.protocol import (
    Evaluation,
    evaluate_pipeline,
    history_items,
    rank_requests,
    validation_metrics,
)
from gensar_hf.evaluation.report import describe_protocol, metrics_tables
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
    values = result.metrics()["tasks"][RECOMMENDATION]["systems"]
    assert values["Clairvoyant"] == {name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in METRICS}
    expected = [0, 0, 1, 0, pytest.approx(1 / math.log2(11))]
    assert [values["Opposite"][name]["value"] for name in METRICS] == expected


def test_metrics_are_means_within_their_intervals(make_scorer, requests_by_task, sets_by_task):
    # Users 0 and 1 answered first, users 2 and 3 last: HR@1 = 2/4, and resamples reach from none to all.
    table = perfect_table(requests_by_task[RECOMMENDATION]) * np.array([1, 1, -1, -1])[:, None]
    result = evaluate([make_scorer("Half", table)], requests_by_task, sets_by_task)
    task = result.metrics()["tasks"][RECOMMENDATION]
    assert task["systems"]["Half"]["HR@1"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    counts = {"protocol": "random-9", "num_requests": 4, "num_users": 4, "num_candidates": 10}
    assert {name: task[name] for name in counts} == counts
    assert result.metrics()["tasks"][SEARCH]["protocol"] == "bm25-hard-9"


def test_a_system_scores_its_tasks_only(make_scorer, requests_by_task, sets_by_task):
    scorers = [make_scorer("Search only", np.arange(12), [SEARCH]), make_scorer("Both", np.arange(12))]
    result = evaluate(scorers, requests_by_task, sets_by_task)
    assert scorers[0].calls == [(SEARCH, 2)]
    assert scorers[1].calls == [(RECOMMENDATION, 4), (SEARCH, 2)]
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
def test_a_failure_of_one_system_is_kept(make_scorer, requests_by_task, sets_by_task, caplog, answer, message):
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
        evaluate([make_scorer("NaN", np.full(12, np.nan))], requests_by_task),
    ):
        assert "must not be NaN" in result.failures["NaN"][SEARCH]
        assert result.metrics()["tasks"][SEARCH]["systems"] == {}


def test_a_task_without_requests_is_skipped(make_scorer, requests_by_task, sets_by_task):
    requests_by_task[SEARCH] = requests_by_task[SEARCH].subset(np.zeros(0, dtype=np.int64))
    del sets_by_task[SEARCH]
    result = evaluate([make_scorer("Both", np.arange(12))], requests_by_task, sets_by_task)
    assert list(result.metrics()["tasks"]) == [RECOMMENDATION]
    assert result.metrics()["empty_tasks"] == [SEARCH]


def test_wrong_arguments_are_errors(make_scorer, requests_by_task, sets_by_task):
    scorer = make_scorer("Same", np.arange(12))
    with pytest.raises(ValueError, match=r"distinct names.*\['Same', 'Same'\]"):
        evaluate([scorer, scorer], requests_by_task, sets_by_task)
    with pytest.raises(ValueError, match="4 recommendation requests, but no candidate sets"):
        evaluate([scorer], requests_by_task, {SEARCH: sets_by_task[SEARCH]})
    reordered = requests_by_task[RECOMMENDATION].subset([1, 0, 2, 3])
    other_order = {**sets_by_task, RECOMMENDATION: random_candidates(reordered, num_negatives=9)}
    with pytest.raises(ValueError, match="do not hold the targets of the 4 requests"):
        evaluate([scorer], requests_by_task, other_order)


def test_full_ranking_names_itself_and_ranks_all_items(make_scorer, requests_by_task):
    scorer = make_scorer("Numbers", np.arange(12))
    result = evaluate([scorer], requests_by_task)
    assert result.ranks["Numbers"][RECOMMENDATION].tolist() == [11, 9, 7, 5]
    assert result.protocols == {RECOMMENDATION: "full-ranking", SEARCH: "full-ranking"}
    assert result.num_candidates == {RECOMMENDATION: 12, SEARCH: 12}
    unseen = evaluate([scorer], requests_by_task, skip_clicked=True)
    assert unseen.protocols[SEARCH] == "full-ranking-unseen"


def test_saved_files(make_scorer, requests_by_task, sets_by_task, tmp_path):
    scorers = [make_scorer("Numbers", np.arange(12)), BrokenScorer(RuntimeError("no memory left"))]
    result = evaluate(scorers, requests_by_task, sets_by_task, seed=3)
    result.save(tmp_path / "results")
    names = [".gensar.json", "metrics.json", "ndcg.png", "ranks.parquet", "tables.md"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == names
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
    result = evaluate([make_scorer("One user's", table)], {RECOMMENDATION: requests})
    values = result.metrics()["tasks"][RECOMMENDATION]
    assert (values["num_requests"], values["num_users"]) == (4, 2)
    # Items 0 to 2 tie for user 0's first three places, so HR@5 is 3/4; a quarter of the resamples is user 1 twice.
    assert values["systems"]["One user's"]["HR@5"] == {"value": 0.75, "low": 0.0, "high": 1.0}


def test_clicked_candidates_are_ranked_last(make_scorer, make_requests):
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


# ---- full ranking

CLICKS = [[0, 1, 4], [5, 2], [3, 3, 3], [1]]


def test_ranks_by_hand(make_requests, make_scorer):
    scorer = make_scorer("numbers", np.arange(6))  # item 5 first, item 0 last
    requests = make_requests(CLICKS, num_items=6)
    assert rank_requests(scorer, requests).ranks.tolist() == [2, 4, 3, 5]
    # Request 1 loses item 5 before its target 2; request 2 has its own target in the history, where it stays.
    assert rank_requests(scorer, requests, excluded=history_items).ranks.tolist() == [2, 3, 3, 5]


@pytest.mark.parametrize("excluded", [None, history_items])
def test_ranks_do_not_depend_on_the_chunk_size(make_requests, make_scorer, monkeypatch, excluded):
    requests, scorer = make_requests(CLICKS, num_items=6), make_scorer("table", [0, 1, 1, 0, 2, 1])
    at_once = rank_requests(scorer, requests, None, excluded, seed=2).ranks
    monkeypatch.setattr(protocol, "_CHUNK_SIZE", 3)
    np.testing.assert_array_equal(rank_requests(scorer, requests, None, excluded, seed=2).ranks, at_once)
    assert [length for _, length in scorer.calls] == [4, 3, 1]


# ---- datasets


class Dataset:
    """The parts of an `InteractionDataset` that evaluation reads."""

    def __init__(self, split, item_texts):
        self.split, self.events, self.item_ids = split, split.events, split.events.item_ids
        self._item_texts = item_texts

    def item_texts(self):
        return self._item_texts


@pytest.fixture
def dataset(tiny_split, identifiers):
    return Dataset(tiny_split, identifiers.texts)


def test_an_evaluation_draws_candidates_once_for_all_systems(dataset, make_scorer):
    evaluation = Evaluation(dataset, num_negatives=2)
    assert {task: sets.protocol for task, sets in evaluation.candidates.items()} == {
        RECOMMENDATION: "random-2",
        SEARCH: "bm25-hard-2",
    }
    first, second = (evaluation.run([make_scorer("Same", np.arange(12))]) for _ in range(2))
    assert first.metrics() == second.metrics()
    assert Evaluation(dataset, tasks=[SEARCH]).requests.keys() == {SEARCH}
    sampled = Evaluation(dataset, max_users=1).requests
    assert len({int(user) for requests in sampled.values() for user in requests.users}) == 1


def test_users_of_every_item_are_left_out(make_requests, identifiers, caplog):
    full, other = list(range(12)), [0, 5]
    for clicks, kept in (([full, other], 1), ([full, full], 0)):
        requests = make_requests(clicks, num_items=12)
        empty = requests.subset([])
        split = SimpleNamespace(events=requests.events, test={RECOMMENDATION: requests, SEARCH: empty})
        evaluation = Evaluation(Dataset(split, identifiers.texts), num_negatives=3)
        assert len(evaluation.requests[RECOMMENDATION]) == kept
        assert evaluation.candidates.keys() == ({RECOMMENDATION} if kept else set())
        assert f"{2 - kept} of 2 recommendation requests are left out: their users, first 'user-0'" in caplog.text


def test_hard_candidates_by_other_columns():
    """The query is made of the genre; by title, the hits are the films with "war" in their title."""
    items = pd.DataFrame({"item_id": list("abcdef"), "title": ["War", "War Horse", "Love", "Hate", "Life", "Sun"]})
    items["genres"] = ["Drama", "Drama", "War", "War", "War", "Drama"]
    clicks = [("u", "f", ""), ("u", "c", "love"), ("u", "e", "war")]
    rows = pd.DataFrame(clicks, columns=["user_id", "item_id", "query"]).assign(timestamp=range(3))
    dataset = InteractionDataset(items, rows)
    cases = [
        (None, "bm25-hard", "abcd"),
        (["title"], "bm25-hard(title)", "ab"),
        (["genres"], "bm25-hard(genres)", "cd"),
    ]
    for columns, kind, negatives in cases:
        evaluation = Evaluation(dataset, tasks=[SEARCH], num_negatives=len(negatives), bm25_columns=columns)
        assert evaluation.candidates[SEARCH].protocol == f"{kind}-{len(negatives)}"
        ids = {dataset.item_ids[item] for item in evaluation.candidates[SEARCH].candidates[0]}
        assert ids == {"e", *negatives}
    with pytest.raises(InputError, match="no column tags"):
        Evaluation(dataset, bm25_columns=["tags"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": "train"}, "must be test or validation; got 'train'"),
        ({"tasks": ["ranking"]}, "some of recommendation, search; got ranking"),
        ({"tasks": []}, "got none"),
        ({"num_negatives": 0}, "at least 1; got 0 and None"),
        ({"max_users": 0}, "at least 1; got 99 and 0"),
    ],
)
def test_arguments_out_of_range_are_refused(dataset, arguments, message):
    with pytest.raises(InputError, match=message):
        Evaluation(dataset, **arguments)


def test_a_pipeline_is_evaluated_with_other_systems(dataset, events_pipe, make_scorer, tmp_path):
    others = [make_scorer("Numbers", np.arange(12))]
    result = evaluate_pipeline(events_pipe, dataset, systems=others, num_negatives=2, full_ranking=True)
    assert result.systems == ["GenSAR", "Numbers"]
    assert result.failures == {}
    assert result.full_ranking.num_candidates == {RECOMMENDATION: 12, SEARCH: 12}
    text = io.StringIO()
    Console(file=text, width=140).print(result.terminal_table())
    assert "random-2, 3 candidates" in " ".join(text.getvalue().split())
    assert "full-ranking, 12 items" in text.getvalue()
    result.save(tmp_path)
    assert read_json(tmp_path / "full_ranking" / "metrics.json") == json.loads(
        json.dumps(result.full_ranking.metrics())
    )


def test_a_dataset_with_unknown_items_is_refused_in_one_sentence(dataset, events_pipe):
    dataset.item_ids = [*dataset.item_ids, "film-99"]
    with pytest.raises(InputError, match="1 of the dataset's 13 items are not in the model's catalogue"):
        evaluate_pipeline(events_pipe, dataset)


def test_validation_metrics_are_those_of_the_evaluation(dataset, events_pipe):
    evaluation = Evaluation(dataset, num_negatives=2)
    events_pipe.model.train()
    metrics = validation_metrics(events_pipe, evaluation, k=(1, 5))
    assert events_pipe.model.training
    events_pipe.model.eval()
    tasks = evaluate_pipeline(events_pipe, dataset, num_negatives=2).metrics()["tasks"]
    for task in (RECOMMENDATION, SEARCH):
        expected = tasks[task]["systems"]["GenSAR"]
        assert metrics[f"{task}_hr@1"] == expected["HR@1"]["value"]
        assert metrics[f"{task}_ndcg@5"] == expected["NDCG@5"]["value"]
    assert validation_metrics(events_pipe, dataset) == {}  # the split has no validation requests


# ---- lists


def test_run_files_give_other_tools_the_same_metrics(make_scorer, requests_by_task, sets_by_task, tmp_path):
    """Ties, a scorer with -inf, and item ids with blanks."""
    rng = np.random.default_rng(0)
    num_items = requests_by_task[RECOMMENDATION].events.num_items
    tables = {"Tied": rng.integers(0, 3, num_items), "Not all": np.where(rng.random(num_items) < 0.5, -np.inf, 1.0)}
    scorers = [make_scorer(name, table) for name, table in tables.items()]
    results = {
        "": evaluate(scorers, requests_by_task, sets_by_task, names=COMPARED_METRICS),
        "full_ranking": evaluate(scorers, requests_by_task, skip_clicked=True, names=COMPARED_METRICS),
    }
    results[""].full_ranking = results["full_ranking"]
    results[""].save(tmp_path, trec_runs=True)
    measures = {"HR@5": ir_measures.Success @ 5, "NDCG@10": ir_measures.nDCG @ 10, "MRR": ir_measures.RR}
    for place, result in results.items():
        folder = tmp_path / place / "trec"
        for task, facts in result.metrics()["tasks"].items():
            qrels = list(ir_measures.read_trec_qrels(str(folder / f"{task}.qrels")))
            assert len(qrels) == facts["num_requests"]
            for name, tag in {"Tied": "Tied", "Not all": "Not-all"}.items():
                run = list(ir_measures.read_trec_run(str(folder / f"{task}-{tag}.run.gz")))
                values = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
                for metric, measure in measures.items():
                    assert values[measure] == pytest.approx(facts["systems"][name][metric]["value"], abs=1e-6)


def test_recommendations_among_all_items_have_their_spread(make_scorer, requests_by_task):
    """Everybody gets the same ten of all items."""
    requests = requests_by_task[RECOMMENDATION]
    num_items = requests.events.num_items
    result = evaluate([make_scorer("Numbers", np.arange(num_items))], requests_by_task)
    values = {task: facts["systems"]["Numbers"] for task, facts in result.metrics()["tasks"].items()}
    shown = {*range(num_items - 10, num_items)} | {int(item) for item in result.items["Numbers"][RECOMMENDATION][:, 9]}
    assert values[RECOMMENDATION]["coverage@10"] == {"value": len(shown) / num_items}
    assert 0 < values[RECOMMENDATION]["Gini@10"]["value"] < 1
    assert "coverage@10" not in values[SEARCH]
    assert "| System | coverage@10 | Gini@10 |" in "".join(
        table.markdown() for table in metrics_tables(result.metrics())
    )


def test_further_metrics_are_columns(dataset, make_scorer):
    evaluation = Evaluation(dataset, num_negatives=5, more_metrics=["HR@3", "MRR@2"])
    report = evaluation.run([make_scorer("Numbers", np.arange(12))]).metrics()
    assert report["metrics"] == [*METRICS, "HR@3", "MRR@2"]
    assert "NDCG@10 | HR@3 | MRR@2" in metrics_tables(report)[0].markdown()
    with pytest.raises(InputError, match="There is no metric 'HIT@3'"):
        Evaluation(dataset, more_metrics=["HIT@3"])
