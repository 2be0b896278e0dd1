"""GRU4Rec: the GRU's equations written out, causality, padding, saving, and training by its name."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from gensar_hf.baselines.baseline import TrainingData, fit_by_name
from gensar_hf.baselines.gru4rec import GRU4RecConfig, GRU4RecModel, Settings
from gensar_hf.baselines.sequential import new_model
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, Requests
from gensar_hf.embeddings.modeling_sasrec import pad_histories
from gensar_hf.errors import InputError

NUM_ITEMS = 9


@pytest.fixture
def model() -> GRU4RecModel:
    config = GRU4RecConfig(
        num_items=NUM_ITEMS, embedding_size=6, hidden_size=5, num_layers=1, max_length=6, initializer_range=0.5
    )
    return new_model(GRU4RecModel, config, seed=0).eval()


def test_logits_follow_the_equations_of_the_gru(model):
    """Cho et al. (2014) as PyTorch writes it: gates r, z and the candidate n, in this order."""
    history, state = [3, 1, 8], np.zeros(5)
    weights = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    input_rows, state_rows = (np.split(weights[f"gru.weight_{kind}_l0"], 3) for kind in ("ih", "hh"))

    def sigmoid(values: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-values))

    for token in history:  # biases are 0 at first
        embedded = weights["item_table.weight"][token] * np.sqrt(6)
        reset = sigmoid(input_rows[0] @ embedded + state_rows[0] @ state)
        update = sigmoid(input_rows[1] @ embedded + state_rows[1] @ state)
        new = np.tanh(input_rows[2] @ embedded + reset * (state_rows[2] @ state))
        state = (1 - update) * new + update * state
    expected = weights["item_table.weight"][1:] @ (weights["projection.weight"] @ state)

    with torch.no_grad():
        np.testing.assert_allclose(model.score(torch.tensor([history]))[0].numpy(), expected, atol=1e-5)


def test_no_position_sees_a_later_one(model):
    before = model(torch.tensor([[3, 5, 1, 8, 2]])).logits
    after = model(torch.tensor([[3, 5, 9, 7, 4]])).logits

    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().max() > 1e-3


def test_padding_changes_no_score_and_an_empty_history_prefers_no_item(model):
    scores = model.score(pad_histories([np.array([2, 4]), np.arange(5), np.array([], dtype=int)], max_length=6))

    torch.testing.assert_close(scores[:1], model.score(torch.tensor([[3, 5]])))
    torch.testing.assert_close(scores[1], model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, -1])
    assert scores[2].tolist() == [0.0] * NUM_ITEMS


def test_two_half_batches_divided_by_all_labels_add_up_to_the_whole(model):
    input_ids, labels = torch.randint(1, 10, (4, 5)), torch.randint(1, 10, (4, 5))
    labels[0, 1:] = -100

    parts = [model(input_ids[rows], labels[rows], num_items_in_batch=16).loss for rows in ([0, 1], [2, 3])]

    torch.testing.assert_close(sum(parts), model(input_ids, labels).loss)


def test_save_and_load_keep_every_weight(model, tmp_path):
    model.save_pretrained(tmp_path)

    loaded = GRU4RecModel.from_pretrained(tmp_path)

    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    history = torch.tensor([[3, 5, 1]])
    torch.testing.assert_close(loaded.score(history), model.score(history))


def test_bf16_autocast_gives_nearly_the_same_loss(model):
    input_ids, labels = torch.tensor([[3, 5, 1, 8]]), torch.tensor([[5, 1, 8, 2]])
    exact = model(input_ids, labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids, labels).loss
    loss.backward()

    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0)
    assert model.gru.weight_hh_l0.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_items": 0}, "`num_items` must be at least 1"),
        ({"num_layers": 0}, "`num_layers` must be at least 1"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        GRU4RecConfig(**options)


@pytest.fixture
def data(make_events) -> TrainingData:
    """The next film is always the next number."""
    users = {
        f"user-{start}": [(Behavior.RECOMMENDED_ITEM, (start + i) % NUM_ITEMS) for i in range(14)]
        for start in range(NUM_ITEMS)
    }
    events = make_events(users, [f"film-{item}" for item in range(NUM_ITEMS)])
    return TrainingData(events, [""] * NUM_ITEMS, np.zeros((NUM_ITEMS, 1)), "none")


def test_it_is_fitted_by_its_name_and_the_saved_model_scores_alike(data, tmp_path, monkeypatch):
    monkeypatch.setattr("gensar_hf.embeddings.sasrec_training.MIN_STEPS", 60)
    values = {"embedding_size": 16, "hidden_size": 16, "num_layers": 2, "learning_rate": 0.02, "max_length": 8}

    scorer = fit_by_name("gru4rec", data, values | {"num_train_epochs": 1}, 0, tmp_path, tmp_path / "checkpoints")

    requests = Requests(RECOMMENDATION, data.events, np.array([3, 14 + 12]))  # after 0 1 2, and after 1 … 8 0 1 2 3
    every_item = np.tile(np.arange(NUM_ITEMS), (2, 1))
    scores = scorer.score(requests, every_item)
    assert scorer.name == "GRU4Rec"
    assert scores.argmax(axis=1).tolist() == [3, 4]
    saved = GRU4RecModel.from_pretrained(tmp_path)
    assert (saved.config.hidden_size, saved.config.num_layers) == (16, 2)
    scorer.model = saved
    np.testing.assert_allclose(scorer.score(requests, every_item), scores, atol=1e-5)


def test_settings_are_the_configurations_and_checked(data, tmp_path):
    config = GRU4RecConfig()
    assert all(getattr(config, name) == value for name, value in Settings().model_values().items())
    with pytest.raises(InputError, match="GRU4Rec: `dropout` must be at least 0 and below 1; got 2"):
        fit_by_name("gru4rec", data, {"dropout": 2.0}, 0, tmp_path, tmp_path)
    with pytest.raises(InputError, match="GRU4Rec has no setting 'num_heads'"):
        fit_by_name("gru4rec", data, {"num_heads": 2}, 0, tmp_path, tmp_path)
