"""Splits: which events training may read, and which clicks are held out as requests.

The rule: nothing at or after a user's earliest held-out event is training material, in any stage.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from gensar_hf.data.user_events import Behavior, UserEvents
from gensar_hf.errors import InputError
from gensar_hf.files import fingerprint, load_array_metadata, load_arrays, save_arrays

logger = logging.getLogger(__name__)

RECOMMENDATION, SEARCH = "recommendation", "search"
TASKS = (RECOMMENDATION, SEARCH)
_TARGET_BEHAVIOR = {RECOMMENDATION: Behavior.RECOMMENDED_ITEM, SEARCH: Behavior.SEARCHED_ITEM}
SplitMethod: TypeAlias = Literal["leave_one_out", "chronological", "none", "held_out"]
_SPLIT_FILE = "split.safetensors"
_BLOCK_EVENTS = 1 << 22  # that are split at a time; the arrays needed for it take about 60 bytes an event
# Of some users' events: where training ends, and the targets of validation and test by task, as event indices.
_Cut: TypeAlias = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Requests:
    """Held-out clicks of one task, to be predicted from the user's history and, for search, the query.

    Attributes:
        task: `recommendation` or `search`.
        events: the events that `targets` and the histories index.
        targets: `(num_requests,)` int64 event indices of the clicks to be predicted.
    """

    task: str
    events: UserEvents
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def users(self) -> np.ndarray:
        """The user of each request, `(num_requests,)` int64."""
        return np.searchsorted(self.events.offsets, self.targets, side="right").astype(np.int64) - 1

    @property
    def target_items(self) -> np.ndarray:
        """The item of each target, `(num_requests,)` int64."""
        return self.events.items[self.targets]

    @property
    def query_texts(self) -> list[str]:
        """The query of each request, "" for a recommendation."""
        texts, queries = self.events.query_texts, self.events.queries[self.targets]
        return [texts[query] if query >= 0 else "" for query in queries.tolist()]

    def history(self, row: int) -> np.ndarray:
        """The events that the model may read for request `row`, oldest first, `(num_history,)` int64 event indices.

        All events of the user before the target, except

        - the query event of the target's session: the query is passed separately;
        - twins of the target (same item, same timestamp), which would give the answer away: in some data one review
          is both a recommendation and a search. The query event of a twin with that timestamp is removed as well.
        """
        events, target = self.events, int(self.targets[row])
        start = int(events.offsets[np.searchsorted(events.offsets, target, side="right") - 1])
        positions = np.arange(start, target, dtype=np.int64)
        at_once = events.timestamps[positions] == events.timestamps[target]
        twins = at_once & (events.items[positions] == events.items[target])
        dropped = twins.copy()
        if events.behaviors[target] == Behavior.SEARCHED_ITEM:
            dropped[_session_query(events, start, target) - start] = True
        for twin in positions[twins & (events.behaviors[positions] == Behavior.SEARCHED_ITEM)]:
            query_event = _session_query(events, start, int(twin)) - start
            dropped[query_event] |= at_once[query_event]
        return positions[~dropped]

    def subset(self, rows: np.ndarray | Sequence[int]) -> Requests:
        """The requests at `rows` (indices or a mask), in that order."""
        chosen = np.asarray(rows) if len(rows) else np.empty(0, dtype=np.int64)  # numpy reads an empty list as floats
        return Requests(self.task, self.events, self.targets[chosen])


def _session_query(events: UserEvents, start: int, searched_item: int) -> int:
    """The query event of the session of a searched item: the last one before it."""
    return start + int(np.flatnonzero(events.behaviors[start:searched_item] == Behavior.SEARCH_QUERY)[-1])


@dataclass(frozen=True, eq=False)
class Split:
    """Training events and held-out requests.

    Attributes:
        events: all events.
        train_ends: `(num_users,)` int64 event index; training may read `events.offsets[u]:train_ends[u]` only.
        validation: the requests for model selection, by task; a task may have none.
        test: the requests to report, by task.
        target_starts: `(num_users,)` int64 event index; events before it are history only, neither training targets
            nor requests. Default: the first event of each user.
    """

    events: UserEvents
    train_ends: np.ndarray
    validation: dict[str, Requests]
    test: dict[str, Requests]
    target_starts: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.target_starts is None:
            object.__setattr__(self, "target_starts", self.events.offsets[:-1])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `split.safetensors` into `folder`, without the events and with a fingerprint of them."""
        arrays = {"train_ends": self.train_ends, "target_starts": self.target_starts}
        for task in TASKS:
            arrays[f"validation_{task}"] = self.validation[task].targets
            arrays[f"test_{task}"] = self.test[task].targets
        save_arrays(Path(folder) / _SPLIT_FILE, arrays, {"events": _events_fingerprint(self.events)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], events: UserEvents) -> Split:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or damaged, or was made from other events.
        """
        path = Path(folder) / _SPLIT_FILE
        if load_array_metadata(path).get("events") != _events_fingerprint(events):
            raise InputError(f"{path} was made from other interactions; delete the folder and write the dataset again.")
        arrays = load_arrays(path)
        validation, test = (
            {task: Requests(task, events, arrays[f"{part}_{task}"]) for task in TASKS}
            for part in ("validation", "test")
        )
        if all(np.array_equal(validation[task].targets, test[task].targets) for task in TASKS):
            validation = test
        return cls(events, arrays["train_ends"], validation, test, arrays.get("target_starts", events.offsets[:-1]))


def _events_fingerprint(events: UserEvents) -> str:
    return events.digest or fingerprint(
        events.user_ids, events.item_ids, events.query_texts, events.offsets, events.behaviors, events.items,
        events.queries, events.timestamps,
    )  # fmt: skip


def make_split(events: UserEvents, method: SplitMethod, target_starts: np.ndarray | None = None) -> Split:
    """Split the events by a named method.

    Args:
        events: all users' events.
        method: `"leave_one_out"` and `"chronological"`: the functions of these names with their defaults. `"none"`: no
            requests, everything is for training. `"held_out"`: every click from `target_starts` on is a test and a
            validation request, and training may read only what is before `target_starts`.
        target_starts: as in `Split`.

    Raises:
        InputError: as in `chronological_cut`.
    """
    if method == "leave_one_out":
        return leave_one_out(events, target_starts=target_starts)
    if method == "chronological":
        return chronological_cut(events, target_starts=target_starts)
    starts = _default_starts(events, target_starts)
    targets = dict.fromkeys(TASKS, np.empty(0, dtype=np.int64))
    if method == "held_out":
        is_target = _is_target(events, starts)
        targets = {task: np.flatnonzero(is_target & (events.behaviors == _TARGET_BEHAVIOR[task])) for task in TASKS}
    requests = _requests(events, targets)
    train_ends = starts if method == "held_out" else events.offsets[1:]
    _report(events, train_ends, targets)
    return Split(events, train_ends, requests, requests, starts)


def leave_one_out(events: UserEvents, min_train_events: int = 1, target_starts: np.ndarray | None = None) -> Split:
    """Hold out, per user and task, the last click (test) and the last but one (validation).

    A user with at least two clicks of a task has a test request, one with at least three also a validation request, so
    that one click of the task stays in the history. A user's training events end STRICTLY before the earliest held-out
    event, or before its query if it is a searched item: an event at the same timestamp is not a training event, since
    the order within one timestamp is the file's, not the user's. On MovieLens-100k (search fraction 0.4, seed 0), where
    64 % of the events share their timestamp with the previous one, that leaves 129,792 of 139,158 events for training;
    by order only it would be 131,235.

    A user who would keep fewer than `min_train_events` training events gives up requests, in this order, until enough
    are kept: both validation requests; then the test request of the task with fewer clicks (search in a tie); then the
    other one, so that all events are training events.

    Args:
        events: all users' events.
        min_train_events: how many events (queries included) a user with requests must keep.
        target_starts: as in `Split`; clicks before it are not requests.

    Raises:
        ValueError: `min_train_events` is negative.
    """
    if min_train_events < 0:
        raise ValueError(f"`min_train_events` counts events and cannot be negative; got {min_train_events}.")
    target_starts = _default_starts(events, target_starts)
    return _split_in_blocks(events, target_starts, partial(_leave_one_out, min_train_events=min_train_events))


def _split_in_blocks(
    events: UserEvents, target_starts: np.ndarray, cut: Callable[[UserEvents, np.ndarray], _Cut]
) -> Split:
    """Split the events of some users at a time; `cut` takes their events and their target starts."""
    train_ends = np.empty(events.num_users, dtype=np.int64)
    targets: dict[str, list[list[np.ndarray]]] = {task: [[], []] for task in TASKS}
    first = 0
    while first < events.num_users:
        start = int(events.offsets[first])
        last = max(first + 1, int(np.searchsorted(events.offsets, start + _BLOCK_EVENTS, side="right")) - 1)
        ends, *parts = cut(events.users(first, last), target_starts[first:last] - start)
        train_ends[first:last] = ends + start
        for task in TASKS:
            for found, part in zip(targets[task], parts, strict=True):
                found.append(part[task] + start)
        first = last
    empty = np.empty(0, dtype=np.int64)
    validation, test = ({task: np.concatenate([empty, *targets[task][part]]) for task in TASKS} for part in (0, 1))
    _report(events, train_ends, test)
    return Split(events, train_ends, _requests(events, validation), _requests(events, test), target_starts)


def _leave_one_out(events: UserEvents, target_starts: np.ndarray, min_train_events: int) -> _Cut:
    starts, ends = events.offsets[:-1], events.offsets[1:]
    test, validation, counts = {}, {}, {}
    for task in TASKS:
        last, before_last, counts[task] = _last_clicks(events, task)
        test[task] = np.where(last >= target_starts, last, -1)
        validation[task] = np.where(before_last >= target_starts, before_last, -1)
    train_limits = _train_limits(events)

    def train_ends(*held_out: np.ndarray) -> np.ndarray:
        limits = [np.where(clicks >= 0, train_limits[clicks], ends) for clicks in held_out]
        return np.minimum.reduce(limits)

    longer_is_search = test[SEARCH] >= 0
    longer_is_search &= (counts[SEARCH] > counts[RECOMMENDATION]) | (test[RECOMMENDATION] < 0)
    longer_test = np.where(longer_is_search, test[SEARCH], test[RECOMMENDATION])
    with_all = train_ends(*test.values(), *validation.values())
    with_tests = train_ends(*test.values())
    with_longer_test = train_ends(longer_test)

    keeps_all = with_all - starts >= min_train_events
    keeps_tests = keeps_all | (with_tests - starts >= min_train_events)
    keeps_longer_test = keeps_tests | (with_longer_test - starts >= min_train_events)
    for task in TASKS:
        is_longer = longer_is_search == (task == SEARCH)
        validation[task] = validation[task][keeps_all & (validation[task] >= 0)]
        test[task] = test[task][(keeps_tests | (keeps_longer_test & is_longer)) & (test[task] >= 0)]
    kept = np.select([keeps_all, keeps_tests, keeps_longer_test], [with_all, with_tests, with_longer_test], ends)
    return kept, validation, test


def _last_clicks(events: UserEvents, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per user: the last click of the task, the last but one (both -1 if there are too few), and their number."""
    clicks = np.flatnonzero(events.behaviors == _TARGET_BEHAVIOR[task])
    ends = np.searchsorted(clicks, events.offsets)
    counts = np.diff(ends)
    last, before_last = np.full((2, events.num_users), -1, dtype=np.int64)
    last[counts >= 2] = clicks[ends[1:][counts >= 2] - 1]
    before_last[counts >= 3] = clicks[ends[1:][counts >= 3] - 2]
    return last, before_last, counts


