import numpy as np
import pytest
import torch

from gensar_hf.baselines.behavior_sequences import RequestBatch, info_nce
from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.sesrec import SESRecConfig, SESRecModel
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
BATCH = RequestBatch(
    user_ids=torch.tensor([1, 2, 1]),
    word_ids=torch.tensor([[0], [0], [0]]),
    history_ids=torch.tensor([[1, 2, 0, 3, 4], [0, 0, 0, 5, 2], [0, 0, 0, 1, 1]]),
    history_behaviors=torch.tensor([[1, 1, 2, 3, 1], [0, 0, 2, 3, 3], [0, 0, 0, 1, 1]]),
    history_words=torch.tensor([[0, 0, 1, 1, 0], [0, 0, 2, 2, 2], [0, 0, 0, 0, 0]])[:, :, None],
)


def model_of(**config):
    sizes = {"num_users": 2, "num_items": 6, "hidden_size": 8, "history_length": 5, "dropout": 0.0}
    model = new_model(SESRecModel, SESRecConfig(words=["x", "y"], **{**sizes, **config}), seed=0)
    return model.requires_grad_(False)


def test_shares_are_a_softmax_of_the_mean_affinity_to_the_other_history():
    model = model_of().eval()
    events = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    is_click, is_search = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, False]])
    clicks, searches = model.co_attention(events, is_click, is_search)
    affinity = [torch.tanh(model.affinity(events[0, i]) @ events[0, 2] / 8**0.5) for i in range(2)]
    torch.testing.assert_close(clicks[0], torch.cat([torch.stack(affinity).softmax(dim=0), torch.zeros(2)]))
    assert searches.tolist() == [[0, 0, 1, 0]]
    nothing = torch.zeros_like(is_click)
    assert model.co_attention(events, is_click, nothing)[0].tolist() == [[0.5, 0.5, 0, 0]]
    assert not model.co_attention(events, nothing, nothing)[0].any()


def test_the_triplet_loss_is_zero_once_the_history_is_nearer_to_its_similar_part():
    model = model_of(margin=0.5)
    events, share = torch.zeros(1, 2, 8), torch.tensor([[0.75, 0.25]])
    events[0, 0, 0] = 4.0  # the anchor lies at 3
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    assert model.triplet_losses(events, share, first, second).tolist() == [0.0]
    assert model.triplet_losses(events, share, second, first).tolist() == pytest.approx([3 - 1 + 0.5], rel=1e-4)
    assert model.triplet_losses(events, share, first, torch.zeros_like(first)).tolist() == [0.0]


def test_the_latest_searched_item_is_aligned_with_its_query():
    model = model_of(temperature=0.5)
    queries, items = model.query_vectors(torch.tensor([[1], [2], [0]])), model.item_table.weight[[3, 2, 0]]
    has_pair, same = torch.tensor([True, True, False]), torch.eye(3, dtype=torch.bool)
    expected = info_nce(queries, items, has_pair, same, 0.5) + info_nce(items, queries, has_pair, same, 0.5)
    torch.testing.assert_close(model.alignment(BATCH), expected)
    assert (expected > 0).tolist() == [True, True, False]


def test_the_loss_in_training_adds_both_losses():
    options = {"alignment_weight": 0.0, "triplet_weight": 0.0}
    aligned = model_of(**{**options, "alignment_weight": 2.0}).train()
    torch.testing.assert_close(aligned.read(BATCH)[1], 2.0 * aligned.alignment(BATCH))
    separated = model_of(**{**options, "triplet_weight": 2.0}).train().read(BATCH)[1]
    assert (separated >= 0).all()
    assert separated[0] > 0
    assert not model_of(**options).train().read(BATCH)[1].any()
    assert model_of().eval().read(BATCH)[1] == 0.0


def test_similar_and_dissimilar_events_are_read_apart(monkeypatch):
    model, masks = model_of().eval(), []
    model.reader.register_forward_hook(lambda _, inputs, output: masks.append(inputs[2]))
    model.read(BATCH)
    clicks, similar, dissimilar, searches, like, unlike = masks[0].unbind(dim=1)
    torch.testing.assert_close(clicks, BATCH.is_event(R))
    torch.testing.assert_close(searches, BATCH.is_event(Q, S))
    for whole, part, rest in ((clicks, similar, dissimilar), (searches, like, unlike)):
        assert (part ^ rest == whole).all()
        assert (part.any(dim=1) == whole.any(dim=1)).all()
    torch.testing.assert_close(similar[2], clicks[2])  # without searches nothing is separated


def test_clicks_and_searches_recommend(make_events, dataset_of):
    # After a click on a comes c, after a search for "war" comes d.
    rows = [[(R, 0), (R, 2)], [(Q, 0), (S, 1, 0), (R, 3)], [(R, 4), (R, 5)]]
    orders = {"ann": [0, 1, 2], "bob": [2, 1, 0], "cem": [1, 2, 0]}
    users = {name: [event for part in order for event in rows[part]] * 4 for name, order in orders.items()}
    dataset = dataset_of(make_events(users, ITEMS, ["war"]))
    quick = {"hidden_size": 8, "per_device_train_batch_size": 32, "learning_rate": 0.03, "dropout": 0.0}
    scorer = fit_baseline("sesrec", dataset, settings={**quick, "num_train_epochs": 1, "history_length": 2})

    assert (scorer.name, scorer.tasks) == ("SESRec", {RECOMMENDATION})
    events = make_events({"new": [(R, 0), (R, 5)], "old": [(Q, 0), (S, 1, 0), (R, 5)]}, ITEMS, ["war"])
    scores = scorer.score(Requests(RECOMMENDATION, events, np.array([1, 4])), np.tile(np.arange(6), (2, 1)))
    assert scores.argmax(axis=1).tolist() == [2, 3]
