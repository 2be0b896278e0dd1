"""User histories: the events that callers write, checked, as arrays."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gensar_hf.data import Behavior, UserEvents
from gensar_hf.data.dataset import MAX_QUERY_CHARACTERS

logger = logging.getLogger(__name__)

ON_UNKNOWN = ("raise", "skip")

History = Sequence[Mapping[str, Any]]


class EventArrays(NamedTuple):
    """The events of one history, oldest first: the form that training, serving and evaluation turn into tokens.

    Attributes:
        behaviors: `num_events` values of `Behavior`.
        items: `num_events` rows of the identifier table, -1 for a query.
        queries: `num_events` texts: the query itself, the query that a searched item answers, or "".
    """

    behaviors: Sequence[int]
    items: Sequence[int]
    queries: Sequence[str]

    @classmethod
    def of_user_events(cls, events: UserEvents, positions: np.ndarray | slice, item_rows: np.ndarray) -> "EventArrays":
        """The events of a data set at some positions (indices or a slice).

        `item_rows`: `(num_items,)` identifier row of each item of `events`, see `Catalogue.item_rows`.
        """
        items, queries = events.items[positions], events.queries[positions].tolist()
        return cls(
            events.behaviors[positions].tolist(),
            np.where(items < 0, -1, item_rows[items]).tolist(),
            [events.query_texts[query] if query >= 0 else "" for query in queries],
        )

    def last(self, number: int) -> "EventArrays":
        """The last `number` events."""
        start = max(0, len(self.items) - number)
        return EventArrays(self.behaviors[start:], self.items[start:], self.queries[start:])

    def followed_by(self, behavior: Behavior, item: int, query: str) -> "EventArrays":
        """With one more event at the end."""
        return EventArrays([*self.behaviors, behavior], [*self.items, item], [*self.queries, query])

    def with_query_events(self) -> "EventArrays":
        """Insert a query event where a searched item answers another query than the one before it.

        One search session is then always one query event and its clicks.
        """
        rows: list[tuple[int, int, str]] = []
        open_query = ""
        for behavior, item, query in zip(*self, strict=True):
            if behavior == Behavior.SEARCHED_ITEM and query != open_query:
                rows.append((Behavior.SEARCH_QUERY, -1, query))
            rows.append((behavior, item, query))
            open_query = query
        return EventArrays(*zip(*rows, strict=True)) if rows else EventArrays((), (), ())

    def is_session_of(self, query: str) -> bool:
        """Whether the history ends inside a search session of this query, so that its query event is already there."""
        for behavior, own_query in zip(reversed(self.behaviors), reversed(self.queries), strict=True):
            if own_query != query:
                return False
            if behavior == Behavior.SEARCH_QUERY:
                return True
        return False


def cut_query(query: Any) -> str:
    """A query as text of at most 1,000 characters.

    Raises:
        ValueError: not text, or only white space.
    """
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"A query must be text with at least one word; got {query!r}.")
    if len(query) > MAX_QUERY_CHARACTERS:
        logger.warning(
            "A query of %d characters was cut to the first %d: '%s…'", len(query), MAX_QUERY_CHARACTERS, query[:40]
        )
    return query[:MAX_QUERY_CHARACTERS].strip()


def parse_history(history: History, index_of: Callable[[str], int], on_unknown: str = "raise") -> EventArrays:
    """Read a history, oldest event first.

    An event is `{"item_id": …}` (clicked after a recommendation), `{"query": …}` (typed) or both (clicked after that
    query).

    Args:
        history: the events.
        index_of: item id → row of the identifier table; raises `KeyError` for an unknown item.
        on_unknown: `"raise"`, or `"skip"`: drop events with an unknown item, with a warning.

    Raises:
        ValueError: an unknown item, or an event that is neither a click nor a query.
    """
    if on_unknown not in ON_UNKNOWN:
        raise ValueError(f"`on_unknown` must be one of {', '.join(ON_UNKNOWN)}; got {on_unknown!r}.")
    rows: list[tuple[int, int, str]] = []
    for position, entry in enumerate(as_events(history)):
        if not isinstance(entry, Mapping) or not (entry.get("item_id") is not None or entry.get("query")):
            raise ValueError(
                f"history[{position}] must be a mapping with 'item_id', 'query' or both, such as {{'item_id': '242'}}; "
                f"got {entry!r}."
            )
        query = cut_query(entry["query"]) if entry.get("query") else ""
        behavior, item = Behavior.SEARCH_QUERY, -1
        if entry.get("item_id") is not None:
            behavior = Behavior.SEARCHED_ITEM if query else Behavior.RECOMMENDED_ITEM
            item_id = str(entry["item_id"])
            try:
                item = index_of(item_id)
            except KeyError:
                if on_unknown != "skip":
                    raise ValueError(
                        f"history[{position}]: item '{item_id}' is not in the model's catalogue; remove it, or pass "
                        "on_unknown='skip' to drop such events."
                    ) from None
                logger.warning("history[%d]: item '%s' is not in the catalogue and was skipped.", position, item_id)
                continue
        rows.append((behavior, item, query))
    return EventArrays(*map(list, zip(*rows, strict=True))) if rows else EventArrays([], [], [])


def as_events(history: Any) -> list[Any]:
    """One history as a list, its events unchecked.

    Raises:
        ValueError: not a sequence of events.
    """
    if isinstance(history, (str, Mapping)) or not isinstance(history, Sequence):
        raise ValueError(f"A history must be a list of events such as {{'item_id': '242'}}; got {history!r}.")
    return list(history)
