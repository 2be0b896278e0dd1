"""SASRec: exact losses, causality, padding, saving."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import IGNORED_LABEL, SASRecModel, pad_histories

NUM_ITEMS = 11


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = SASRecConfig(
        num_items=NUM_ITEMS, hidden_size=8, num_layers=2, num_heads=2, max_length=6, initializer_range=0.5
    )
    return SASRecModel(config).eval()


def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_positions(model):
    input_ids = torch.tensor([[3, 5, 1, 0], [2, 11, 4, 7]])
    labels = torch.tensor([[5, 1, IGNORED_LABEL, 0], [11, IGNORED_LABEL, 7, 1]])

    loss = model(input_ids, labels).loss

    log_probs = model(input_ids).logits.log_softmax(dim=-1)  # column i is item i, label i + 1
    picked = [log_probs[0, 0, 4], log_probs[0, 1, 0], log_probs[1, 0, 10], log_probs[1, 2, 6], log_probs[1, 3, 0]]
    torch.testing.assert_close(loss, -sum(picked) / 5)


def test_label_smoothing_counts_in_training_only():
    config = SASRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_length=4, dropout=0.0, label_smoothing=0.3)
    model, ids, labels = SASRecModel(config), torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])
    logits = model(ids).logits[0]

    torch.testing.assert_close(
        model.train()(ids, labels).loss, F.cross_entropy(logits, labels[0] - 1, label_smoothing=0.3)
    )
    torch.testing.assert_close(model.eval()(ids, labels).loss, F.cross_entropy(logits, labels[0] - 1))


def test_no_position_sees_a_later_one(model):
    input_ids = torch.tensor([[3, 5, 1, 8, 2]])
    changed = torch.tensor([[3, 5, 9, 10, 11]])

    before, after = model(input_ids).logits, model(changed).logits

    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().max() > 1e-3


def test_padding_changes_no_score(model):
    alone, batch = [3, 5], torch.tensor([[3, 5, 0, 0, 0], [1, 2, 3, 4, 5]])

    scores = model.score(batch)

    torch.testing.assert_close(scores[:1], model.score(torch.tensor([alone])))
    torch.testing.assert_close(scores[0], model(torch.tensor([alone])).logits[0, -1])
    torch.testing.assert_close(scores[1], model(batch).logits[1, -1])


def test_an_empty_history_prefers_no_item(model):
    scores = model.score(pad_histories([np.array([], dtype=int), np.array([2])], max_length=6))

    assert scores[0].tolist() == [0.0] * NUM_ITEMS
    assert scores[1].std() > 0


def test_histories_keep_their_latest_items_and_are_padded_on_the_right():
    histories = [np.array([0, 1, 2, 3]), np.array([], dtype=int), np.array([7])]

    assert pad_histories(histories, max_length=3).tolist() == [[2, 3, 4], [0, 0, 0], [8, 0, 0]]
    assert pad_histories([histories[1]], max_length=3).tolist() == [[0]]


def test_a_history_that_is_too_long_is_refused(model):
    with pytest.raises(ValueError, match="histories of 7 events, but SASRec was built for `max_length` 6"):
        model(torch.ones(1, 7, dtype=torch.long))


def test_the_padding_row_stays_zero_when_trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.train()(torch.tensor([[3, 5, 0]]), torch.tensor([[5, 1, IGNORED_LABEL]])).loss.backward()
    optimizer.step()

    assert model.item_table.weight[0].abs().max() == 0


def test_save_and_load_keep_every_weight(model, tmp_path):
    model.save_pretrained(tmp_path)

    loaded = SASRecModel.from_pretrained(tmp_path)

    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    batch, again = torch.tensor([[3, 5, 1]]), SASRecModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(batch), again.score(batch))
    # Not the same bits as before saving: the weights lie at other addresses, and some matrix kernels depend on that.
    torch.testing.assert_close(loaded.score(batch), model.score(batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 10, "num_heads": 4}, "`num_heads` must divide `hidden_size`"),
        ({"num_items": 0}, "`num_items` must be at least 1"),
        ({"num_layers": -1}, "`num_layers` must be at least 0"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
        ({"event_dropout": -0.1}, "`event_dropout` must be at least 0"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        SASRecConfig(**options)
