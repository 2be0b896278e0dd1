"""GRU4Rec: the equations of the GRU by hand, causality, padding and saving."""

import numpy as np
import pytest
import torch

from gensar_hf.baselines.gru4rec import GRU4RecConfig, GRU4RecModel
from gensar_hf.baselines.sequential import new_model
from gensar_hf.embeddings.modeling_sasrec import pad_histories

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
