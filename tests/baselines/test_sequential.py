"""What next-item models share: the loss, training from a data set's events, resuming, and scoring."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.sequential import (
    NextItemScorer,
    TrainingSettings,
    checked_config,
    fit_sequential,
    new_model,
    user_clicks,
)
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, Requests
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.next_item import next_item_loss
from gensar_hf.embeddings.sasrec_training import num_training_steps, sasrec_training_arguments
from gensar_hf.errors import InputError

R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM
NUM_ITEMS = 8
SETTINGS = TrainingSettings(num_train_epochs=5, per_device_train_batch_size=4, learning_rate=0.02)
CONFIG = SASRecConfig(num_items=NUM_ITEMS, hidden_size=16, num_layers=1, max_length=6)


@pytest.fixture
def data(make_events) -> TrainingData:
    """The next item is always the next number; every other click answers a query."""
    clicks = [[(start + i) % NUM_ITEMS for i in range(16)] for start in range(NUM_ITEMS)]
    users = {
        f"user-{user}": [
            event for i, item in enumerate(items) for event in ([(R, item)] if i % 2 else [(Q, 0), (S, item, 0)])
        ]
        for user, items in enumerate(clicks)
    }
    events = make_events(users, [f"film-{item}" for item in range(NUM_ITEMS)])
    return TrainingData(events, [""] * NUM_ITEMS, np.zeros((NUM_ITEMS, 1)), "none")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Eight steps an epoch: four windows of each of eight users, four at a time."""
    monkeypatch.setattr("gensar_hf.embeddings.sasrec_training.MIN_STEPS", 10)
    monkeypatch.setattr("gensar_hf.baselines.sequential._SAVE_STEPS", 11)


def test_clicks_are_learnt_in_order_and_queries_left_out(data, make_events):
    assert [clicks.tolist() for clicks in user_clicks(data.events)[:2]] == [
        [*range(8), *range(8)],
        [*range(1, 8), *range(8), 0],
    ]
    events = make_events({"ann": [(Q, 0)], "bob": [(R, 1), (Q, 0), (S, 0, 0)]}, ["a", "b"])
    assert [clicks.tolist() for clicks in user_clicks(events)] == [[], [1, 0]]


def test_it_learns_what_follows_clicks_of_both_kinds(data, tmp_path, capsys):
    model = new_model(SASRecModel, CONFIG, seed=0)
    fit_sequential(model, data, SETTINGS, seed=0, checkpoints=tmp_path)

    requests = Requests(RECOMMENDATION, data.events, np.array([4, 24 + 5]))  # after 0 1 and after 1 2 3
    assert [data.events.items[requests.history(row)].tolist() for row in (0, 1)] == [[-1, 0, 1], [-1, 1, 2, -1, 3]]
    scores = NextItemScorer(model, "next").score(requests, np.tile(np.arange(NUM_ITEMS), (2, 1)))
    assert scores.argmax(axis=1).tolist() == [2, 4]
    assert capsys.readouterr().out == ""


def test_a_killed_training_goes_on_where_it_stood(data, tmp_path, training_killed_at):
    settings = dataclasses.replace(SETTINGS, num_train_epochs=3)
    whole = new_model(SASRecModel, CONFIG, seed=0)
    fit_sequential(whole, data, settings, seed=0, checkpoints=tmp_path / "whole")
    with training_killed_at(step=15):
        fit_sequential(new_model(SASRecModel, CONFIG, seed=0), data, settings, seed=0, checkpoints=tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoint-11"]  # inside the second epoch

    resumed = new_model(SASRecModel, CONFIG, seed=1)  # overwritten from the checkpoint
    fit_sequential(resumed, data, settings, seed=0, checkpoints=tmp_path / "killed")

    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_seed_decides_weights_and_windows(data, tmp_path):
    generator_state = torch.get_rng_state()
    first, same, other = (new_model(SASRecModel, CONFIG, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert torch.equal(first.item_embeddings(), same.item_embeddings())
    assert not torch.equal(first.item_embeddings(), other.item_embeddings())

    short = dataclasses.replace(SETTINGS, num_train_epochs=1)
    fit_sequential(first, data, short, seed=5, checkpoints=tmp_path / "a")
    fit_sequential(same, data, short, seed=6, checkpoints=tmp_path / "b")
    assert not torch.equal(first.item_embeddings(), same.item_embeddings())


def test_a_small_log_is_passed_over_more_often(tmp_path, monkeypatch):
    monkeypatch.setattr("gensar_hf.embeddings.sasrec_training.MIN_STEPS", 500)
    histories = [np.arange(9)] * 70  # 70 windows, 9 steps an epoch of 8 windows each
    arguments = sasrec_training_arguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    arguments.num_train_epochs = 55
    assert num_training_steps(histories, arguments, max_length=20) == 500
    arguments.num_train_epochs = 100
    assert num_training_steps(histories, arguments, max_length=20) == 900


def test_nothing_to_learn_from_is_named(make_events, tmp_path):
    events = make_events({"ann": [(R, 0)], "bob": [(Q, 0), (S, 1, 0)]}, [f"film-{item}" for item in range(NUM_ITEMS)])
    data = TrainingData(events, [""] * NUM_ITEMS, np.zeros((NUM_ITEMS, 1)), "none")
    with pytest.raises(InputError, match="none of the 2 users has two clicks"):
        fit_sequential(new_model(SASRecModel, CONFIG, 0), data, SETTINGS, 0, tmp_path)


def test_the_loss_is_the_mean_over_labelled_positions():
    hidden, items = torch.randn(2, 3, 4), torch.randn(5, 4)
    labels = torch.tensor([[2, -100, 0], [5, 1, -100]])
    log_probs = (hidden @ items.T).log_softmax(dim=-1)
    picked = log_probs[0, 0, 1] + log_probs[1, 0, 4] + log_probs[1, 1, 0]  # label n is item n - 1

    torch.testing.assert_close(next_item_loss(hidden, items, labels), -picked / 3)
    torch.testing.assert_close(next_item_loss(hidden, items, labels, num_items_in_batch=12), -picked / 12)
    smooth = F.cross_entropy((hidden @ items.T)[labels > 0], torch.tensor([1, 4, 0]), label_smoothing=0.2)
    torch.testing.assert_close(next_item_loss(hidden, items, labels, label_smoothing=0.2), smooth)
    assert next_item_loss(hidden, torch.ones(5, 4), labels).item() == pytest.approx(math.log(5), abs=1e-5)


@pytest.mark.parametrize("name", ["num_train_epochs", "per_device_train_batch_size", "learning_rate"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be above 0; got 0"):
        TrainingSettings(**{name: 0})


def test_a_configurations_refusal_is_one_sentence():
    with pytest.raises(ValueError, match=r"^`dropout` must be at least 0 and below 1; got 1\.5\.$"):
        checked_config(SASRecConfig, dropout=1.5)
    with pytest.raises(ValueError, match=r"hidden_size.* expected int"):
        checked_config(SASRecConfig, hidden_size="wide")


def test_the_scorer_says_name_size_and_task():
    model = new_model(SASRecModel, CONFIG, 0)
    scorer = NextItemScorer(model, "next")
    assert (scorer.name, scorer.tasks) == ("next", {RECOMMENDATION})
    assert scorer.num_parameters == sum(parameter.numel() for parameter in model.parameters())
