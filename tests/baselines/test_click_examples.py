import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.baselines.click_examples import CLICKS, Examples, click_examples, text_examples
from gensar_hf.baselines.vocabulary import Vocabulary
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests

R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM
ITEMS = ["a", "b", "c", "d", "e"]
VOCABULARY = Vocabulary(["war", "space"])


def log_of(make_events, timestamps=None):
    users = {"ann": [(R, 0), (Q, 0), (S, 1, 0), (S, 2, 0), (R, 3)], "bob": [(Q, 1), (S, 4, 1), (R, 0)]}
    return make_events(users, ITEMS, ["space war", "unheard"], timestamps)


def test_every_click_is_an_example(make_events):
    examples = click_examples(log_of(make_events), VOCABULARY, history_length=2, weight=0.5)

    assert examples.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert examples.user_ids.tolist() == [1, 1, 1, 1, 2, 2]
    assert examples.word_ids.tolist() == [[0, 0], [2, 1], [2, 1], [0, 0], [0, 0], [0, 0]]
    assert examples.history_ids.tolist() == [[0, 0], [1, 0], [2, 1], [3, 2], [0, 0], [5, 0]]
    assert examples.weights.tolist() == [0.5] * 6


def test_what_is_not_to_be_told_is_not(make_events):
    examples = click_examples(log_of(make_events), VOCABULARY, [S], with_users=False, with_words=False)

    assert examples.labels.tolist() == [1, 2, 4]
    for name in ("user_ids", "word_ids", "history_ids"):
        assert not getattr(examples, name).any(), name


def test_the_history_of_a_searched_item_holds_clicks_of_all_kinds(make_events):
    examples = click_examples(log_of(make_events), VOCABULARY, [S], history_length=3)
    assert examples.history_ids.tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]


def test_a_twin_is_no_history(make_events):
    # The same click at the same moment, as a recommendation and as a search; later it would be history.
    rows = [(R, 3), (R, 0), (Q, 0), (S, 0, 0), (R, 0)]
    events = make_events({"ann": rows}, ITEMS, ["space"], [0, 1, 1, 1, 2])
    examples = click_examples(events, VOCABULARY, history_length=3)
    assert [[i for i in row if i] for row in examples.history_ids.tolist()] == [[], [4], [4], [1, 1, 4]]


@given(st.integers(1, 12), st.sampled_from([CLICKS, (R,), (S,)]))
@settings(max_examples=20, deadline=None)
def test_histories_are_those_of_requests(tiny_events, length, behaviors):
    examples = click_examples(tiny_events, VOCABULARY, behaviors, history_length=length)
    targets = np.flatnonzero(np.isin(tiny_events.behaviors, behaviors))
    for row, target in enumerate(targets):
        task = SEARCH if tiny_events.behaviors[target] == S else RECOMMENDATION
        history = Requests(task, tiny_events, np.array([target])).history(0)
        clicked = tiny_events.items[history][tiny_events.items[history] >= 0]
        told = [item - 1 for item in examples.history_ids[row] if item]
        assert told == clicked[::-1][:length].tolist()


def test_texts_are_asked_for_by_nobody():
    examples = text_examples(["War", "nothing known", "space war film"], VOCABULARY, weight=0.25)
    assert examples.labels.tolist() == [0, 2]
    assert examples.word_ids.tolist() == [[1, 0], [2, 1]]
    assert examples.weights.tolist() == [0.25, 0.25]
    assert not examples.user_ids.any()
    assert not examples.history_ids.any()


def test_a_batch_of_parts_of_different_widths(make_events):
    clicks = click_examples(log_of(make_events), VOCABULARY, history_length=4)
    texts = text_examples(["war", "war space space"], VOCABULARY, weight=0.5)
    examples = Examples.concatenate([clicks, texts])

    assert len(examples) == 8
    batch = examples.collate([examples[1], examples[6]])
    assert batch["word_ids"].tolist() == [[2, 1], [1, 0]]
    assert batch["history_ids"].tolist() == [[1], [0]]
    assert batch["user_ids"].tolist() == [1, 0]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["weights"].tolist() == [1.0, 0.5]
    assert examples.collate([0])["word_ids"].tolist() == [[0]]


@pytest.mark.parametrize("length", [0, 3])
def test_a_log_without_clicks_gives_no_examples(make_events, length):
    events = make_events({"ann": [(Q, 0)], "bob": []}, ITEMS, ["space"])
    assert len(click_examples(events, VOCABULARY, history_length=length)) == 0