def _train_limits(events: UserEvents) -> np.ndarray:
    """Where training ends if an event is held out: the first event at the timestamp of it, or of its query."""
    positions = np.arange(events.num_events, dtype=np.int64)
    first_at_its_time = np.ones(events.num_events, dtype=bool)
    first_at_its_time[1:] = np.diff(events.timestamps) != 0
    first_at_its_time[events.offsets[:-1]] = True
    return np.maximum.accumulate(np.where(first_at_its_time, positions, 0))[events.session_starts()]


def _requests(events: UserEvents, targets: dict[str, np.ndarray]) -> dict[str, Requests]:
    return {task: Requests(task, events, targets[task].astype(np.int64)) for task in TASKS}


def _report(events: UserEvents, train_ends: np.ndarray, test: dict[str, np.ndarray]) -> None:
    logger.info(
        "%d of %d events are training events; %d recommendation and %d search requests are held out for testing.",
        int((train_ends - events.offsets[:-1]).sum()),
        events.num_events,
        len(test[RECOMMENDATION]),
        len(test[SEARCH]),
    )


def chronological_cut(
    events: UserEvents,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    target_starts: np.ndarray | None = None,
) -> Split:
    """Cut all events at the moments when the first fraction, and the first two fractions, of them have passed.

    Training events come before the first cut, later clicks are validation requests, and from the second cut on test
    requests. A search session that begins before the first cut and has a click after it is not training material, nor
    is what its user did at the moment of its query or later. Timestamps must be comparable between users.

    Args:
        events: all users' events.
        fractions: shares of training, validation and test events, whose sum is 1; that of training is positive.
        target_starts: as in `Split`; events before it do not count and are not requests.

    Raises:
        ValueError: the fractions are not such shares.
        InputError: no event is earlier than the first cut.
    """
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"`fractions` must be three shares whose sum is 1, the first positive; got {fractions}.")
    target_starts = _default_starts(events, target_starts)
    has_history = (target_starts > events.offsets[:-1]).any()
    times = np.sort(events.timestamps[_is_target(events, target_starts)] if has_history else events.timestamps)
    passed = (round(fractions[0] * len(times)), round((fractions[0] + fractions[1]) * len(times)))
    first_cut, second_cut = (float(times[count]) if count < len(times) else np.inf for count in passed)
    del times
    split = _split_in_blocks(events, target_starts, partial(_cut_at, first_cut=first_cut, second_cut=second_cut))
    if not (split.train_ends > target_starts).any():
        raise InputError(
            f"No event is earlier than the first cut at timestamp {first_cut}, so nothing is left for training; cut "
            "later, by a larger share of training, or use leave-one-out."
        )
    return split


