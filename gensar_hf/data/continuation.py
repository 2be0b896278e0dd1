"""A log that goes on: what came before a moment, what came later, and the two put together again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from gensar_hf.data.interactions import InteractionLog
from gensar_hf.data.user_events import UserEvents, events_from_log
from gensar_hf.errors import InputError


def part_in_time(log: InteractionLog, later_share: float) -> tuple[InteractionLog, InteractionLog]:
    """Part a log at the moment when all but a share of its rows have passed.

    Args:
        log: it is not changed.
        later_share: of the rows, above 0 and below 1; rows of one time stay together, on the later side.

    Returns:
        what came before, with all items that were clicked by then or never; and what came later, with the items alone
        that were clicked then for the first time.

    Raises:
        InputError: all rows are of one time, or the share leaves no row on either side.
    """
    times = log.interactions["timestamp"].to_numpy()
    num_earlier = round((1 - later_share) * len(times))
    is_later = times >= np.append(np.sort(times), np.inf)[num_earlier]
    if is_later.all() or not is_later.any():
        raise InputError(
            f"The log of {len(times)} interactions cannot be parted in time with a later share of {later_share}: all "
            "of them would be on one side."
        )
    earlier, later = log.interactions[~is_later], log.interactions[is_later]
    is_new = (log.items["item_id"].isin(later["item_id"]) & ~log.items["item_id"].isin(earlier["item_id"])).to_numpy()
    old_part, new_part = (
        replace(log, items=log.items[items].reset_index(drop=True), interactions=rows.reset_index(drop=True))
        for items, rows in ((~is_new, earlier), (is_new, later))
    )
    return old_part, new_part


def append_log(log: InteractionLog, other: InteractionLog) -> InteractionLog:
    """Both logs' rows, by user and time (of one time, those of `log` first), and the items of the other behind.

    Args:
        log: the first; its text columns are those of the result.
        other: with items that the first has not.
    """
    rows = pd.concat([log.interactions, other.interactions], ignore_index=True)
    users = pd.factorize(rows["user_id"])[0]
    order = np.lexsort((rows["timestamp"].to_numpy(), users))
    items = pd.concat([log.items, other.items], ignore_index=True)
    return InteractionLog(items, rows.iloc[order].reset_index(drop=True), log.text_columns)


def newer_starts(older: InteractionLog, newer: InteractionLog, events: UserEvents) -> np.ndarray:
    """Where each user's newer events begin.

    Args:
        older: what a model was trained on.
        newer: interactions that came later.
        events: of `append_log(older, newer)`.

    Returns:
        `(num_users,)` int64 event index.

    Raises:
        InputError: a user's newer interaction is earlier than one of the older log.
    """
    last = older.interactions.groupby("user_id")["timestamp"].max()
    rows = newer.interactions
    is_too_early = (rows["timestamp"] < rows["user_id"].map(last)).to_numpy()
    if is_too_early.any():
        first = rows[is_too_early].iloc[0]
        raise InputError(
            f"{int(is_too_early.sum())} of the newer interactions are not newer: user {first['user_id']} has one at "
            f"{first['timestamp']:.10g}, and the model's log one at {last[first['user_id']]:.10g}; give only what came "
            "later."
        )
    # A row makes the same events whatever comes behind it.
    before = events_from_log(older)
    num_events = dict(zip(before.user_ids, np.diff(before.offsets).tolist(), strict=True))
    return events.offsets[:-1] + np.array([num_events.get(user, 0) for user in events.user_ids], dtype=np.int64)
