import json

import numpy as np
import pandas as pd
import pytest

from gensar_hf.baselines import DenseRetrieval
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import InteractionDataset, Requests
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.embeddings import sasrec_training
from gensar_hf.errors import InputError
from gensar_hf.evaluation import evaluate
from gensar_hf.evaluation.query_kinds import (
    QueryRequests,
    WithoutHistory,
    evaluate_query_kinds,
    gensar_rows,
    query_kind_requests,
)
from gensar_hf.evaluation.report import QUERY_KINDS, query_kinds_table
from gensar_hf.files import read_json

PLOT = "An engineer lands alone on a dry planet and repairs his broken ship with stones before winter comes."
ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c", "d", "e", "f"],
        "title": ["Red Planet", "Red Star", "RED PLANET!", "Blue Moon River", "...", "Green"],
        "genres": ["Drama", "Drama", "War", "", "War", "War"],
        "description": [PLOT, "", "", "Too short.", "", ""],
    }
)
# User, item, query in the order of time. The last click of each user and task is the test request.
CLICKS = [
    ("ann", "a", ""), ("ann", "b", "red"), ("ann", "f", ""), ("ann", "d", "blue moon"), ("ann", "c", ""),
    ("bob", "f", ""), ("bob", "e", ""), ("bob", "c", ""),
]  # fmt: skip


def make_dataset(items=ITEMS, clicks=CLICKS):
    rows = pd.DataFrame(clicks, columns=["user_id", "item_id", "query"]).assign(timestamp=range(len(clicks)))
    return InteractionDataset(items, rows)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


class NamedScorer:
    """Scores of items by id, for every query alike; records what it is asked."""

    tasks = frozenset({SEARCH})

    def __init__(self, name, **scores):
        self.name, self.scores, self.asked = name, scores, []

    def score(self, requests, candidates):
        self.asked.append(requests)
        by_item = np.array([self.scores.get(item_id, 0.0) for item_id in requests.events.item_ids])
        return by_item[candidates]


def item_ids(requests):
    return [requests.events.item_ids[item] for item in requests.target_items]


def history_ids(requests, row):
    """Clicked items and queries of a history."""
    events, history = requests.events, requests.history(row)
    return [
        events.item_ids[events.items[event]] if events.items[event] >= 0 else events.query_texts[events.queries[event]]
        for event in history
    ]


def test_titles_parts_and_errors_are_asked_of_every_item_with_a_title(dataset):
    kinds = query_kind_requests(dataset)
    assert list(kinds) == list(QUERY_KINDS)
    for kind in ("title", "part", "misspelled"):
        assert sorted(item_ids(kinds[kind])) == ["a", "b", "c", "d", "f"]  # "..." has no word
        assert kinds[kind].task == SEARCH
    title, part, misspelled = (
        dict(zip(item_ids(kinds[kind]), kinds[kind].query_texts, strict=True))
        for kind in ("title", "part", "misspelled")
    )
    assert title == {"a": "Red Planet", "b": "Red Star", "c": "RED PLANET!", "d": "Blue Moon River", "f": "Green"}
    assert part == {"a": "red planet", "b": "red star", "c": "red planet", "d": "blue river", "f": "green"}
    assert all(misspelled[item] not in ("", part[item]) for item in part)
    assert item_ids(kinds["description"]) == ["a"]
    words = kinds["description"].query_texts[0].split()
    assert len(words) in (3, 4)
    assert set(words) <= set(PLOT.lower().replace(".", "").split())


def test_an_item_comes_with_the_history_of_its_held_out_click(dataset):
    """The test clicks are ann's and bob's recommendation of c and ann's search of d."""
    titles = query_kind_requests(dataset)["title"]
    histories = {item: (titles.users[row], history_ids(titles, row)) for row, item in enumerate(item_ids(titles))}
    assert histories["a"] == histories["b"] == histories["f"] == (-1, [])
    assert histories["d"] == (0, ["a", "red", "b", "f"])  # without the query of its own session
    ann, bob = (0, ["a", "red", "b", "f", "blue moon", "d"]), (1, ["f", "e"])
    assert histories["c"] in (ann, bob)
    seeds = [query_kind_requests(dataset, seed=seed)["title"] for seed in range(12)]
    seen = {str(history_ids(titles, item_ids(titles).index("c"))) for titles in seeds}
    assert seen == {str(ann[1]), str(bob[1])}


def test_ambiguous_queries_are_those_of_held_out_clicks(dataset):
    kinds = query_kind_requests(dataset)
    assert item_ids(kinds["log"]) == ["d"]
    assert kinds["log"].query_texts == ["blue moon"]
    assert history_ids(kinds["log"], 0) == ["a", "red", "b", "f"]
    attributes = kinds["attributes"]  # d has no genre
    assert item_ids(attributes) == ["c", "c"]
    assert attributes.query_texts == ["war", "war"]
    assert sorted(attributes.users.tolist()) == [0, 1]
    for row, user in enumerate(attributes.users):
        assert history_ids(attributes, row) == [["a", "red", "b", "f", "blue moon", "d"], ["f", "e"]][user]


