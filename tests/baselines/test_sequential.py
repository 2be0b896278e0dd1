"""Next-item models: the loss, training on a data set's events, and scoring."""

import numpy as np
import pytest
import torch

from gensar_hf.baselines.fmlp_rec import FMLPRecModel
from gensar_hf.baselines.gru4rec import GRU4RecModel
from gensar_hf.baselines.lrurec import LRURecModel
from gensar_hf.baselines.sequential import NextItemScorer, new_model
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.errors import InputError

R, Q, S = Behavior
NUM_ITEMS = 8
SETTINGS = {"num_train_epochs": 5, "per_device_train_batch_size": 4, "learning_rate": 0.02, "max_length": 6}


@pytest.fixture
def model():
    config = SASRecConfig(num_items=6, hidden_size=8, num_layers=1, max_length=2, initializer_range=0.5)
    return new_model(SASRecModel, config, seed=0).train()


def direct_scores(model, history):
    with torch.inference_mode():
        return model.eval().score(torch.tensor([history]))[0].numpy()


def test_scores_are_the_models_after_the_latest_clicks(split, catalogue, model):
    # The search clicks as recommendation requests: both earlier clicks are read, the query between them is not.
    requests = Requests(RECOMMENDATION, split.events, split.test[SEARCH].targets)
    scores = NextItemScorer(model).score(requests, catalogue)
    for row, history in enumerate([[1, 2], [1, 4], [1, 2]]):  # item index + 1
        np.testing.assert_allclose(scores[row], direct_scores(model, history)[catalogue[row]], rtol=1e-5)


def test_a_user_without_clicks_gets_equal_scores(split, catalogue, model):
    first_clicks = Requests(RECOMMENDATION, split.events, np.array([0, 5, 8]))
    scores = NextItemScorer(model).score(first_clicks, catalogue)
    assert (scores[[0, 2]] == 0).all()
    assert len(set(scores[1].tolist())) == 6


def test_the_mode_of_the_model_is_kept(split, catalogue, model):
    for training in (True, False):
        model.train(training)
        NextItemScorer(model).score(split.test[RECOMMENDATION], catalogue)
        assert model.training == training


@pytest.fixture
def data(make_events, dataset_of):
    """The next item is always the next number; every other click answers a query."""
    clicks = [[(start + i) % NUM_ITEMS for i in range(16)] for start in range(NUM_ITEMS)]
    users = {
        f"user-{user}": [
            event for i, item in enumerate(items) for event in ([(R, item)] if i % 2 else [(Q, 0), (S, item, 0)])
        ]
        for user, items in enumerate(clicks)
    }
    return dataset_of(make_events(users, [f"film-{item}" for item in range(NUM_ITEMS)]))


@pytest.mark.parametrize(
    ("name", "row", "model_class", "size"),
    [
        ("sasrec", "SASRec", SASRecModel, {"hidden_size": 16, "num_layers": 1}),
        ("gru4rec", "GRU4Rec", GRU4RecModel, {"embedding_size": 16, "hidden_size": 16, "num_layers": 2}),
        ("fmlp_rec", "FMLP-Rec", FMLPRecModel, {"hidden_size": 16, "num_layers": 1, "num_train_epochs": 2}),
        ("lrurec", "LRURec", LRURecModel, {"hidden_size": 16, "num_layers": 1}),
    ],
)
def test_training_learns_what_follows_clicks_of_both_kinds(data, tmp_path, capsys, name, row, model_class, size):
    scorer = fit_baseline(name, data, settings={**SETTINGS, **size})

    requests = Requests(RECOMMENDATION, data.events, np.array([4, 24 + 5]))  # after 0 1 and after 1 2 3
    assert [data.events.items[requests.history(row)].tolist() for row in (0, 1)] == [[-1, 0, 1], [-1, 1, 2, -1, 3]]
    every_item = np.tile(np.arange(NUM_ITEMS), (2, 1))
    scores = scorer.score(requests, every_item)
    assert scores.argmax(axis=1).tolist() == [2, 4]
    assert capsys.readouterr().out == ""
    assert (scorer.name, scorer.tasks) == (row, {RECOMMENDATION})
    assert scorer.num_parameters == sum(parameter.numel() for parameter in scorer.model.parameters())

    scorer.model.save_pretrained(tmp_path)
    saved = model_class.from_pretrained(tmp_path)
    assert (saved.config.hidden_size, saved.config.num_items) == (16, NUM_ITEMS)
    np.testing.assert_allclose(NextItemScorer(saved, row).score(requests, every_item), scores, atol=1e-5)


def test_the_seed_decides_the_weights():
    generator_state = torch.get_rng_state()
    config = SASRecConfig(num_items=NUM_ITEMS, hidden_size=16)
    first, same, other = (new_model(SASRecModel, config, seed).item_embeddings() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_nothing_to_learn_from_is_reported(make_events, dataset_of):
    events = make_events({"ann": [(R, 0)], "bob": [(Q, 0), (S, 1, 0)]}, [f"film-{item}" for item in range(NUM_ITEMS)])
    with pytest.raises(InputError, match="none of the 2 users has two "):
        fit_baseline("sasrec", dataset_of(events))
