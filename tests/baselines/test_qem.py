import gc

import numpy as np
import pytest
import torch

from gensar_hf.baselines import qem
from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.data import Behavior
from gensar_hf.data.splits import SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d"]
# Both ask for the same words and click something else; "red" and "blue" are told apart by everybody.
ROWS = {
    "ann": [(Q, 0), (S, 0, 0), (Q, 1), (S, 1, 1)] * 3,
    "bob": [(Q, 0), (S, 2, 0), (Q, 1), (S, 3, 1)] * 3,
}


def fit(events, folder, **values):
    quick = {"hidden_size": 8, "per_device_train_batch_size": 24, "learning_rate": 0.05, "dropout": 0.0}
    data = TrainingData(events, ["apple", "berry", "citron", "date"], np.zeros((4, 2)), "unused")
    settings = qem.Settings(**{**quick, "num_train_epochs": 1, **values})
    return qem.fit(data, settings, 0, folder, folder / "checkpoints")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("gensar_hf.embeddings.sasrec_training.MIN_STEPS", 60)
    gc.freeze()  # Trainer collects garbage when it starts, which would take longer than these trainings
    yield
    gc.unfreeze()


@pytest.fixture
def ask(make_events):
    """Ann's and bob's scores of all items for a query."""

    def score(scorer, query):
        events = make_events({user: [(Q, 0), (S, 0, 0)] for user in ROWS}, ITEMS, [query])
        return scorer.score(Requests(SEARCH, events, np.array([1, 3])), np.tile(np.arange(4), (2, 1)))

    return score


def test_a_personalized_model_tells_users_and_queries_apart(make_events, ask, tmp_path):
    scorer = fit(make_events(ROWS, ITEMS, ["red shoes", "blue shoes"]), tmp_path)

    assert ask(scorer, "red shoes").argmax(axis=1).tolist() == [0, 2]
    assert ask(scorer, "Blue  shoes").argmax(axis=1).tolist() == [1, 3]
    assert scorer.tasks == {SEARCH}
    assert scorer.name == "QEM"


def test_another_model_tells_queries_apart_alone(make_events, ask, tmp_path):
    scorer = fit(make_events(ROWS, ITEMS, ["red shoes", "blue shoes"]), tmp_path, personalized=False)

    for query, found in (("red shoes", {0, 2}), ("blue shoes", {1, 3})):
        ann, bob = ask(scorer, query)
        np.testing.assert_array_equal(ann, bob)
        assert set(np.argsort(ann)[2:].tolist()) == found
    assert scorer.model.user_table.num_embeddings == 1


def test_the_query_is_a_projection_of_the_mean_word():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = qem.QEMModel(qem.QEMConfig(num_users=1, num_items=2, num_words=2, hidden_size=3)).requires_grad_(False)
    model.query_projection.bias.fill_(0.5)
    model.user_table.weight[1] = torch.tensor([1.0, 2.0, 3.0])
    model.user_weight.fill_(0.5)
    nothing = torch.tensor([[0], [0]])
    vectors = model.request_vectors(torch.tensor([0, 1]), torch.tensor([[1, 2, 0], [0, 0, 0]]), nothing)
    words = model.word_table.weight[1:].mean(dim=0)
    torch.testing.assert_close(vectors[0], torch.tanh(model.query_projection(words)))
    assert vectors[1].tolist() == [0.5, 1.0, 1.5]


def test_unknown_words_say_nothing(make_events, ask, tmp_path):
    scorer = fit(make_events(ROWS, ITEMS, ["red shoes", "blue shoes"]), tmp_path)

    np.testing.assert_array_equal(ask(scorer, "unheard red of shoes"), ask(scorer, "red shoes"))
    user_alone = ask(scorer, "unheard of")
    np.testing.assert_array_equal(user_alone, ask(scorer, ""))
    assert set(np.argsort(user_alone[0])[2:].tolist()) == {0, 1}  # what ann has clicked


@pytest.mark.parametrize("recommendation_clicks", [True, False])
def test_clicks_without_a_query_teach_the_user_when_they_are_to(make_events, ask, tmp_path, recommendation_clicks):
    rows = {"ann": [(R, 3)] * 8 + [(Q, 0), (S, 0, 0)], "bob": [(Q, 0), (S, 1, 0)]}
    scorer = fit(make_events(rows, ITEMS, ["red"]), tmp_path, recommendation_clicks=recommendation_clicks)

    ann = ask(scorer, "")[0] - scorer.model.item_bias.detach().numpy()
    assert (ann.argmax() == 3) == recommendation_clicks


def test_texts_find_items_that_nobody_has_searched(make_events, ask, tmp_path):
    rows = {"ann": [(Q, 0), (S, 0, 0)], "bob": [(Q, 0), (S, 0, 0)]}
    scorer = fit(make_events(rows, ITEMS, ["red"]), tmp_path, text_weight=1.0)

    assert ask(scorer, "citron").argmax(axis=1).tolist() == [2, 2]
    assert ask(scorer, "red").argmax(axis=1).tolist() == [0, 0]
