import numpy as np
import pytest
import torch

from gensar_hf.baselines.jsr import JSRConfig, JSRModel
from gensar_hf.baselines.matching import MatchingScorer
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
# Ann takes a and b, bob c and d, whatever the query; "red" finds e, "blue" f.
ROWS = {
    "ann": [(R, 0), (R, 1), (Q, 0), (S, 4, 0)] * 4,
    "bob": [(R, 2), (R, 3), (Q, 1), (S, 5, 1)] * 4,
}
QUERIES = ["red shoes", "blue shoes"]


@pytest.fixture(scope="module")
def fit(make_events, dataset_of):
    def fitted(rows=ROWS, name="jsr", **settings):
        quick = {"hidden_size": 8, "per_device_train_batch_size": 32, "learning_rate": 0.05, "dropout": 0.0}
        data = dataset_of(make_events(rows, ITEMS, QUERIES), [""] * 6)
        return fit_baseline(name, data, settings={**quick, "num_train_epochs": 1, "history_length": 3, **settings})

    return fitted


@pytest.fixture(scope="module")
def scorer(fit):
    return fit()


@pytest.fixture
def ask(make_events):
    """Ann's and bob's scores of all items after the same clicks."""

    def score(scorer, query=None, history=()):
        last = [(R, 0)] if query is None else [(Q, 0), (S, 0, 0)]
        events = make_events({user: [*((R, item) for item in history), *last] for user in ROWS}, ITEMS, [query or ""])
        requests = Requests(RECOMMENDATION if query is None else SEARCH, events, events.offsets[1:] - 1)
        return scorer.score(requests, np.tile(np.arange(6), (2, 1)))

    return score


def best(scores, count):
    return [set(row[:count].tolist()) for row in np.argsort(-scores, axis=1)]


def test_it_recommends_by_user_and_searches_by_words(fit, ask):
    scorer = fit(history_length=0)

    assert scorer.tasks == {RECOMMENDATION, SEARCH}
    assert scorer.name == "JSR"
    assert best(ask(scorer), 3) == [{0, 1, 4}, {2, 3, 5}]  # a searched click is also a click of its user
    assert best(ask(scorer, "red shoes"), 1) == [{4}, {4}]
    assert best(ask(scorer, "blue shoes"), 1) == [{5}, {5}]


def test_search_reads_neither_user_nor_history(scorer, ask):
    ann, bob = ask(scorer, "red shoes", history=[2, 3])
    np.testing.assert_array_equal(ann, bob)
    np.testing.assert_array_equal(ann, ask(scorer, "red shoes")[0])


def test_personalized_search_reads_both(fit, ask):
    scorer = fit(name="jsr_personalized")
    assert scorer.name == "JSR, personalized search"
    ann, bob = ask(scorer, "red shoes", history=[2, 3])
    assert not np.allclose(ann, bob)
    assert not np.allclose(ann, ask(scorer, "red shoes")[0])


def test_recommendation_reads_the_latest_clicks(scorer, ask):
    long, short = ask(scorer, history=[5, 5, 0, 1, 4]), ask(scorer, history=[2, 0, 1, 4])
    np.testing.assert_allclose(long, short, atol=1e-6)
    assert not np.allclose(long, ask(scorer, history=[2, 1, 4]))


def test_unknown_users_are_recommended_by_their_clicks(fit, ask):
    # Who has clicked a clicks b next, and the other way round; no user id is known.
    rows = {"ann": [], "bob": [], **{f"user {u}": [(R, 2 * (u % 3)), (R, 2 * (u % 3) + 1)] * 4 for u in range(9)}}
    scorer = fit(rows, history_length=1)
    assert ask(scorer, history=[2]).argmax(axis=1).tolist() == [3, 3]
    assert ask(scorer, history=[5]).argmax(axis=1).tolist() == [4, 4]


def test_words_are_averaged_with_learned_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JSRModel(JSRConfig(num_users=1, num_items=2, words=["x", "y"], hidden_size=3)).eval()
    with torch.no_grad():
        model.word_weights.weight[1:, 0] = torch.tensor([0.0, 1.0])
        model.query_projection.bias.fill_(0.5)
        words = (model.word_table.weight[1] + np.e * model.word_table.weight[2]) / (1 + np.e)
        expected = torch.tanh(model.query_projection(words))
        nobody, nothing = torch.tensor([0, 0]), torch.tensor([[0], [0]])
        vectors = model.request_vectors(nobody, torch.tensor([[1, 2, 0], [0, 0, 0]]), nothing)
    torch.testing.assert_close(vectors, torch.stack([expected, torch.zeros(3)]))


def test_a_saved_model_scores_the_same(scorer, tmp_path, ask):
    scorer.model.save_pretrained(tmp_path)
    loaded = MatchingScorer(JSRModel.from_pretrained(tmp_path), "again")
    assert loaded.tasks == scorer.tasks
    for query in (None, "red"):
        np.testing.assert_array_equal(ask(loaded, query, [1, 2]), ask(scorer, query, [1, 2]))
