"""Training, saving and scoring that QEM and JSR share, seen through QEM."""

import dataclasses
import gc
import math

import numpy as np
import pytest
import torch

from gensar_hf.baselines import qem
from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.matching import MatchingScorer, MatchingSettings
from gensar_hf.baselines.vocabulary import Vocabulary
from gensar_hf.data import Behavior, training_events
from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.errors import InputError

QUICK = {"num_train_epochs": 1, "hidden_size": 8, "per_device_train_batch_size": 8, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("gensar_hf.embeddings.sasrec_training.MIN_STEPS", 24)
    gc.freeze()  # Trainer collects garbage when it starts, which would take longer than these trainings
    yield
    gc.unfreeze()


def data_of(events):
    texts = [f"film number{item}" for item in range(events.num_items)]
    return TrainingData(events, texts, np.zeros((events.num_items, 2)), "unused")


def fit(events, folder, seed=0, **values):
    settings = qem.Settings(**{**QUICK, **values})
    folder.mkdir(exist_ok=True)
    return qem.fit(data_of(events), settings, seed, folder, folder.parent / f"{folder.name}-checkpoints")


def every_item(requests):
    return np.tile(np.arange(requests.events.num_items), (len(requests), 1))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return qem.QEMModel(qem.QEMConfig(num_users=3, num_items=5, num_words=4, hidden_size=8, dropout=0.0))


@pytest.fixture
def batch():
    return {
        "user_ids": torch.tensor([0, 2]),
        "word_ids": torch.tensor([[1, 3], [4, 0]]),
        "history_ids": torch.zeros(2, 1, dtype=torch.long),
    }


def test_loss_is_the_weighted_cross_entropy_over_the_catalogue(model, batch):
    model.requires_grad_(False)
    logits = model(**batch).logits
    labels, weights = torch.tensor([4, 1]), torch.tensor([1.0, 0.25])
    losses = [math.log(logits[row].exp().sum()) - float(logits[row, label]) for row, label in enumerate([4, 1])]

    assert logits.shape == (2, 5)
    assert float(model(**batch, labels=labels).loss) == pytest.approx(sum(losses) / 2, rel=1e-5)
    expected = (losses[0] + 0.25 * losses[1]) / 3
    loss = model(**batch, labels=labels, weights=weights, num_items_in_batch=3).loss
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_new_model_ranks_by_training_clicks(tiny_events, tmp_path):
    scorer = fit(tiny_events, tmp_path / "model", learning_rate=1e-9)
    clicks = np.bincount(tiny_events.items[tiny_events.items >= 0], minlength=tiny_events.num_items)
    bias = scorer.model.item_bias.detach().numpy()
    np.testing.assert_allclose(bias, np.log1p(clicks) - np.log1p(clicks).mean(), atol=1e-5)


def test_a_user_without_training_clicks_is_nobody(make_events, tmp_path):
    R, Q, S = Behavior
    rows = {"ann": [(R, 0), (Q, 0), (S, 1, 0)], "new": [(Q, 0), (S, 2, 0)], "bob": [(R, 2), (R, 1)]}
    events = make_events(rows, ["a", "b", "c"], ["space"])
    trained = make_events({**rows, "new": []}, ["a", "b", "c"], ["space"])
    scorer = fit(trained, tmp_path / "model")
    table = scorer.model.user_table.weight

    assert not table[2].any()
    assert table[1].any()
    assert table[3].any()
    requests = Requests(SEARCH, events, np.array([4]))
    with torch.inference_mode():
        nobody = scorer.model(torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[0]])).logits
    np.testing.assert_allclose(scorer.score(requests, every_item(requests)), nobody.numpy(), atol=1e-6)


def test_what_is_saved_scores_the_same(tiny_split, tmp_path):
    scorer = fit(training_events(tiny_split), tmp_path / "model", text_weight=0.5)
    model, vocabulary = qem.QEMModel.from_pretrained(tmp_path / "model"), Vocabulary.load(tmp_path / "model")
    loaded = MatchingScorer(model, vocabulary, "again", scorer.tasks, scorer.user_tasks)

    requests = tiny_split.test[SEARCH]
    first, again = (some.score(requests, every_item(requests)) for some in (scorer, loaded))
    np.testing.assert_array_equal(first, again)
    assert loaded.num_parameters == scorer.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_killed_training_ends_where_another_does(tiny_events, tmp_path, monkeypatch, caplog, training_killed_at):
    monkeypatch.setattr("gensar_hf.baselines.matching._SAVE_STEPS", 10)
    whole = fit(tiny_events, tmp_path / "whole")
    caplog.set_level("INFO")
    with training_killed_at(step=14):
        fit(tiny_events, tmp_path / "model")
    resumed = fit(tiny_events, tmp_path / "model")

    assert "Going on from" in caplog.text
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_seed_gives_one_model(tiny_events, tmp_path):
    first, again, other = (fit(tiny_events, tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2)))
    first, again, other = (scorer.model.item_table.weight for scorer in (first, again, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_training_queries_and_wanted_texts_make_the_vocabulary(tiny_split, tmp_path):
    # "horror classics" is asked for in bob's held-out session alone.
    events = training_events(tiny_split)
    assert "horror classics" in tiny_split.events.query_texts
    queries = fit(events, tmp_path / "queries").vocabulary.words
    assert set(queries) == {word for text in events.query_texts for word in text.split()}
    assert "horror" not in queries
    assert "number7" in fit(events, tmp_path / "texts", text_weight=0.1).vocabulary.words


def test_candidates_are_gathered_in_chunks(tiny_split, tmp_path, monkeypatch):
    scorer = fit(training_events(tiny_split), tmp_path / "model")
    requests = tiny_split.test[SEARCH]
    whole = scorer.score(requests, every_item(requests))
    candidates = np.array([[3, 1, 7], [11, 0, 2]])
    monkeypatch.setattr("gensar_hf.baselines.matching._CHUNK_SIZE", 1)
    np.testing.assert_allclose(
        scorer.score(requests, candidates), np.take_along_axis(whole, candidates, axis=1), atol=1e-6
    )


def test_clicked_items_come_last_when_they_are_to_be_skipped(tiny_split, tmp_path):
    scorer = fit(training_events(tiny_split), tmp_path / "model")
    requests = tiny_split.test[SEARCH]
    usual = scorer.score(requests, every_item(requests))
    scorer.skip_clicked = True
    scores = scorer.score(requests, every_item(requests))

    assert np.isfinite(usual).all()
    for row in range(len(requests)):
        clicked = {int(item) for item in requests.events.items[requests.history(row)] if item >= 0}
        assert set(np.flatnonzero(np.isneginf(scores[row]))) == clicked
        others = [item for item in range(12) if item not in clicked]
        np.testing.assert_array_equal(scores[row, others], usual[row, others])


def test_no_clicks_are_an_error(make_events, tmp_path):
    R, Q, _ = Behavior
    events = make_events({"ann": [(Q, 0), (R, 1)]}, ["a", "b"], ["space"])
    with pytest.raises(InputError, match="QEMModel cannot be trained: no event before the held-out ones is a click"):
        fit(events, tmp_path / "model", personalized=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 0, "`hidden_size` must be at least 1; got 0"),
        ("dropout", 1.0, "`dropout` must be at least 0 and below 1; got 1.0"),
        ("label_smoothing", -0.1, "`label_smoothing` must be at least 0 and below 1; got -0.1"),
        ("text_weight", -1, "`text_weight` must not be negative; got -1"),
        ("learning_rate", 0, "`learning_rate` must be above 0; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MatchingSettings(), **{name: value})
