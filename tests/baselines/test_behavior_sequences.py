"""Examples, attention, training and scoring of the models over sequences of events, tested with UniSAR."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.baselines.behavior_sequences import (
    AttentionBlock,
    EventExamples,
    SequenceConfig,
    SequenceScorer,
    info_nce,
    latest,
    masked_mean,
)
from gensar_hf.baselines.copps import CoPPSConfig, CoPPSModel
from gensar_hf.baselines.sequential import new_model
from gensar_hf.baselines.sesrec import SESRecConfig, SESRecModel
from gensar_hf.baselines.tem import TEMConfig, TEMModel
from gensar_hf.baselines.tuning import configure, fit_baseline
from gensar_hf.baselines.unifiedssr import UnifiedSSRConfig, UnifiedSSRModel
from gensar_hf.baselines.unisar import UniSARConfig, UniSARModel
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e"]
MODELS = {
    "tem": (TEMModel, TEMConfig),
    "copps": (CoPPSModel, CoPPSConfig),
    "sesrec": (SESRecModel, SESRecConfig),
    "unifiedssr": (UnifiedSSRModel, UnifiedSSRConfig),
    "unisar": (UniSARModel, UniSARConfig),
}


def model_of(name="unisar", words=("space", "war"), num_items=5, **config):
    model_class, config_class = MODELS[name]
    sizes = {"num_users": 3, "num_items": num_items, "hidden_size": 8, "history_length": 4}
    return new_model(model_class, config_class(words=list(words), **{**sizes, **config}), seed=0)


def log_of(make_events, timestamps=None):
    users = {"ann": [(R, 0), (Q, 0), (S, 1, 0), (S, 2, 0), (R, 3)], "bob": [(Q, 1), (S, 4, 1), (R, 0)]}
    return make_events(users, ITEMS, ["space war", "war"], timestamps)


def test_every_click_is_a_recommendation_and_a_searched_one_also_answers_its_query(make_events):
    examples = EventExamples(log_of(make_events), ["", "", "film of space", "", ""], model_of(text_weight=0.5))
    batch = examples.collate(range(len(examples)))

    assert examples.num_clicks == 9
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 4, 2]
    assert batch["user_ids"].tolist() == [1, 1, 1, 1, 2, 2, 1, 1, 2, 0]
    assert batch["word_ids"].tolist() == [*[[0, 0]] * 6, [1, 2], [1, 2], [2, 0], [1, 0]]
    assert batch["weights"].tolist() == [*[1.0] * 9, 0.5]
    ids, behaviors, words = (batch[f"history_{name}"] for name in ("ids", "behaviors", "words"))
    # Before the last click of ann: a click, the query, and two clicks for it. The second one is not read after a query.
    assert ids[3].tolist() == [1, 0, 2, 3]
    assert behaviors[3].tolist() == [1, 2, 3, 3]
    assert words[3].tolist() == [[0, 0], [1, 2], [1, 2], [1, 2]]
    # Before the second click after the query: without the query, which the request holds.
    for row in (2, 7):
        assert ids[row].tolist() == [0, 0, 1, 2]
        assert behaviors[row].tolist() == [0, 0, 1, 3]
    assert not behaviors[[0, 4, 8, 9]].any()


@pytest.mark.parametrize(("name", "num_clicks"), [("tem", 3), ("sesrec", 6), ("unisar", 9)])
def test_models_learn_from_the_clicks_of_their_tasks(make_events, name, num_clicks):
    examples = EventExamples(log_of(make_events), [""] * 5, model_of(name))
    assert len(examples) == examples.num_clicks == num_clicks


def test_a_model_of_clicks_reads_no_queries(make_events):
    batch = EventExamples(log_of(make_events), [""] * 5, model_of("tem", history_length=2)).collate([1, 2])
    assert batch["history_ids"].tolist() == [[1, 2], [0, 0]]
    assert batch["history_behaviors"].tolist() == [[1, 3], [0, 0]]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_histories_are_those_of_requests(make_events, data):
    """For any log, also with twins of the target: the same item at the same moment, and its query."""
    rows = [data.draw(st.lists(st.tuples(st.sampled_from("RQS"), st.integers(0, 2)), max_size=9)) for _ in "ab"]
    users = {}
    for name, drawn in zip("ab", rows, strict=True):
        query, events = None, []
        for kind, number in drawn:
            query = number if kind == "Q" else query
            click = (R, number) if kind == "R" or query is None else (S, number, query)
            events.append((Q, number) if kind == "Q" else click)
        users[name] = events
    steps = [data.draw(st.integers(0, 1)) for events in users.values() for _ in events]
    log = make_events(users, ITEMS, ["space", "war", "x"], np.cumsum(steps))
    length = data.draw(st.integers(1, 9))
    model = model_of(data.draw(st.sampled_from(["unisar", "tem"])), history_length=length)
    examples = EventExamples(log, [""] * 5, model)
    assert np.isin(examples.targets, np.flatnonzero(log.items >= 0)).all()
    histories = examples.histories(examples.targets)
    for target, history in zip(examples.targets, histories, strict=True):
        readable = np.flatnonzero(np.isin(log.behaviors[:target], model.history_behaviors))[-length - 1 :]
        kept = Requests(SEARCH, log, np.array([target])).history(0)
        assert history[history >= 0].tolist() == [event for event in readable if event in kept][-length:]


def batch_of(model, make_events, rows=None):
    examples = EventExamples(log_of(make_events), [""] * 5, model)
    return examples.collate(range(len(examples)) if rows is None else rows)


def test_the_queries_of_two_searched_twins_are_left_out(make_events):
    rows = [(R, 4), (Q, 0), (S, 0, 0), (Q, 1), (S, 0, 1), (R, 0)]
    log = make_events({"ann": rows}, ITEMS, ["space", "war"], [0, 1, 1, 1, 1, 1])
    examples = EventExamples(log, [""] * 5, model_of(history_length=5))
    assert examples.histories(np.array([5])).tolist() == [[-1, 0, -1, -1, -1, -1]]
    assert Requests(RECOMMENDATION, log, np.array([5])).history(0).tolist() == [0]


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_padding_or_on_the_batch(make_events, name):
    model = model_of(name).eval().requires_grad_(False)
    together = model(**{**(batch := batch_of(model, make_events)), "labels": None}).logits
    for row in range(len(together)):
        alone = {**batch_of(model, make_events, [row]), "labels": None}
        torch.testing.assert_close(model(**alone).logits[0], together[row])
        words = torch.nn.functional.pad(alone["history_words"], (0, 2))
        wider = {**alone, "history_words": words, "word_ids": torch.nn.functional.pad(alone["word_ids"], (0, 1))}
        torch.testing.assert_close(model(**wider).logits[0], together[row])
    assert torch.isfinite(together).all()
    assert len(batch["labels"]) == len(together)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bf16", [False, True])
def test_losses_and_gradients_are_finite_without_any_history(make_events, name, bf16):
    model = model_of(name)
    batch = batch_of(model, make_events)
    nothing = {key: values * 0 if key.startswith("history") else values for key, values in batch.items()}
    for inputs in (batch, nothing):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model.train()(**inputs).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_block_attends_by_the_softmax_of_scaled_products():
    block = AttentionBlock(SequenceConfig(hidden_size=2, num_heads=1)).requires_grad_(False)
    states, context = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[3.0, 1.0], [1.0, 2.0], [5.0, 0.0]]])
    mask = torch.tensor([[[True, True, False]]])
    query = block.query(block.state_norm(states[0, 0]))
    keys, values = block.key_value(block.context_norm(context[0, :2])).chunk(2, dim=1)
    weights = torch.softmax(keys @ query / 2**0.5, dim=0)
    hidden = states[0, 0] + block.attention_output(weights @ values)
    inner = torch.nn.functional.gelu(block.feed_forward_input(block.feed_forward_norm(hidden)))
    torch.testing.assert_close(block(states, context, mask)[0, 0], hidden + block.feed_forward_output(inner))

    nothing = states[0, 0] + block.attention_output(torch.zeros(2))  # a state may attend to nothing
    inner = torch.nn.functional.gelu(block.feed_forward_input(block.feed_forward_norm(nothing)))
    torch.testing.assert_close(block(states, context, ~mask & False)[0, 0], nothing + block.feed_forward_output(inner))


def test_means_and_latest_states_are_those_of_the_mask():
    vectors = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(vectors, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]
    assert latest(vectors, mask).tolist() == [[4.0, 5.0], [0.0, 0.0]]


def test_info_nce_by_hand():
    anchors, others = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 0], [0, 1.0]])
    same = torch.zeros(3, 3, dtype=torch.bool)
    losses = info_nce(anchors, others, torch.tensor([True, True, False]), same, temperature=0.5)
    # Cosines of the first: 1 with its own half, 1 with the second's. Of the second: 0 and 0. The third does not count.
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2), 0.0])
    same[0, 1] = True
    assert info_nce(anchors, others, torch.tensor([True] * 3), same, 0.5).tolist() == pytest.approx(
        [math.log(1 + math.exp(-2)), math.log(2 + math.exp(2)), math.log(1 + 2 * math.exp(2))]
    )


def test_queries_are_projections_of_their_mean_word():
    model = model_of().requires_grad_(False)
    model.query_projection.bias.fill_(0.5)
    vectors = model.query_vectors(torch.tensor([[[1, 2, 0], [0, 0, 0]]]))
    expected = torch.tanh(model.query_projection(model.word_table.weight[1:].mean(dim=0)))
    torch.testing.assert_close(vectors, torch.stack([expected, torch.zeros(8)])[None])


QUICK = {"hidden_size": 8, "num_train_epochs": 1, "per_device_train_batch_size": 32, "history_length": 4}


def test_no_clicks_are_an_error(make_events, dataset_of):
    events = make_events({"ann": [(Q, 0), (R, 1)]}, ITEMS, ["space"])
    with pytest.raises(InputError, match="TEMModel cannot be trained: no event before the held-out ones is a click"):
        fit_baseline("tem", dataset_of(events), settings=QUICK)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("unisar", {"history_length": 0}, "`history_length` must be at least 1; got 0"),
        ("sesrec", {"num_heads": 3}, "`num_heads` must divide `hidden_size`.*got 3 and 64"),
        ("unisar", {"alignment_weight": -1.0}, "`alignment_weight` must not be negative"),
        ("unisar", {"temperature": 0.0}, "`temperature` must be above 0"),
        ("sesrec", {"margin": -1.0}, "`margin` must not be negative"),
        ("sesrec", {"temperature": 0.0}, "`temperature` must be above 0"),
        ("tem", {"num_layers": 0}, "`num_layers` must be at least 1"),
        ("copps", {"mask_share": 1.0}, "`mask_share` must be at least 0 and below 1"),
        ("copps", {"max_shift": -1.0}, "`max_shift` must not be negative"),
        ("copps", {"temperature": 0.0}, "`temperature` must be above 0"),
        ("unifiedssr", {"num_layers": 0}, "`num_layers` must be at least 1"),
        ("unifiedssr", {"query_weight": -1.0}, "`query_weight` must not be negative"),
        ("unifiedssr", {"temperature": 0.0}, "`temperature` must be above 0"),
    ],
)
def test_settings_are_checked(name, values, message):
    with pytest.raises(InputError, match=message):
        configure(name, values)


@pytest.mark.parametrize("name", MODELS)
def test_a_scorer_reads_the_history_and_the_query_as_training_does(make_events, name, tmp_path):
    events = log_of(make_events)
    model = model_of(name)
    model.save_pretrained(tmp_path)
    scorer = SequenceScorer(type(model).from_pretrained(tmp_path), "loaded")
    examples = EventExamples(events, [""] * 5, model)
    for task in model.tasks:  # a searched click is also an example of recommendation, but no request of it
        is_search = events.behaviors[examples.targets] == S
        rows = np.flatnonzero(is_search & (examples.texts > 0) if task == SEARCH else ~is_search)
        requests = Requests(task, events, examples.targets[rows])
        scores = scorer.score(requests, np.tile(np.arange(5), (len(rows), 1)))
        with torch.inference_mode():
            logits = model.eval()(**{**examples.collate(rows), "labels": None}).logits
        np.testing.assert_allclose(scores, logits.numpy(), atol=1e-5)
    assert scorer.tasks <= {RECOMMENDATION, SEARCH}
