"""Training clicks → examples for matching models: who asks, for which words, after which clicks, what is clicked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from gensar_hf.baselines.vocabulary import PADDING, Vocabulary
from gensar_hf.data.user_events import Behavior, UserEvents

CLICKS = (Behavior.RECOMMENDED_ITEM, Behavior.SEARCHED_ITEM)


@dataclass(frozen=True, eq=False)
class Examples(torch.utils.data.Dataset):
    """What `MatchingModel.forward` learns from.

    As a data set it holds mere row numbers; `collate` gathers a batch at once, which is much faster than making
    tensors of every example.

    Attributes:
        user_ids: `(num_examples,)` user index + 1, 0 = nobody.
        word_ids: `(num_examples, num_words)`, 0 = padding.
        history_ids: `(num_examples, num_clicks)` item index + 1, 0 = padding.
        labels: `(num_examples,)` item indices.
        weights: `(num_examples,)` float32.
    """

    user_ids: np.ndarray
    word_ids: np.ndarray
    history_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The examples of these rows, without columns that are all padding (the first one stays)."""
        batch = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        for name in ("word_ids", "history_ids"):
            is_used = (batch[name] != PADDING).any(axis=0)
            is_used[0] = True
            batch[name] = batch[name][:, is_used]
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> "Examples":
        """All parts' examples, one part after the other."""
        return cls(**{field.name: _stacked([getattr(part, field.name) for part in parts]) for field in fields(cls)})


def _stacked(tables: Sequence[np.ndarray]) -> np.ndarray:
    if tables[0].ndim == 1:
        return np.concatenate(tables)
    width = max(table.shape[1] for table in tables)
    return np.concatenate([np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables])


def click_examples(
    events: UserEvents,
    vocabulary: Vocabulary,
    behaviors: Sequence[Behavior] = CLICKS,
    with_users: bool = True,
    with_words: bool = True,
    history_length: int = 0,
    weight: float = 1.0,
) -> Examples:
    """One example per click.

    Args:
        events: `data.training_events(split)`.
        vocabulary: of the queries' words.
        behaviors: the clicks that are taken.
        with_users: whether the user is told.
        with_words: whether the query of a searched item is told.
        history_length: how many clicks before the click are told, of whatever behavior, the latest ones.
        weight: how much each example counts.
    """
    clicks = np.flatnonzero(events.items >= 0)
    places = np.flatnonzero(np.isin(events.behaviors[clicks], behaviors))  # among all clicks
    users, chosen = events.event_users()[clicks], clicks[places]
    query_words = vocabulary.encode([*events.query_texts, ""])  # query -1, none, is the last text
    return Examples(
        user_ids=(users[places] + 1) * with_users,
        word_ids=query_words[events.queries[chosen]] * with_words,
        history_ids=_earlier_clicks(events.items[clicks], events.timestamps[clicks], users, places, history_length),
        labels=events.items[chosen],
        weights=np.full(len(chosen), weight, dtype=np.float32),
    )


def _earlier_clicks(
    items: np.ndarray, timestamps: np.ndarray, users: np.ndarray, places: np.ndarray, length: int
) -> np.ndarray:
    """Item index + 1 of the user's `length` clicks before each place, latest first, 0 = padding.

    A twin of the click (same item, same timestamp) is left out, as in `Requests.history`: it is the answer.
    """
    if length == 0:
        return np.full((len(places), 1), PADDING, dtype=np.int64)
    before = places[:, None] - np.arange(1, length + 1)  # (num_places, length)
    exists, before = before >= 0, np.maximum(before, 0)
    is_history = exists & (users[before] == users[places, None])
    is_twin = (items[before] == items[places, None]) & (timestamps[before] == timestamps[places, None])
    return np.where(is_history & ~is_twin, items[before] + 1, PADDING)


def text_examples(item_texts: Sequence[str], vocabulary: Vocabulary, weight: float) -> Examples:
    """One example per item that has known words: nobody asks for them, and clicks it.

    Args:
        item_texts: in catalogue order.
        vocabulary: of the words.
        weight: how much each example counts.
    """
    word_ids = vocabulary.encode(item_texts)
    items = np.flatnonzero(word_ids[:, 0] != PADDING)
    return Examples(
        user_ids=np.zeros_like(items),
        word_ids=word_ids[items],
        history_ids=np.full((len(items), 1), PADDING, dtype=np.int64),
        labels=items,
        weights=np.full(len(items), weight, dtype=np.float32),
    )
