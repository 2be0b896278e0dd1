"""What callers write, checked: user histories, which become arrays, queries, and the other arguments of a call."""

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from gensar_hf.data import Behavior, UserEvents
from gensar_hf.data.dataset import MAX_QUERY_CHARACTERS
from gensar_hf.data.tables import id_of, text_of, tidy
from gensar_hf.errors import shown

logger = logging.getLogger(__name__)

ON_UNKNOWN = ("raise", "skip")
EVENT_KEYS = ("item_id", "query")
MAX_ENTRIES = 1_000_000  # of a list that a caller gives

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
    """A query with single spaces, as in tables, of at most 1,000 characters that have a form in UTF-8.

    Raises:
        ValueError: not text, or only white space.
    """
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"A query must be text with at least one word; got {shown(query)}.")
    query = tidy(query)
    if len(query) > MAX_QUERY_CHARACTERS:
        logger.warning("A query of %d characters was cut to the first %d.", len(query), MAX_QUERY_CHARACTERS)
    cut = query[:MAX_QUERY_CHARACTERS].strip()
    # Half of a surrogate pair, as a text that is cut in UTF-16 ends with, is no character.
    return cut.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def parse_history(history: History, index_of: Callable[[str], int], on_unknown: str = "raise") -> EventArrays:
    """Read a history, oldest event first.

    An event is `{"item_id": …}` (clicked after a recommendation), `{"query": …}` (typed) or both (clicked after that
    query). Ids and queries are read as those of a table: 242.0 is "242", and NaN, None and "" are missing. Other keys,
    such as the title and score of an answer, are ignored.

    Args:
        history: the events.
        index_of: item id → row of the identifier table; raises `KeyError` for an unknown item.
        on_unknown: `"raise"`, or `"skip"`: drop events with an unknown item, with a warning.

    Raises:
        ValueError: an unknown item, or an event that is neither a click nor a query.
    """
    check_choice("on_unknown", on_unknown, ON_UNKNOWN)
    rows: list[tuple[int, int, str]] = []
    skipped: list[str] = []
    for position, entry in enumerate(as_events(history)):
        item_id: str | None = ""
        is_typed = False
        if isinstance(entry, Mapping):
            item_id, is_typed = id_of(entry.get("item_id")), _is_given(entry.get("query"))
        if item_id is None:
            raise ValueError(
                f"history[{position}]: {shown(entry.get('item_id'))} is no item id; ids are texts or whole numbers."
            )
        if not (item_id or is_typed):
            raise ValueError(
                f"history[{position}] must be a mapping with 'item_id', 'query' or both, such as {{'item_id': '242'}}; "
                f"got {shown(entry)}."
            )
        for key in entry.keys() - set(EVENT_KEYS):
            if meant := _misspelled(key):
                raise ValueError(f"history[{position}] has the key {shown(key)}; did you mean '{meant}'?")
        query = cut_query(entry["query"]) if is_typed else ""
        behavior, item = Behavior.SEARCH_QUERY, -1
        if item_id:
            behavior = Behavior.SEARCHED_ITEM if query else Behavior.RECOMMENDED_ITEM
            try:
                item = index_of(item_id)
            except KeyError:
                if on_unknown != "skip":
                    raise ValueError(
                        f"history[{position}]: item {shown(item_id)} is not in the model's catalogue; remove it, or "
                        "pass on_unknown='skip' to drop such events."
                    ) from None
                skipped.append(f"history[{position}]: item {shown(item_id)} is not in the catalogue")
                continue
        rows.append((behavior, item, query))
    warn_of_skipped(skipped)
    return EventArrays(*map(list, zip(*rows, strict=True))) if rows else EventArrays([], [], [])


def _is_given(query: Any) -> bool:
    """Whether an event has a query; blank text, None and NaN stand for none."""
    text = text_of(query, separators=())
    return text is None or bool(text.strip())


@lru_cache(maxsize=1000)
def _misspelled(key: Any) -> str | None:
    """The key of an event that another key was probably meant to be."""
    is_short = isinstance(key, str) and len(key) < 20
    close = difflib.get_close_matches(key.lower(), EVENT_KEYS, n=1, cutoff=0.8) if is_short else []
    return close[0] if close else None


def warn_of_skipped(skipped: Sequence[str]) -> None:
    """One warning, however much was skipped."""
    if skipped:
        more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        logger.warning("%s and was skipped%s.", skipped[0], more)


def as_events(history: Any) -> list[Any]:
    """One history as a list, its events unchecked.

    Raises:
        ValueError: not a list of events.
    """
    return as_list(history, "A history", "of events such as {'item_id': '242'}")


# ---- other arguments of a call


def is_list(value: Any) -> bool:
    """Whether a value can be read as a list: a sequence, an array or a column, but no text and no mapping."""
    is_ordered = isinstance(value, Sequence) or getattr(value, "ndim", None) == 1
    return is_ordered and not isinstance(value, (str, bytes, bytearray, Mapping))


def as_list(values: Any, name: str, of_what: str) -> list[Any]:
    """A list that a caller gives.

    Args:
        values: list, tuple, array or column.
        name: what it is, for the message.
        of_what: what it holds, such as "of texts".

    Raises:
        ValueError: not a list, or one of more than `MAX_ENTRIES` entries.
    """
    if not is_list(values):
        raise ValueError(f"{name} must be a list {of_what}; got {shown(values)}.")
    if len(values) > MAX_ENTRIES:
        raise ValueError(f"{name} has {len(values):,} entries; give at most {MAX_ENTRIES:,} in one call.")
    return list(islice(values, len(values)))  # a stream may go on after the length that it gives


def as_batch(history: Any) -> tuple[list[Any], bool]:
    """One history or a list of them as a list, and whether it was one. An empty list is one history.

    Raises:
        ValueError: not a list.
    """
    values = as_events(history)
    is_batch = len(values) > 0 and is_list(values[0])
    return (values if is_batch else [values]), is_batch


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """The argument `name` as a whole number from 1 to `most`; raises a `ValueError` for anything else."""
    is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_number or value < 1 or (most is not None and value > most):
        bound = "" if most is None else f" and at most {most:,}"
        raise ValueError(f"`{name}` must be a whole number of at least 1{bound}; got {shown(value)}.")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """Raise a `ValueError` unless the argument `name` is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False; got {shown(value)}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a `ValueError` unless the argument `name` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {shown(value)}.")
