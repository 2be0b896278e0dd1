"""Windows over histories, and training with Trainer: it learns, resumes exactly, accumulates exactly."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf import catalogue_loss
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import (
    HistoryWindows,
    collate_windows,
    sasrec_training_arguments,
    train_sasrec,
)
from gensar_hf.errors import InputError

HISTORIES = st.lists(st.integers(2, 40), min_size=1, max_size=4)
NUM_ITEMS = 12
CIRCLES = [(np.arange(30) + start) % NUM_ITEMS for start in range(NUM_ITEMS)]  # the next item is always the next number


def numbered(lengths):
    """Histories in which every item occurs once, so that an item says where it stands."""
    return np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])


def pairs_of(windows):
    return [
        (int(a) - 1, int(b) - 1)
        for window in (windows[i] for i in range(len(windows)))
        for a, b in zip(window["input_ids"], window["labels"], strict=True)
    ]


def build_model(**options):
    torch.manual_seed(0)
    sizes = {"num_items": NUM_ITEMS, "hidden_size": 16, "num_layers": 1, "max_length": 8, "dropout": 0.1}
    return SASRecModel(SASRecConfig(**{**sizes, **options}))


def arguments(folder, **options):
    quick = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 0.02, "warmup_steps": 2}
    return sasrec_training_arguments(str(folder), use_cpu=True, disable_tqdm=True, **{**quick, **options})


@given(HISTORIES, st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_every_event_is_predicted_from_the_one_before_it_in_every_epoch(lengths, max_length, epoch):
    histories = numbered(lengths)
    windows = HistoryWindows(histories, max_length, seed=3)
    num_windows = len(windows)
    windows.set_epoch(epoch)

    assert len(windows) == num_windows
    assert all(1 <= len(windows[i]["input_ids"]) <= max_length for i in range(num_windows))
    expected = {(int(a), int(b)) for history in histories for a, b in pairwise(history)}
    assert set(pairs_of(windows)) == expected


@given(st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_windows_depend_on_seed_and_epoch_alone(epoch, other_epoch):
    windows = HistoryWindows(numbered([100, 90, 80]), 10, seed=1, event_dropout=0.2)
    windows.set_epoch(other_epoch)
    windows.set_epoch(epoch)
    fresh = HistoryWindows(numbered([100, 90, 80]), 10, seed=1, event_dropout=0.2)
    fresh.set_epoch(epoch)

    assert pairs_of(windows) == pairs_of(fresh)
    fresh.set_epoch(epoch + 1)
    assert pairs_of(windows) != pairs_of(fresh)
    assert pairs_of(windows) != pairs_of(HistoryWindows(numbered([100, 90, 80]), 10, seed=2, event_dropout=0.2))


def test_event_dropout_leaves_out_its_share_and_keeps_the_order():
    windows = HistoryWindows(numbered([2001]), 2000, event_dropout=0.25)

    events = windows[0]["input_ids"]
    assert len(events) == pytest.approx(1500, abs=80)  # 4 standard deviations
    assert (events.diff() > 0).all()


def test_batches_are_padded_on_the_right():
    windows = HistoryWindows([np.array([0, 1, 2]), np.array([5]), np.array([3, 4])], max_length=4)

    batch = collate_windows([windows[0], windows[1]])

    assert batch["input_ids"].tolist() == [[1, 2], [4, 0]]
    assert batch["labels"].tolist() == [[2, 3], [5, -100]]


def test_nothing_to_learn_from_is_named(tmp_path):
    with pytest.raises(InputError, match="none of the 2 users has two training clicks"):
        train_sasrec(build_model(), [np.array([1]), np.array([], dtype=int)], arguments(tmp_path))


@pytest.mark.parametrize("exact_items", [100, 0])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch, exact_items):
    """Whether the loss is over all items or over a sample of them."""
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", exact_items)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 4)
    options = {"save_strategy": "steps", "save_steps": 5}
    whole = build_model(event_dropout=0.1)
    train_sasrec(whole, CIRCLES, arguments(tmp_path / "whole", **options))

    # 12 histories of 5 windows make 15 steps an epoch, so step 5 is in the middle of the first.
    resumed = build_model(event_dropout=0.1)
    checkpoint = str(tmp_path / "whole" / "checkpoint-5")
    train_sasrec(resumed, CIRCLES, arguments(tmp_path / "resumed", **options), resume_from_checkpoint=checkpoint)

    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_step_on_a_sample_leaves_the_other_items_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", 0)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 1)
    model = build_model()
    before = model.item_embeddings().detach().clone()
    train_sasrec(model, [np.array([1, 2])], arguments(tmp_path, max_steps=1, warmup_steps=0))
    is_moved = (model.item_embeddings() != before).any(dim=1)
    assert is_moved[[1, 2]].all()
    assert is_moved.sum() <= 3


def test_gradient_accumulation_is_exact(tmp_path):
    options = {"max_steps": 6, "max_grad_norm": 0.0}
    histories = [history[: 3 + 2 * i] for i, history in enumerate(CIRCLES)]  # windows of different lengths
    whole, parts = build_model(dropout=0.0), build_model(dropout=0.0)

    train_sasrec(whole, histories, arguments(tmp_path, per_device_train_batch_size=4, **options))
    options["gradient_accumulation_steps"] = 4
    train_sasrec(parts, histories, arguments(tmp_path, per_device_train_batch_size=1, **options))

    torch.testing.assert_close(parts.item_embeddings(), whole.item_embeddings(), atol=2e-4, rtol=0)