def _cut_at(events: UserEvents, target_starts: np.ndarray, first_cut: float, second_cut: float) -> _Cut:
    is_late = _is_target(events, target_starts) & (events.timestamps >= first_cut)
    limits = np.where(is_late, _train_limits(events), events.num_events)
    ends = events.offsets[1:].copy()
    np.minimum.at(ends, events.event_users(), limits)
    validation, test = {}, {}
    for task in TASKS:
        clicks = np.flatnonzero(is_late & (events.behaviors == _TARGET_BEHAVIOR[task]))
        is_test = events.timestamps[clicks] >= second_cut
        validation[task], test[task] = clicks[~is_test], clicks[is_test]
    return ends, validation, test


def _default_starts(events: UserEvents, target_starts: np.ndarray | None) -> np.ndarray:
    return events.offsets[:-1] if target_starts is None else target_starts


def _is_target(events: UserEvents, target_starts: np.ndarray) -> np.ndarray:
    """Events that may be training targets or requests, `(num_events,)` bool."""
    return np.arange(events.num_events) >= target_starts[events.event_users()]


def training_mask(split: Split) -> np.ndarray:
    """Which events training may read, `(num_events,)` bool."""
    users = split.events.event_users()
    return np.arange(split.events.num_events) < split.train_ends[users]


def training_events(split: Split) -> UserEvents:
    """The events that training may read, and nothing else.

    Users, items and queries keep their indices. The text of a query that no training event has is "".

    Returns:
        The same users (some of them may have no events) and the same items.
    """
    events, mask = split.events, training_mask(split)
    queries = events.queries[mask]
    used = set(queries.tolist())
    return UserEvents(
        user_ids=events.user_ids,
        item_ids=events.item_ids,
        query_texts=[text if query in used else "" for query, text in enumerate(events.query_texts)],
        offsets=np.concatenate([[0], np.cumsum(split.train_ends - events.offsets[:-1])]).astype(np.int64),
        behaviors=events.behaviors[mask],
        items=events.items[mask],
        queries=queries,
        timestamps=events.timestamps[mask],
    )
