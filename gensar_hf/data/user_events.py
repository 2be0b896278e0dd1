"""Events of all users as flat arrays, sorted by user, then by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd


class Behavior(IntEnum):
    """What a user did; `token` is the behavior token of the paper (GenSAR, Shi et al. 2025)."""

    RECOMMENDED_ITEM = 0
    SEARCH_QUERY = 1
    SEARCHED_ITEM = 2

    @property
    def token(self) -> str:
        """`<R_I>`, `<S_Q>` or `<S_I>`."""
        return ("<R_I>", "<S_Q>", "<S_I>")[self]


@dataclass(frozen=True, eq=False)
class UserEvents:
    """All users' events, sorted by user, then by time.

    Attributes:
        user_ids: the id of each user.
        item_ids: the id of each item of the catalogue.
        query_texts: the distinct queries, in the order of their first row.
        offsets: `(num_users + 1,)` int64; the events of user u are `offsets[u]:offsets[u + 1]`.
        behaviors: `(num_events,)` int8, values of `Behavior`.
        items: `(num_events,)` int64, -1 for a query.
        queries: `(num_events,)` int64, -1 for a click on a recommendation; a searched item has the query of its
            session.
        timestamps: `(num_events,)` float64, non-decreasing within a user.
        digest: SHA-256 of all of it where it is recorded, "" otherwise.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    query_texts: Sequence[str]
    offsets: np.ndarray
    behaviors: np.ndarray
    items: np.ndarray
    queries: np.ndarray
    timestamps: np.ndarray
    digest: str = ""

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue, those without events included."""
        return len(self.item_ids)

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.behaviors)

    def event_users(self) -> np.ndarray:
        """The user of every event, `(num_events,)` int64."""
        return np.repeat(np.arange(self.num_users, dtype=np.int64), np.diff(self.offsets))

    def session_starts(self) -> np.ndarray:
        """The query event of each searched item's session, and every other event itself, `(num_events,)` int64."""
        positions = np.arange(self.num_events, dtype=np.int64)
        last_query = np.maximum.accumulate(np.where(self.behaviors == Behavior.SEARCH_QUERY, positions, -1))
        return np.where(self.behaviors == Behavior.SEARCHED_ITEM, last_query, positions)

    def users(self, first: int, last: int) -> UserEvents:
        """The events of the users `first` to `last - 1` alone, as views; event 0 is event `offsets[first]` of all."""
        start, end = self.offsets[first], self.offsets[last]
        return UserEvents(
            user_ids=self.user_ids[first:last],
            item_ids=self.item_ids,
            query_texts=self.query_texts,
            offsets=self.offsets[first : last + 1] - start,
            behaviors=self.behaviors[start:end],
            items=self.items[start:end],
            queries=self.queries[start:end],
            timestamps=self.timestamps[start:end],
        )


def user_events(item_ids: Sequence[str], interactions: pd.DataFrame) -> UserEvents:
    """Turn rows into events.

    Consecutive rows with the same user and query are one search session: one query event, at the time of the first of
    them, then one searched item per row that has an item. A row without a query is one click on a recommendation.

    Args:
        item_ids: the catalogue.
        interactions: as `InteractionDataset.interactions`.

    Raises:
        ValueError: the rows of a user are not contiguous or not in the order of time, or `item_ids` lacks an item.
    """
    users, user_ids = pd.factorize(interactions["user_id"])
    items = pd.Index(list(item_ids), dtype="str").get_indexer(pd.Index(interactions["item_id"]))
    typed = interactions["query"].mask(interactions["query"] == "")
    queries, query_texts = pd.factorize(typed)  # a masked value has the code -1
    times = interactions["timestamp"].to_numpy(dtype=np.float64)
    _check_order(interactions, users, items, times)

    return UserEvents(
        list(user_ids),
        list(item_ids),
        list(query_texts),
        *rows_to_events(users, items, queries, times, len(user_ids)),
    )


def rows_to_events(
    users: np.ndarray, items: np.ndarray, queries: np.ndarray, times: np.ndarray, num_users: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of `UserEvents`, from `offsets` on, of rows in the order of user and time.

    Args:
        users: `(num_rows,)` number of the user, non-decreasing.
        items: `(num_rows,)` row in the catalogue, -1 for a search without a click.
        queries: `(num_rows,)` number of the query, -1 for a click on a recommendation.
        times: `(num_rows,)` float64.
        num_users: all users, those without rows included.
    """
    num_rows = len(users)
    same_as_before = np.zeros(num_rows, dtype=bool)
    same_as_before[1:] = (users[1:] == users[:-1]) & (queries[1:] == queries[:-1])
    opens = (queries >= 0) & ~same_as_before
    clicks = items >= 0
    row_ends = np.cumsum(opens.astype(np.int64) + clicks)
    query_events, click_events = (row_ends - 1 - clicks)[opens], (row_ends - 1)[clicks]

    num_events = int(row_ends[-1]) if num_rows else 0
    row_of_event = np.empty(num_events, dtype=np.int64)
    row_of_event[query_events], row_of_event[click_events] = np.flatnonzero(opens), np.flatnonzero(clicks)
    behaviors = np.full(num_events, Behavior.SEARCH_QUERY, dtype=np.int8)
    behaviors[click_events] = np.where(queries[clicks] >= 0, Behavior.SEARCHED_ITEM, Behavior.RECOMMENDED_ITEM)
    per_user = np.bincount(users[row_of_event], minlength=num_users)
    return (
        np.concatenate([[0], np.cumsum(per_user)]).astype(np.int64),
        behaviors,
        np.where(behaviors == Behavior.SEARCH_QUERY, -1, items[row_of_event]).astype(np.int64),
        queries[row_of_event].astype(np.int64),
        times[row_of_event],
    )


def _check_order(interactions: pd.DataFrame, users: np.ndarray, items: np.ndarray, times: np.ndarray) -> None:
    unknown = np.flatnonzero((items < 0) & (interactions["item_id"] != "").to_numpy())
    if len(unknown):
        raise ValueError(
            f"Row {unknown[0]} of the interactions has the item {interactions['item_id'].iloc[unknown[0]]!r}, which is "
            "not in the catalogue; let `InteractionDataset` read the tables, which checks them."
        )
    user_steps = np.diff(users)
    out_of_order = (user_steps < 0) | ((user_steps == 0) & (np.diff(times) < 0))
    if out_of_order.any():
        raise ValueError(
            f"Row {int(out_of_order.argmax()) + 1} of the interactions is out of order; rows must be sorted by user, "
            "then by time, as in `InteractionDataset.interactions`."
        )
