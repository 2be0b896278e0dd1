import numpy as np
import pytest
import torch

from gensar_hf.baselines.behavior_sequences import RequestBatch
from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.baselines.unifiedssr import UnifiedSSRConfig, UnifiedSSRModel
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
BATCH = RequestBatch(
    user_ids=torch.tensor([1, 1, 2]),
    word_ids=torch.tensor([[2], [0], [3]]),
    history_ids=torch.tensor([[1, 0, 2, 3], [1, 0, 2, 3], [0, 0, 0, 0]]),
    history_behaviors=torch.tensor([[1, 2, 3, 1], [1, 2, 3, 1], [0, 0, 0, 2]]),
    history_words=torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])[:, :, None],
)


def model_of(**config):
    sizes = {"num_users": 2, "num_items": 6, "hidden_size": 8, "history_length": 4, "dropout": 0.0, "num_layers": 2}
    model = new_model(UnifiedSSRModel, UnifiedSSRConfig(words=["x", "y", "z"], **{**sizes, **config}), seed=0)
    return model.requires_grad_(False)


def branch(model, states):
    """All states of one branch alone."""
    states = torch.stack(states)[None]
    mask = torch.ones(1, states.shape[1], states.shape[1], dtype=torch.bool).tril()
    for block in model.blocks:
        states = block(states, states, mask)
    return states[0]


def test_branches_do_not_see_each_other_and_share_their_layers():
    model = model_of().eval()
    places, items = model.place_vectors(BATCH)[0], model.item_table.weight
    query, now = model.query_vectors(torch.tensor([[1], [2]]))
    item_states = branch(model, [items[1] + places[0], items[2] + places[2], items[3] + places[3]])
    query_states = branch(model, [query + places[1], now])
    vectors, auxiliary = model.read(BATCH)
    torch.testing.assert_close(vectors[0], item_states[-1] + query_states[-1])
    torch.testing.assert_close(vectors[1], item_states[-1])  # a recommendation has no query branch
    assert auxiliary == 0.0

    # Only the first and the last row have a query and one before it; the other's query is the negative.
    losses = model_of(query_weight=2.0, temperature=0.5).train().read(BATCH)[1]
    before = [query_states[0], branch(model, [query + model.place_vectors(BATCH)[2, 3]])[0]]
    after = model.query_vectors(torch.tensor([[2], [3]]))
    cosines = torch.nn.functional.cosine_similarity(torch.stack(before)[:, None], after[None], dim=2) / 0.5
    expected = 2.0 * torch.nn.functional.cross_entropy(cosines, torch.arange(2), reduction="none")
    torch.testing.assert_close(losses, torch.stack([expected[0], torch.tensor(0.0), expected[1]]))


def test_one_model_recommends_by_clicks_and_searches_by_words(make_events, dataset_of):
    # After a comes b, after c comes d; "red" finds e, "blue" f.
    rows = [[(R, 0), (R, 1)], [(R, 2), (R, 3)], [(Q, 0), (S, 4, 0)], [(Q, 1), (S, 5, 1)]]
    rng = np.random.default_rng(0)
    users = {f"user-{user}": [event for part in rng.permutation(8) for event in rows[part % 4]] for user in range(8)}
    dataset = dataset_of(make_events(users, ITEMS, ["red shoes", "blue shoes"]))
    quick = {"hidden_size": 8, "per_device_train_batch_size": 64, "learning_rate": 0.03, "dropout": 0.0}
    scorer = fit_baseline("unifiedssr", dataset, settings={**quick, "num_train_epochs": 1, "history_length": 2})

    assert (scorer.name, scorer.tasks) == ("UnifiedSSR", {RECOMMENDATION, SEARCH})
    every_item = np.tile(np.arange(6), (2, 1))
    events = make_events({"new": [(R, 0), (R, 5)], "old": [(R, 2), (R, 5)]}, ITEMS, [])
    requests = Requests(RECOMMENDATION, events, np.array([1, 3]))
    assert scorer.score(requests, every_item).argmax(axis=1).tolist() == [1, 3]
    users = {"new": [(R, 0), (R, 1), (Q, 0), (S, 0, 0)], "old": [(R, 0), (R, 1), (Q, 1), (S, 0, 1)]}
    requests = Requests(SEARCH, make_events(users, ITEMS, ["red", "blue"]), np.array([3, 7]))
    red, blue = scorer.score(requests, every_item)
    assert red[4] > red[5]
    assert blue[5] > blue[4]


@pytest.mark.parametrize("changed", [{"word_ids": 0}, {"history_ids": 0}])
def test_each_branch_matters(changed):
    model = model_of().eval()
    other = BATCH._replace(**{name: getattr(BATCH, name) * factor for name, factor in changed.items()})
    assert not torch.allclose(model.read(BATCH)[0][0], model.read(other)[0][0])
