"""Examples, vocabulary, training and scoring of QEM and JSR, tested with QEM."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.baselines.matching import (
    CLICKS,
    MAX_WORDS,
    Examples,
    click_examples,
    text_examples,
)
from gensar_hf.baselines.qem import QEMConfig, QEMModel
from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.embeddings import sasrec_training
from gensar_hf.errors import InputError

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e"]
QUICK = {"num_train_epochs": 1, "hidden_size": 8, "per_device_train_batch_size": 8, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    monkeypatch.setattr(sasrec_training, "MIN_STEPS", 24)


@pytest.fixture
def fit(dataset_of):
    def fitted(source, seed=0, **values):
        return fit_baseline("qem", dataset_of(source), settings={**QUICK, **values}, seed=seed)

    return fitted


def every_item(requests):
    return np.tile(np.arange(requests.events.num_items), (len(requests), 1))


def model_of(words, **config):
    sizes = {"num_users": 3, "num_items": 5, "hidden_size": 8, "dropout": 0.0}
    return new_model(QEMModel, QEMConfig(words=words, **{**sizes, **config}), seed=0)


MODEL = model_of(["war", "space"])  # encodes words only


@pytest.fixture
def model():
    return model_of(["w", "x", "y", "z"])


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


def test_a_new_model_ranks_by_training_clicks(tiny_events, fit):
    scorer = fit(tiny_events, learning_rate=1e-9)
    clicks = np.bincount(tiny_events.items[tiny_events.items >= 0], minlength=tiny_events.num_items)
    bias = scorer.model.item_bias.detach().numpy()
    np.testing.assert_allclose(bias, np.log1p(clicks) - np.log1p(clicks).mean(), atol=1e-5)


def test_a_user_without_training_clicks_has_a_zero_vector(make_events, fit):
    rows = {"ann": [(R, 0), (Q, 0), (S, 1, 0)], "new": [(Q, 0), (S, 2, 0)], "bob": [(R, 2), (R, 1)]}
    events = make_events(rows, ["a", "b", "c"], ["space"])
    trained = make_events({**rows, "new": []}, ["a", "b", "c"], ["space"])
    scorer = fit(trained)
    table = scorer.model.user_table.weight

    assert not table[2].any()
    assert table[1].any()
    assert table[3].any()
    requests = Requests(SEARCH, events, np.array([4]))
    with torch.inference_mode():
        nobody = scorer.model(torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[0]])).logits
    np.testing.assert_allclose(scorer.score(requests, every_item(requests)), nobody.numpy(), atol=1e-6)


def test_no_clicks_are_an_error(make_events, fit):
    events = make_events({"ann": [(Q, 0), (R, 1)]}, ["a", "b"], ["space"])
    with pytest.raises(InputError, match="QEMModel cannot be trained: no event before the held-out ones is a click"):
        fit(events, personalized=False)


def log_of(make_events, timestamps=None):
    users = {"ann": [(R, 0), (Q, 0), (S, 1, 0), (S, 2, 0), (R, 3)], "bob": [(Q, 1), (S, 4, 1), (R, 0)]}
    return make_events(users, ITEMS, ["space war", "unheard"], timestamps)


def test_every_click_is_an_example(make_events):
    examples = click_examples(log_of(make_events), MODEL, history_length=2)

    assert examples.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert examples.user_ids.tolist() == [1, 1, 1, 1, 2, 2]
    assert examples.word_ids.tolist() == [[0, 0], [2, 1], [2, 1], [0, 0], [0, 0], [0, 0]]
    assert examples.history_ids.tolist() == [[0, 0], [1, 0], [2, 1], [3, 2], [0, 0], [5, 0]]
    assert examples.weights.tolist() == [1.0] * 6


def test_users_and_words_can_be_left_out(make_events):
    examples = click_examples(log_of(make_events), MODEL, [S], with_users=False, with_words=False)

    assert examples.labels.tolist() == [1, 2, 4]
    for name in ("user_ids", "word_ids", "history_ids"):
        assert not getattr(examples, name).any(), name


def test_a_twin_is_no_history(make_events):
    # The same click at the same moment, as a recommendation and as a search; later it would be history.
    rows = [(R, 3), (R, 0), (Q, 0), (S, 0, 0), (R, 0)]
    events = make_events({"ann": rows}, ITEMS, ["space"], [0, 1, 1, 1, 2])
    examples = click_examples(events, MODEL, history_length=3)
    assert [[i for i in row if i] for row in examples.history_ids.tolist()] == [[], [4], [4], [1, 1, 4]]


@given(st.integers(1, 12), st.sampled_from([CLICKS, (R,), (S,)]))
@settings(max_examples=20, deadline=None)
def test_histories_are_those_of_requests(tiny_events, length, behaviors):
    examples = click_examples(tiny_events, MODEL, behaviors, history_length=length)
    targets = np.flatnonzero(np.isin(tiny_events.behaviors, behaviors))
    for row, target in enumerate(targets):
        task = SEARCH if tiny_events.behaviors[target] == S else RECOMMENDATION
        history = Requests(task, tiny_events, np.array([target])).history(0)
        clicked = tiny_events.items[history][tiny_events.items[history] >= 0]
        encoded = [item - 1 for item in examples.history_ids[row] if item]
        assert encoded == clicked[::-1][:length].tolist()


def test_examples_of_texts_have_no_user():
    examples = text_examples(["War", "nothing known", "space war film"], model_of(["war", "space"], text_weight=0.25))
    assert examples.labels.tolist() == [0, 2]
    assert examples.word_ids.tolist() == [[1, 0], [2, 1]]
    assert examples.weights.tolist() == [0.25, 0.25]
    assert not examples.user_ids.any()
    assert not examples.history_ids.any()


def test_a_batch_of_parts_of_different_widths(make_events):
    clicks = click_examples(log_of(make_events), MODEL, history_length=4)
    texts = text_examples(["war", "war space space"], model_of(["war", "space"], text_weight=0.5))
    examples = Examples.concatenate([clicks, texts])

    assert len(examples) == 8
    batch = examples.collate([examples[1], examples[6]])
    assert batch["word_ids"].tolist() == [[2, 1], [1, 0]]
    assert batch["history_ids"].tolist() == [[1], [0]]
    assert batch["user_ids"].tolist() == [1, 0]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["weights"].tolist() == [1.0, 0.5]
    assert examples.collate([0])["word_ids"].tolist() == [[0]]


@pytest.mark.parametrize("length", [0, 3])
def test_a_log_without_clicks_gives_no_examples(make_events, length):
    events = make_events({"ann": [(Q, 0)], "bob": []}, ITEMS, ["space"])
    assert len(click_examples(events, MODEL, history_length=length)) == 0


WORDS = ["space", "war", "1990s", "émile"]


@given(st.lists(st.lists(st.sampled_from([*WORDS, "unknown", "other"]), max_size=80), max_size=4))
@settings(max_examples=20, deadline=None)
def test_ids_are_the_known_words_in_order(texts):
    table = model_of(WORDS).encode_words([" ".join(words) for words in texts])
    assert table.shape[0] == len(texts)
    assert table.shape[1] >= 1
    for row, words in zip(table, texts, strict=True):
        known = [word for word in words if word in WORDS][:MAX_WORDS]
        assert [WORDS[i - 1] for i in row if i] == known
        assert (row[len(known) :] == 0).all()
