import numpy as np
import pytest
import torch

from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.tem import TEMConfig, TEMModel
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
# "red" finds c after a and d after b, "blue" finds e after f.
AFTER_A, AFTER_B = [(R, 0), (Q, 0), (S, 2, 0)], [(R, 1), (Q, 0), (S, 3, 0)]
BLUE = [(R, 5), (Q, 1), (S, 4, 1)]
ROWS = {"ann": [*AFTER_A, *AFTER_B, *BLUE] * 3, "bob": [*AFTER_B, *BLUE, *AFTER_A] * 3}
QUERIES = ["red shoes", "blue shoes"]


@pytest.fixture(scope="module")
def scorer(make_events, dataset_of):
    quick = {"hidden_size": 8, "per_device_train_batch_size": 24, "learning_rate": 0.03, "dropout": 0.0}
    settings = {**quick, "num_train_epochs": 1, "history_length": 1}
    return fit_baseline("tem", dataset_of(make_events(ROWS, ITEMS, QUERIES)), settings=settings)


@pytest.fixture
def ask(make_events, scorer):
    """Scores of all items for a query after a click; by nobody that the model knows."""

    def score(query, *clicks):
        events = make_events({"ann": [*((R, item) for item in clicks), (Q, 0), (S, 0, 0)]}, ITEMS, [query])
        return scorer.score(Requests(SEARCH, events, np.array([len(clicks) + 1])), np.arange(6)[None])[0]

    return score


def test_the_query_and_the_latest_click_decide(scorer, ask):
    assert (scorer.name, scorer.tasks) == ("TEM", {SEARCH})
    assert ask("red shoes", 0).argmax() == 2
    assert ask("red shoes", 1).argmax() == 3
    assert ask("Blue  shoes", 5).argmax() == 4
    np.testing.assert_array_equal(ask("red", 0), ask("unheard red of", 4, 0))


def test_the_query_attends_to_itself_and_to_the_clicks():
    model = new_model(TEMModel, TEMConfig(num_items=6, words=["x", "y"], hidden_size=4, num_layers=2), seed=0)
    model.requires_grad_(False).eval()
    batch = {
        "user_ids": torch.tensor([0]),
        "word_ids": torch.tensor([[2]]),
        "history_ids": torch.tensor([[0, 3, 5]]),
        "history_behaviors": torch.tensor([[0, 1, 3]]),
        "history_words": torch.tensor([[[0], [0], [1]]]),
    }
    clicks = model.item_table.weight[[3, 5]] + model.behavior_table.weight[[1, 3]] + model.position_table.weight[-2:]
    states = torch.cat([clicks, model.query_vectors(torch.tensor([[2]]))])[None]
    everything = torch.ones(1, 3, 3, dtype=torch.bool)
    for block in model.blocks:
        states = block(states, states, everything)
    expected = model.item_table.weight[1:] @ states[0, -1] + model.item_bias
    torch.testing.assert_close(model(**batch).logits[0], expected)