def test_validation_clicks_have_their_own_histories(dataset):
    requests = query_kind_requests(dataset, part="validation")
    assert "log" not in requests  # ann has searched twice only
    titles = requests["title"]
    assert history_ids(titles, item_ids(titles).index("f")) == ["a", "red", "b"]


def test_kinds_without_requests_are_left_out():
    clicks = [("ann", "a", ""), ("ann", "b", ""), ("ann", "d", "")]
    dataset = make_dataset(ITEMS[["item_id", "title"]], clicks)
    assert list(query_kind_requests(dataset)) == ["title", "part", "misspelled"]
    metrics = evaluate_query_kinds([NamedScorer("One", a=1)], dataset).metrics()
    assert list(metrics["kinds"]) == ["title", "part", "misspelled"]
    assert metrics["kinds"]["title"]["num_requests"] == 5


def test_requests_are_a_seeded_sample(dataset):
    first, again, other = (query_kind_requests(dataset, max_requests=3, seed=seed) for seed in (0, 0, 1))
    for kind in QUERY_KINDS:
        assert len(first[kind]) <= 3
        assert first[kind].query_texts == again[kind].query_texts
        np.testing.assert_array_equal(first[kind].targets, again[kind].targets)
    assert item_ids(first["title"]) == item_ids(first["part"]) == item_ids(first["misspelled"])
    assert item_ids(first["title"]) != item_ids(other["title"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"part": "train"}, "must be test or validation; got 'train'"), ({"max_requests": 0}, "at least 1; got 0")],
)
def test_arguments_out_of_range_are_refused(dataset, arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate_query_kinds([], dataset, **arguments)


def test_items_with_the_same_title_words_are_not_ranked_for_kinds_of_titles(dataset):
    """c is first, a second, f third; a and c have the same title."""
    result = evaluate_query_kinds([NamedScorer("Fixed", c=4, a=3, f=2, b=1)], dataset)
    ranks = {
        kind: dict(zip(item_ids(requests), result.result.ranks["Fixed"][kind].tolist(), strict=True))
        for kind, requests in result.result.requests.items()
    }
    for kind in ("title", "part", "misspelled"):
        assert {item: ranks[kind][item] for item in "acfb"} == {"a": 1, "c": 1, "f": 3, "b": 4}
    assert ranks["description"] == {"a": 2}
    assert ranks["attributes"] == {"c": 1}
    values = result.metrics()["kinds"]
    assert values["title"]["systems"]["Fixed"]["HR@1"]["value"] == pytest.approx(2 / 5)
    assert values["description"]["systems"]["Fixed"]["HR@1"]["value"] == 0
    assert values["description"]["systems"]["Fixed"]["NDCG@10"]["value"] == pytest.approx(1 / np.log2(3))


def test_equal_scores_are_no_first_rank():
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(400)], "title": [f"word{n}" for n in range(400)]})
    clicks = [("ann", f"i{n}", "") for n in range(3)]
    metrics = evaluate_query_kinds([NamedScorer("Constant")], make_dataset(items, clicks)).metrics()
    assert metrics["kinds"]["title"]["systems"]["Constant"]["HR@10"]["value"] < 0.06  # 1 / 40 and 4.5 deviations


def test_a_request_without_a_user_is_a_user_of_its_own(dataset):
    """Two requests, one hit and one missed: as one user they would have an interval of no width."""
    events = dataset.events
    requests = QueryRequests(SEARCH, events, np.array([-1, -1]), ["x", "y"], np.array([0, 1]))
    task = evaluate([NamedScorer("Fixed", a=1)], {"title": requests}).metrics()["tasks"]["title"]
    assert task["num_users"] == 2
    assert task["systems"]["Fixed"]["HR@1"] == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_subsets_keep_what_belongs_together(dataset):
    titles = query_kind_requests(dataset)["title"]
    last_two = titles.subset(np.array([4, 3]))
    assert isinstance(last_two, QueryRequests)
    assert last_two.kind == "title"
    assert last_two.query_texts == [titles.query_texts[4], titles.query_texts[3]]
    assert item_ids(last_two) == [item_ids(titles)[4], item_ids(titles)[3]]
    np.testing.assert_array_equal(last_two.history(0), titles.history(4))
    assert len(titles.subset([])) == 0
    assert item_ids(titles.subset(np.arange(5) == 1)) == item_ids(titles)[1:2]


