import numpy as np
import torch

from gensar_hf.baselines.behavior_sequences import RequestBatch, info_nce
from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.baselines.unisar import UniSARConfig, UniSARModel
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
BATCH = RequestBatch(
    user_ids=torch.tensor([1, 2]),
    word_ids=torch.tensor([[1, 2], [0, 0]]),
    history_ids=torch.tensor([[1, 2, 0, 3, 4], [0, 0, 0, 0, 5]]),
    history_behaviors=torch.tensor([[1, 1, 2, 3, 1], [0, 0, 0, 2, 3]]),
    history_words=torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 2, 2]])[:, :, None],
)


def model_of(**config):
    sizes = {"num_users": 2, "num_items": 6, "hidden_size": 8, "history_length": 5, "dropout": 0.0}
    model = new_model(UniSARModel, UniSARConfig(words=["x", "y"], **{**sizes, **config}), seed=0)
    torch.nn.init.normal_(model.user_table.weight, generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False)


def attend(block, state, context):
    """A block for one state and those events that it may read."""
    context = torch.stack(context)[None] if context else torch.zeros(1, 1, 8)
    mask = torch.full((1, 1, context.shape[1]), bool(context.abs().sum() > 0))
    return block(state[None, None], context, mask)[0, 0]


def test_each_event_reads_what_led_to_it_from_its_own_and_from_the_other_scenario():
    model = model_of().eval()
    events, request = model.event_vectors(BATCH)[0], model.query_vectors(BATCH.word_ids)[0] + model.user_table.weight[1]
    scenarios, within, between, fused = "rrssr", [], [], []
    for i, scenario in enumerate(scenarios):
        same = [j for j in range(i + 1) if scenarios[j] == scenario]
        within.append(attend(model.within, events[i], [events[j] for j in same]))
        other = [events[j] for j in range(i) if scenarios[j] != scenario]
        between.append(attend(model.between, events[i], other))
        fused.append(attend(model.fusion, within[i], [between[j] for j in same]))
    vectors, auxiliary = model.read(BATCH)
    torch.testing.assert_close(vectors[0], attend(model.reader, request, fused))
    assert auxiliary == 0.0

    views = model_of(alignment_weight=1.0, temperature=0.5).train()
    losses = torch.zeros(2)
    for mine, theirs in ((([0, 1, 4]), []), ([2, 3], [3, 4])):
        sides = []
        for states in (within, between):
            # The second user has only searches, which read no clicks.
            second = model.event_vectors(BATCH)[1]
            block = model.within if states is within else model.between
            row = [attend(block, second[j], [second[k] for k in theirs if k <= j and states is within]) for j in theirs]
            mean = torch.stack(row).mean(dim=0) if row else torch.zeros(8)
            sides.append(torch.stack([torch.stack([states[j] for j in mine]).mean(dim=0), mean]))
        losses += info_nce(*sides, torch.tensor([True, bool(theirs)]), torch.eye(2, dtype=torch.bool), 0.5)
    torch.testing.assert_close(views.read(BATCH)[1], losses)


def test_one_model_recommends_by_events_and_searches_by_words(make_events, dataset_of):
    # After a click on a comes c, after a search for "war" comes d; "red" finds e, "blue" f.
    rows = [[(R, 0), (R, 2)], [(Q, 2), (S, 1, 2), (R, 3)], [(Q, 0), (S, 4, 0)], [(Q, 1), (S, 5, 1)]]
    rng = np.random.default_rng(0)
    users = {f"user-{user}": [event for part in rng.permutation(8) for event in rows[part % 4]] for user in range(8)}
    log = make_events(users, ITEMS, ["red shoes", "blue shoes", "war"])
    quick = {"hidden_size": 8, "per_device_train_batch_size": 64, "learning_rate": 0.03, "dropout": 0.0}
    settings = {**quick, "num_train_epochs": 1, "history_length": 2}
    scorer = fit_baseline("unisar", dataset_of(log), settings=settings)

    assert (scorer.name, scorer.tasks) == ("UniSAR", {RECOMMENDATION, SEARCH})
    events = make_events({"new": [(R, 0), (R, 5)], "old": [(Q, 0), (S, 1, 0), (R, 5)]}, ITEMS, ["war"])
    requests = Requests(RECOMMENDATION, events, np.array([1, 4]))
    assert scorer.score(requests, np.tile(np.arange(6), (2, 1))).argmax(axis=1).tolist() == [2, 3]
    searches = Requests(SEARCH, log, np.flatnonzero(log.behaviors == S))
    found = scorer.score(searches, np.tile(np.arange(6), (len(searches), 1))).argmax(axis=1)
    assert np.mean(found == searches.target_items) > 0.8  # the most frequent item is a third of them
