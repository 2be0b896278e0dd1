import numpy as np
import pytest
import torch

from gensar_hf.baselines.qem import QEMConfig, QEMModel
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d"]
# Both users have the same queries but click different items; "red" and "blue" separate the items for everybody.
ROWS = {
    "ann": [(Q, 0), (S, 0, 0), (Q, 1), (S, 1, 1)] * 3,
    "bob": [(Q, 0), (S, 2, 0), (Q, 1), (S, 3, 1)] * 3,
}
QUERIES = ["red shoes", "blue shoes"]


@pytest.fixture(scope="module")
def fit(make_events, dataset_of):
    def fitted(rows=ROWS, queries=QUERIES, **settings):
        quick = {"hidden_size": 8, "per_device_train_batch_size": 24, "learning_rate": 0.05, "dropout": 0.0}
        data = dataset_of(make_events(rows, ITEMS, queries), ["apple", "berry", "citron", "date"])
        return fit_baseline("qem", data, settings={**quick, "num_train_epochs": 1, **settings})

    return fitted


@pytest.fixture(scope="module")
def scorer(fit):
    return fit()


@pytest.fixture
def ask(make_events):
    """Ann's and bob's scores of all items for a query."""

    def score(scorer, query):
        events = make_events({user: [(Q, 0), (S, 0, 0)] for user in ROWS}, ITEMS, [query])
        return scorer.score(Requests(SEARCH, events, np.array([1, 3])), np.tile(np.arange(4), (2, 1)))

    return score


def test_a_personalized_model_separates_users_and_queries(scorer, ask):
    assert ask(scorer, "red shoes").argmax(axis=1).tolist() == [0, 2]
    assert ask(scorer, "Blue  shoes").argmax(axis=1).tolist() == [1, 3]
    assert scorer.tasks == {SEARCH}
    assert scorer.name == "QEM"


def test_a_model_without_users_separates_queries_only(fit, ask):
    scorer = fit(personalized=False)

    for query, expected in (("red shoes", {0, 2}), ("blue shoes", {1, 3})):
        ann, bob = ask(scorer, query)
        np.testing.assert_array_equal(ann, bob)
        assert set(np.argsort(ann)[2:].tolist()) == expected
    assert scorer.model.user_table.num_embeddings == 1


def test_the_query_is_a_projection_of_the_mean_word():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = QEMModel(QEMConfig(num_users=1, num_items=2, words=["x", "y"], hidden_size=3)).requires_grad_(False)
    model.query_projection.bias.fill_(0.5)
    model.user_table.weight[1] = torch.tensor([1.0, 2.0, 3.0])
    model.user_weight.fill_(0.5)
    nothing = torch.tensor([[0], [0]])
    vectors = model.request_vectors(torch.tensor([0, 1]), torch.tensor([[1, 2, 0], [0, 0, 0]]), nothing)
    words = model.word_table.weight[1:].mean(dim=0)
    torch.testing.assert_close(vectors[0], torch.tanh(model.query_projection(words)))
    assert vectors[1].tolist() == [0.5, 1.0, 1.5]


def test_unknown_words_are_ignored(scorer, ask):
    np.testing.assert_array_equal(ask(scorer, "unheard red of shoes"), ask(scorer, "red shoes"))
    user_alone = ask(scorer, "unheard of")
    np.testing.assert_array_equal(user_alone, ask(scorer, ""))
    assert set(np.argsort(user_alone[0])[2:].tolist()) == {0, 1}  # what ann has clicked


def test_recommendation_clicks_train_the_user(fit, ask):
    rows = {"ann": [(R, 3)] * 8 + [(Q, 0), (S, 0, 0)], "bob": [(Q, 0), (S, 1, 0)]}
    scorer = fit(rows, ["red"])

    ann = ask(scorer, "")[0] - scorer.model.item_bias.detach().numpy()
    assert ann.argmax() == 3


def test_texts_find_items_without_search_clicks(fit, ask):
    rows = {"ann": [(Q, 0), (S, 0, 0)], "bob": [(Q, 0), (S, 0, 0)]}
    scorer = fit(rows, ["red"], text_weight=1.0)

    assert ask(scorer, "citron").argmax(axis=1).tolist() == [2, 2]
    assert ask(scorer, "red").argmax(axis=1).tolist() == [0, 0]
