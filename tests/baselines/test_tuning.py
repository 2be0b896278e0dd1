"""Fitting by name, the search of settings, and the files of search spaces."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gensar_hf.baselines.markov import MarkovConfig
from gensar_hf.baselines.tuning import BASELINES, configure, fit_baseline, tune_baseline
from gensar_hf.data import leave_one_out, training_mask
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.embeddings import sasrec_training
from gensar_hf.errors import InputError
from gensar_hf.evaluation import evaluate, ndcg, random_candidates
from gensar_hf.training import trainer

CONFIGS = Path(__file__).parents[2] / "training_scripts" / "configs" / "baselines"
NEED_AN_ENCODER = ("cornac_rpg", "cornac_tiger", "dense_retrieval", "hybrid")
FITTED = [name for name in BASELINES if name not in NEED_AN_ENCODER]


@pytest.fixture
def events(make_events):
    """Forty users follow a cycle of twenty items, which popularity cannot see; three of the clicks are searches."""
    users = {}
    for user in range(40):
        cycle = [(user**2 + i) % 20 for i in range(11)]
        first, *last = [[(1, query), (2, cycle[i], query)] for query, i in enumerate((0, 9, 10))]
        users[f"user-{user}"] = [*first, *((0, item) for item in cycle[1:9]), *last[0], *last[1]]
    return make_events(users, [f"film-{item}" for item in range(20)], ["space war", "comedy", "drama"])


@pytest.fixture
def dataset(events, dataset_of):
    return dataset_of(leave_one_out(events))


def tiny(name):
    if name.startswith("cornac_"):
        pytest.importorskip("cornac")
        return {"arguments": {"batch_size": 8, "n_epochs": 1, "n_sample": 16}}
    config_class = BASELINES[name].config_class
    if not hasattr(config_class, "model_type"):
        return {}
    of_some = {"text_encoder": None, "identifier_steps": 2}  # word statistics need no download
    settings = {name: value for name, value in of_some.items() if hasattr(config_class, name)}
    return {"num_train_epochs": 1, "hidden_size": 8, "per_device_train_batch_size": 32, **settings}


def scores_of(scorer, events):
    """Scores of the whole catalogue for every user in the middle of the history, in every task."""
    targets = {RECOMMENDATION: events.offsets[:-1] + 5, SEARCH: events.offsets[:-1] + 11}
    every_item = np.tile(np.arange(events.num_items), (events.num_users, 1))
    return {task: scorer.score(Requests(task, events, targets[task]), every_item) for task in sorted(scorer.tasks)}


def test_the_best_settings_on_validation_requests_are_chosen(dataset):
    space = {"smoothing": [1e6, 0.1, 1e5], "max_skip": [0]}
    scorer, settings = tune_baseline("markov", dataset, space=space, max_trials=3, num_negatives=9)

    assert settings == {"smoothing": 0.1, "max_skip": 0}  # the others nearly rank by popularity
    requests = dataset.split.validation[RECOMMENDATION]
    candidates = {RECOMMENDATION: random_candidates(requests, 9)}
    ranks = {}
    for smoothing in space["smoothing"]:
        one = fit_baseline("markov", dataset, settings={"smoothing": smoothing})
        ranks[smoothing] = evaluate([one], {RECOMMENDATION: requests}, candidates).ranks[one.name][RECOMMENDATION]
    assert ndcg(ranks[0.1], 10) == max(ndcg(target_ranks, 10) for target_ranks in ranks.values())
    assert scorer.smoothing == 0.1


def test_trials_are_distinct_and_the_first_values_come_first(dataset, monkeypatch):
    tried = []

    def fit(name, dataset, *, settings, seed):
        tried.append(settings)
        return fit_baseline(name, dataset, settings=settings, seed=seed)

    monkeypatch.setattr("gensar_hf.baselines.tuning.fit_baseline", fit)
    space = {"k1": [0.9, 1.5, 2.0], "b": [0.4, 0.8]}
    for max_trials, expected in ((1, 1), (4, 4), (50, 6)):
        tried.clear()
        tune_baseline("bm25", dataset, space=space, max_trials=max_trials, num_negatives=9)
        assert tried[0] == {"k1": 0.9, "b": 0.4}
        assert len({tuple(sorted(trial.items())) for trial in tried}) == len(tried) == expected


@pytest.mark.parametrize("max_trials", [1, 2])
def test_without_validation_requests_there_is_nothing_to_choose_by(split, dataset_of, max_trials):
    dataset = dataset_of(split)
    arguments = {"space": {"smoothing": [1.0, 2.0]}, "max_trials": max_trials}
    if max_trials == 1:
        assert tune_baseline("markov", dataset, **arguments)[1] == {"smoothing": 1.0}
    else:
        with pytest.raises(InputError, match=r"no validation requests of its tasks \(recommendation\)"):
            tune_baseline("markov", dataset, **arguments)


def test_a_log_without_searches_leaves_bm25_with_its_first_settings(make_events, dataset_of):
    events = make_events({f"user-{user}": [(0, item) for item in range(5)] for user in range(3)}, list("abcdefghi"), [])
    dataset = dataset_of(leave_one_out(events))
    settings = tune_baseline("bm25", dataset, space={"k1": [1.5, 2.0]}, max_trials=2, num_negatives=2)[1]
    assert settings == {"k1": 1.5}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("markov", {"space": {"smoothing": [1.0, -1.0]}}, "Baseline 'markov': `smoothing` must be above 0"),
        ("bm25", {"space": {"k1": 3}}, "`space` must list the values of 'k1' to try; got 3"),
        ("bm25", {"max_trials": 0}, "`max_trials` must be at least 1; got 0"),
        ("nothing", {}, "There is no baseline 'nothing'; baselines are bm25, "),
    ],
)
def test_unusable_searches_are_refused_before_anything_is_fitted(dataset, monkeypatch, name, changes, message):
    monkeypatch.setattr("gensar_hf.baselines.tuning.fit_baseline", None)
    with pytest.raises(InputError, match=message):
        tune_baseline(name, dataset, **{"space": {"k1": [0.5, 1.0]}, "max_trials": 2, **changes})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("popularity", {"k1": 3}, "has no setting 'k1'; its settings are none at all"),
        ("bm25", {"learning_rate": 0.1}, "has no setting 'learning_rate'; its settings are k1, b"),
        ("sasrec", {"num_items": 3}, "has no setting 'num_items'; its settings are hidden_size, "),
        ("jsr", {"words": []}, "has no setting 'words'"),
        ("bm25", {"k1": -0.1}, "`k1` must not be negative; got -0.1"),
        ("bm25", {"b": 1.1}, "`b` must lie between 0 and 1; got 1.1"),
        ("markov", {"max_skip": -1}, "`max_skip` must be a whole number of clicks, at least 0; got -1"),
        ("markov", {"skip_weight": 0.0}, "`skip_weight` must be above 0 and at most 1; got 0.0"),
        ("dense_retrieval", {"model": " "}, "`model` is empty"),
        ("hybrid", {"model": " "}, "`model` is empty"),
        ("hybrid", {"b": 1.1}, "`b` must lie between 0 and 1; got 1.1"),
        ("hybrid", {"k": -1}, "`k` must not be negative; got -1"),
        ("sasrec", {"dropout": 1.5}, r"^Baseline 'sasrec': `dropout` must be at least 0 and below 1; got 1\.5\.$"),
        ("sasrec", {"hidden_size": "wide"}, "hidden_size.* expected int"),
        ("gru4rec", {"num_layers": 0}, "`num_layers` must be at least 1; got 0"),
        ("gru4rec", {"num_train_epochs": 0}, "`num_train_epochs` must be above 0; got 0"),
        ("gru4rec", {"learning_rate": "5e-3"}, "`learning_rate` must be above 0; got '5e-3'"),
        ("qem", {"weight_decay": -1}, "`weight_decay` must not be negative; got -1"),
        ("qem", {"hidden_size": 0}, "`hidden_size` must be at least 1; got 0"),
        ("qem", {"text_weight": -1.0}, "`text_weight` must not be negative; got -1"),
        ("jsr", {"history_length": -1}, "`history_length` must not be negative; got -1"),
    ],
)
def test_settings_are_checked(name, settings, message):
    with pytest.raises(InputError, match=message):
        configure(name, settings)


def test_defaults_are_those_of_the_configuration():
    config, training = configure("markov", {})
    assert (config, training) == (MarkovConfig(), {})
    assert configure("jsr_personalized", {"learning_rate": 0.1})[0].personalized_search
    assert not configure("jsr", {})[0].personalized_search
    assert configure("jsr", {"learning_rate": 0.1})[1] == {"learning_rate": 0.1}


def test_every_baseline_has_a_search_space_of_known_settings():
    contents = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    assert set(contents) >= set(BASELINES)
    for name, content in contents.items():
        name = content.pop("baseline", name)  # another encoder of the same system, such as dense_e5
        assert content.pop("random", False) is False  # the systems that draw nothing say so
        assert set(content) == {"space", "max_trials"}
        for setting, values in content["space"].items():
            for value in values:
                configure(name, {setting: value})


@pytest.mark.parametrize("name", FITTED)
def test_held_out_events_are_not_read(dataset, dataset_of, name, monkeypatch):
    """Two data sets that differ only in their held-out events give the same scores to the last bit."""
    monkeypatch.setattr(sasrec_training, "MIN_STEPS", 2)
    monkeypatch.setattr(trainer, "MIN_STEPS", 1)
    split = dataset.split
    held_out = ~training_mask(split)
    changed = dataclasses.replace(
        split.events,
        items=np.where(held_out & (split.events.items >= 0), 19, split.events.items),
        queries=np.where(held_out & (split.events.queries >= 0), 3, split.events.queries),
        query_texts=[*split.events.query_texts, "marker"],
    )
    assert 0 < held_out.sum() < len(held_out)
    other = dataset_of(dataclasses.replace(split, events=changed))
    scorer, same = (fit_baseline(name, data, settings=tiny(name)) for data in (dataset, other))
    first, again = (scores_of(one, split.events) for one in (scorer, same))
    for task in scorer.tasks:
        np.testing.assert_array_equal(first[task], again[task])
    if hasattr(scorer, "model"):
        assert "marker" not in getattr(same.model.config, "words", [])
        assert all(map(torch.equal, scorer.model.state_dict().values(), same.model.state_dict().values()))


@pytest.mark.parametrize("name", ["qem", "gru4rec"])  # one of each kind of training
def test_models_train_in_bf16_and_score_in_float32(dataset, name, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(sasrec_training, "MIN_STEPS", 2)
    scorer = fit_baseline(name, dataset, settings=tiny(name))

    assert {weights.dtype for weights in scorer.model.parameters()} == {torch.float32}
    scorer.model.save_pretrained(tmp_path)
    ids = torch.tensor([[1]])
    inputs = (torch.tensor([1]), ids, ids) if name == "qem" else (ids,)
    loaded = type(scorer.model).from_pretrained(tmp_path)
    torch.testing.assert_close(scorer.model.eval()(*inputs).logits, loaded(*inputs).logits)
