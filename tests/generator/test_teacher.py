"""Draws from a teacher by hand, and SASRec's predictions against a plain loop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gensar_hf.data import Behavior, UserEvents
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel, pad_histories
from gensar_hf.generator.teacher import TeacherItems, teacher_of_sasrec

R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM
USERS = {
    "ann": [(R, 0), (Q, 0), (S, 1, 0), (S, 2, 0), (R, 3), (R, 4), (R, 5), (R, 1), (R, 2), (R, 7)],
    "bob": [(R, 8)],
    "cem": [(R, 3), (R, 4), (R, 9)],
}
TRAIN_LENGTHS = [9, 1, 2]


@pytest.fixture
def events(make_events: Callable) -> UserEvents:
    return make_events(USERS, [f"film-{item}" for item in range(12)])


@pytest.fixture
def sasrec() -> SASRecModel:
    torch.manual_seed(0)
    config = SASRecConfig(num_items=12, hidden_size=8, num_heads=2, max_length=6, initializer_range=1.0)
    return SASRecModel(config).eval()


def test_draws_follow_the_probabilities() -> None:
    items = np.array([[4, 2, 9], [0, 0, 0]], dtype=np.int32)
    teacher = TeacherItems(items, np.array([[0.5, 0.75, 1.0], [0, 0, 0]], dtype=np.float32))
    rng = np.random.default_rng(0)
    drawn = [teacher.draw(0, rng) for _ in range(4000)]
    shares = [drawn.count(item) / len(drawn) for item in (4, 2, 9)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    assert teacher.draw(1, rng) is None


def test_every_training_click_after_another_one_has_a_prediction(
    events: UserEvents, sasrec: SASRecModel, tmp_path: Path
) -> None:
    teacher = teacher_of_sasrec(sasrec, events, events.offsets[:-1] + TRAIN_LENGTHS, tmp_path)
    predicted = np.flatnonzero(teacher.cumulative[:, -1])
    # Ann's clicks but the first and the held-out one; of the others one click of Cem's.
    assert predicted.tolist() == [2, 3, 4, 5, 6, 7, 8, 12]
    assert np.allclose(teacher.cumulative[predicted, -1], 1)


def test_probabilities_are_those_of_the_model(events: UserEvents, sasrec: SASRecModel, tmp_path: Path) -> None:
    teacher = teacher_of_sasrec(sasrec, events, events.offsets[:-1] + TRAIN_LENGTHS, tmp_path)
    # Windows overlap by half of the model's length: Ann's fifth prediction is the third of its own half.
    for event, history in ((2, [0]), (4, [0, 1, 2]), (5, [0, 1, 2, 3]), (12, [3])):
        with torch.no_grad():
            expected = sasrec.score(pad_histories([np.array(history)], 6))[0].softmax(dim=-1).numpy()
        probabilities = np.diff(teacher.cumulative[event], prepend=0)
        assert probabilities == pytest.approx(expected[teacher.items[event]], abs=1e-5)
        assert teacher.items[event, 0] == expected.argmax()


def test_few_items_are_kept_and_share_the_whole_probability(
    events: UserEvents, sasrec: SASRecModel, tmp_path: Path
) -> None:
    sasrec.train()
    teacher = teacher_of_sasrec(sasrec, events, events.offsets[:-1] + TRAIN_LENGTHS, tmp_path, num_kept=3)
    assert sasrec.training  # and predicted without dropout, or the second teacher would differ
    teacher = TeacherItems.load(tmp_path)
    again_folder = tmp_path / "again"
    again_folder.mkdir()
    again = teacher_of_sasrec(sasrec, events, events.offsets[:-1] + TRAIN_LENGTHS, again_folder, num_kept=3)
    assert teacher.items.shape == (events.num_events, 3)
    assert np.array_equal(teacher.items, again.items)
    assert np.array_equal(teacher.cumulative, again.cumulative)
    assert teacher.cumulative[2, -1] == pytest.approx(1)


def test_a_window_may_be_one_click(events: UserEvents, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SASRecConfig(num_items=12, hidden_size=8, num_heads=2, max_length=1, initializer_range=1.0)
    teacher = teacher_of_sasrec(SASRecModel(config).eval(), events, events.offsets[:-1] + TRAIN_LENGTHS, tmp_path)
    assert np.flatnonzero(teacher.cumulative[:, -1]).tolist() == [2, 3, 4, 5, 6, 7, 8, 12]
