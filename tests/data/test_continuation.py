"""A log parted in time and put together again."""

import numpy as np
import pandas as pd
import pytest

from gensar_hf.data import InteractionLog, append_log, events_from_log, load_log, newer_starts, part_in_time
from gensar_hf.errors import InputError

ROWS = [
    ("u", "a", 1, ""), ("u", "b", 2, "x"), ("u", "c", 5, "x"), ("u", "a", 6, ""),
    ("v", "a", 3, ""), ("v", "b", 4, ""), ("v", "d", 7, "y"),
    ("w", "d", 8, ""),
]  # fmt: skip


def make_log(rows: list[tuple]) -> InteractionLog:
    items = pd.DataFrame({"item_id": list("abcde"), "title": list("ABCDE")})
    return load_log(items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"]))


def test_a_log_is_parted_at_the_moment_when_a_share_has_passed() -> None:
    log = make_log(ROWS)
    earlier, later = part_in_time(log, 0.5)
    assert earlier.interactions["timestamp"].tolist() == [1, 2, 3, 4]
    assert later.interactions["timestamp"].tolist() == [5, 6, 7, 8]
    assert earlier.items["item_id"].tolist() == ["a", "b", "e"]  # e was never clicked
    assert later.items["item_id"].tolist() == ["c", "d"]
    together = append_log(earlier, later)
    pd.testing.assert_frame_equal(together.interactions, log.interactions)
    assert together.items["item_id"].tolist() == ["a", "b", "e", "c", "d"]


def test_rows_of_one_time_stay_together() -> None:
    earlier, later = part_in_time(make_log([(*row[:2], min(row[2], 4), row[3]) for row in ROWS]), 0.25)
    assert (len(earlier.interactions), len(later.interactions)) == (3, 5)
    with pytest.raises(InputError, match="cannot be parted in time"):
        part_in_time(make_log([(*row[:2], 4, row[3]) for row in ROWS]), 0.25)
    with pytest.raises(InputError, match="cannot be parted in time"):
        part_in_time(make_log(ROWS), 0.01)


def test_newer_events_begin_behind_the_older_ones() -> None:
    earlier, later = part_in_time(make_log(ROWS), 0.5)
    events = events_from_log(append_log(earlier, later))
    starts = newer_starts(earlier, later, events)
    # u: a ?x b | c a, its session going on; v: a b | ?y d; w: | d
    assert (starts - events.offsets[:-1]).tolist() == [3, 2, 0]
    assert np.diff(events.offsets).tolist() == [5, 4, 1]
    with pytest.raises(InputError, match="1 of the newer interactions are not newer: user v has one at 3"):
        newer_starts(earlier, make_log([("v", "d", 3, "")]), events)
