import numpy as np
import pytest
import torch

from gensar_hf.baselines.behavior_sequences import RequestBatch
from gensar_hf.baselines.copps import CoPPSConfig, CoPPSModel
from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
BATCH = RequestBatch(
    user_ids=torch.tensor([1, 2, 2]),
    word_ids=torch.tensor([[1, 2], [2, 0], [1, 0]]),
    history_ids=torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]]),
    history_behaviors=torch.tensor([[0, 0, 1, 3, 1], [1, 1, 1, 3, 3], [0, 0, 0, 0, 0]]),
    history_words=torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 2, 1], [0, 0, 0, 0, 0]])[:, :, None],
)


def model_of(**config):
    sizes = {"num_users": 2, "num_items": 6, "hidden_size": 8, "history_length": 5, "dropout": 0.0}
    return new_model(CoPPSModel, CoPPSConfig(words=["x", "y"], **{**sizes, **config}), seed=0)


def events_of(batch, row):
    columns = batch.history_ids[row], batch.history_behaviors[row], batch.history_words[row, :, 0]
    return [event for event in zip(*(column.tolist() for column in columns), strict=True) if event[1]]


def test_views_keep_the_events_together_and_move_them_a_little():
    torch.manual_seed(0)
    model = model_of(max_shift=2.0, mask_share=0.4)
    original, seen = events_of(BATCH, 1), set()
    for _ in range(20):
        view = model.altered(BATCH)
        kept = events_of(view, 1)
        assert set(kept) <= set(original)
        assert not view.history_behaviors[2].any()
        places = {item: place for place, item in enumerate(view.history_ids[1].tolist()) if item}
        assert all(abs(place - (item - 1)) <= 2 for item, place in places.items())
        assert all(word in (0, original) for word, original in zip(view.word_ids[0].tolist(), [1, 2], strict=True))
        seen.add(tuple(kept))
    assert len(seen) > 10


def test_views_without_changes_are_the_request():
    for view, original in zip(model_of(max_shift=0.0, mask_share=0.0).altered(BATCH), BATCH, strict=True):
        torch.testing.assert_close(view, original)


def test_the_loss_adds_the_contrast_of_two_views():
    settings = {"max_shift": 0.0, "mask_share": 0.0, "temperature": 0.5}
    labels = torch.tensor([1, 2, 3])
    model, without = model_of(contrast_weight=2.0, **settings), model_of(contrast_weight=0.0, **settings)
    states = torch.nn.functional.normalize(model.query_states(BATCH).detach(), dim=1)
    # Equal views, two users with a history: each has the other as a negative. Nobody's history is not contrasted.
    other = float(states[0] @ states[1])
    one = np.log1p(np.exp((other - 1) / 0.5))
    first, second = (float(m.train()(**BATCH._asdict(), labels=labels).loss.detach()) for m in (model, without))
    assert first - second == pytest.approx(2.0 * (2 * one) / 3, rel=1e-4)
    assert float(model.eval()(**BATCH._asdict(), labels=labels).loss.detach()) == pytest.approx(second, rel=1e-5)


def test_it_reads_the_queries_of_earlier_clicks(make_events, dataset_of):
    # What "red" finds depends on the query before it, not on the item that was clicked for it.
    first, second = [(Q, 1), (S, 0, 1), (Q, 0), (S, 1, 0)], [(Q, 2), (S, 0, 2), (Q, 0), (S, 2, 0)]
    rows = {"ann": [*first, *second] * 4, "bob": [*second, *first] * 4}
    queries = ["red", "war", "space"]
    quick = {"hidden_size": 8, "per_device_train_batch_size": 24, "learning_rate": 0.03, "dropout": 0.0}
    settings = {**quick, "num_train_epochs": 1, "history_length": 1, "mask_share": 0.1}
    scorer = fit_baseline("copps", dataset_of(make_events(rows, ITEMS, queries)), settings=settings)
    events = make_events({"ann": first, "bob": second}, ITEMS, queries)
    scores = scorer.score(Requests(SEARCH, events, np.array([3, 7])), np.tile(np.arange(6), (2, 1)))
    assert scores.argmax(axis=1).tolist() == [1, 2]
    assert scorer.name == "CoPPS"
