"""A user's history as callers write it, checked and turned into events."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gensar_hf.data import Behavior

logger = logging.getLogger(__name__)

MAX_QUERY_CHARACTERS = 1000
ON_UNKNOWN = ("raise", "skip")

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class HistoryEvent:
    """One thing that a user did: clicked an item (`item` is its row in the identifier table) or typed a query."""

    behavior: Behavior
    item: int = -1
    query: str = ""


def cut_query(query: Any) -> str:
    """A query as text of at most 1,000 characters.

    Raises:
        ValueError: not text, or nothing but blanks.
    """
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"A query must be text with at least one word; got {query!r}.")
    if len(query) > MAX_QUERY_CHARACTERS:
        logger.warning(
            "A query of %d characters was cut to the first %d: '%s…'", len(query), MAX_QUERY_CHARACTERS, query[:40]
        )
    return query[:MAX_QUERY_CHARACTERS].strip()


def parse_history(history: History, index_of: Callable[[str], int], on_unknown: str = "raise") -> list[HistoryEvent]:
    """Read a history, oldest event first.

    An event is `{"item_id": …}` (clicked after a recommendation), `{"query": …}` (typed) or both (clicked after that
    query). A click that answers another query than the last one gets its query event put before it, so that one
    search session is always one query event and its clicks.

    Args:
        history: the events.
        index_of: item id → row of the identifier table; raises `KeyError` for an unknown item.
        on_unknown: `"raise"`, or `"skip"`: leave out events with an unknown item, with a warning.

    Raises:
        ValueError: an unknown item, or an event that is neither a click nor a query.
    """
    if on_unknown not in ON_UNKNOWN:
        raise ValueError(f"`on_unknown` must be one of {', '.join(ON_UNKNOWN)}; got {on_unknown!r}.")
    events: list[HistoryEvent] = []
    session_query = ""
    for position, entry in enumerate(as_events(history)):
        item_id, query = _read_entry(entry, position)
        item = _find_item(item_id, position, index_of, on_unknown)
        if item_id is not None and item is None:
            continue
        if query and (item is None or query != session_query):
            events.append(HistoryEvent(Behavior.SEARCH_QUERY, query=query))
        if item is not None:
            behavior = Behavior.SEARCHED_ITEM if query else Behavior.RECOMMENDED_ITEM
            events.append(HistoryEvent(behavior, item=item, query=query))
        session_query = query
    return events


def is_session_of(query: str, events: Sequence[HistoryEvent]) -> bool:
    """Whether the history ends inside a search session of this query: then the query event is already there."""
    for event in reversed(events):
        if event.query != query:
            return False
        if event.behavior is Behavior.SEARCH_QUERY:
            return True
    return False


def as_events(history: Any) -> list[Any]:
    """One history as a list, its events still unread.

    Raises:
        ValueError: not a sequence of events.
    """
    if isinstance(history, (str, Mapping)) or not isinstance(history, Sequence):
        raise ValueError(f"A history must be a list of events such as {{'item_id': '242'}}; got {history!r}.")
    return list(history)


def _read_entry(entry: Any, position: int) -> tuple[str | None, str]:
    """The item id (None: no click) and the query ("": none) of one event."""
    if not isinstance(entry, Mapping) or not (entry.get("item_id") is not None or entry.get("query")):
        raise ValueError(
            f"history[{position}] must be a mapping with 'item_id', 'query' or both, such as {{'item_id': '242'}}; "
            f"got {entry!r}."
        )
    item_id, query = entry.get("item_id"), entry.get("query")
    return None if item_id is None else str(item_id), cut_query(query) if query else ""


def _find_item(item_id: str | None, position: int, index_of: Callable[[str], int], on_unknown: str) -> int | None:
    if item_id is None:
        return None
    try:
        return index_of(item_id)
    except KeyError:
        if on_unknown == "skip":
            logger.warning("history[%d]: item '%s' is not in the catalogue and was skipped.", position, item_id)
            return None
        raise ValueError(
            f"history[{position}]: item '{item_id}' is not in the model's catalogue; remove it, or pass "
            "on_unknown='skip' to leave such events out."
        ) from None