def test_without_history_a_system_gets_the_query_alone(dataset):
    scorer = NamedScorer("Inner", a=1)
    wrapped = WithoutHistory(scorer, "Inner, alone")
    requests = query_kind_requests(dataset)["attributes"]
    candidates = np.broadcast_to(np.arange(6), (2, 6))
    np.testing.assert_array_equal(wrapped.score(requests, candidates), scorer.score(requests, candidates))
    alone = scorer.asked[0]
    assert (wrapped.name, wrapped.tasks) == ("Inner, alone", scorer.tasks)
    assert alone.query_texts == requests.query_texts
    assert alone.users.tolist() == [-1, -1]
    assert [len(alone.history(row)) for row in range(2)] == [0, 0]
    recommendation = Requests(RECOMMENDATION, dataset.events, dataset.split.test[RECOMMENDATION].targets)
    wrapped.score(recommendation, candidates)
    assert scorer.asked[-1].task == RECOMMENDATION


@pytest.mark.parametrize("name", ["qem", "jsr", "jsr_personalized", "tem", "unisar"])
def test_trained_baselines_read_these_requests(dataset, name, monkeypatch):
    """A request without a user scores as without history; the others read their user or history."""
    monkeypatch.setattr(sasrec_training, "MIN_STEPS", 2)
    settings = {"num_train_epochs": 1, "hidden_size": 8, "per_device_train_batch_size": 4}
    scorer = fit_baseline(name, dataset, settings=settings)
    requests = query_kind_requests(dataset)["title"]
    candidates = np.broadcast_to(np.arange(6), (5, 6))
    scores, alone = (each.score(requests, candidates) for each in (scorer, WithoutHistory(scorer, "alone")))
    is_same = np.isclose(scores, alone, atol=1e-6).all(axis=1)
    personalizes = name != "jsr"  # JSR's search reads the query alone
    np.testing.assert_array_equal(is_same, (requests.targets < 0) | (not personalizes))


def test_a_failure_of_one_system_is_reported(dataset):
    class Broken(NamedScorer):
        def score(self, requests, candidates):
            raise RuntimeError(f"no {requests.kind}")

    recommender = NamedScorer("Recommender")
    recommender.tasks = frozenset({RECOMMENDATION})
    result = evaluate_query_kinds([Broken("Broken"), recommender, NamedScorer("Sound", a=1)], dataset)
    assert result.failures["Broken"]["title"] == "RuntimeError: no title"
    metrics = result.metrics()
    assert metrics["systems"] == ["Broken", "Sound"]
    assert [*metrics["kinds"]["title"]["systems"]] == ["Sound"]
    table = query_kinds_table(metrics)
    assert table.rows[0] == ["Broken", *["–"] * 6]
    assert "Broken failed in title: RuntimeError: no title" in table.note


def test_results_are_saved_as_json_table_and_plot(dataset, tmp_path):
    systems = [
        NamedScorer("Fixed", c=4, a=3, f=2, b=1),
        DenseRetrieval(np.eye(6), lambda texts: np.ones((len(texts), 6))),
    ]
    result = evaluate_query_kinds(systems, dataset)
    result.save(tmp_path / "results")
    metrics = read_json(tmp_path / "results" / "query_kinds.json")
    assert metrics == json.loads(json.dumps(result.metrics()))
    title = metrics["kinds"]["title"]
    assert (title["num_requests"], title["num_with_history"], title["num_candidates"]) == (5, 2, 6)
    assert title["example"]["query"] == title["example"]["title"]
    text = (tmp_path / "results" / "query_kinds.md").read_text(encoding="utf-8")
    assert "| System | title | part | misspelled | attributes | description | log |" in text
    assert "| Fixed | **.400** / **1.000** |" in text
    with_matplotlib = pytest.importorskip("matplotlib")
    assert with_matplotlib
    assert (tmp_path / "results" / "query_kinds.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def film_dataset(identifiers):
    """The films of `events_pipe`, in another order than in its table."""
    items = pd.DataFrame({"item_id": identifiers.item_ids, "title": identifiers.titles}).iloc[::-1]
    clicks = [
        (user, f"film-{item}", query) for user in "uv" for item, query in [(0, ""), (3, "space"), (5, ""), (7, "war")]
    ]
    return make_dataset(items.reset_index(drop=True), clicks)


def test_a_model_has_a_row_with_and_without_history(film_dataset, events_pipe):
    rows = gensar_rows(events_pipe)
    assert [row.name for row in rows] == ["GenSAR", "GenSAR, no history"]
    result = evaluate_query_kinds(rows, film_dataset)
    assert result.failures == {}
    assert set(result.metrics()["kinds"]) == {"title", "part", "misspelled", "log"}
    titles = result.result.requests["title"]
    candidates = np.broadcast_to(np.arange(12), (len(titles), 12))
    with_history, alone = (row.score(titles, candidates) for row in rows)
    is_same = np.isclose(with_history, alone, atol=1e-5).all(axis=1)
    np.testing.assert_array_equal(is_same, titles.targets < 0)
    expected = events_pipe.score_items([[]], np.arange(12)[None, ::-1], titles.query_texts[:1])
    np.testing.assert_allclose(alone[:1], expected, atol=1e-5)
