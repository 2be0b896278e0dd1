import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import Behavior, InteractionDataset, UserEvents
from gensar_hf.data.user_events import user_events

ITEM_IDS = ["a", "b", "c", "d"]
R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM


def make_data(rows: list[tuple]) -> InteractionDataset:
    """rows: (user, item or "", timestamp, query or "")."""
    items = pd.DataFrame({"item_id": ITEM_IDS, "title": "t"})
    return InteractionDataset(items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"]))


def described(events: UserEvents, user: int) -> list[tuple]:
    return [
        (
            Behavior(events.behaviors[event]).token,
            events.item_ids[events.items[event]] if events.items[event] >= 0 else "",
            events.query_texts[events.queries[event]] if events.queries[event] >= 0 else "",
            float(events.timestamps[event]),
        )
        for event in range(events.offsets[user], events.offsets[user + 1])
    ]


def test_behavior_tokens_are_the_papers():
    assert [behavior.token for behavior in Behavior] == ["<R_I>", "<S_Q>", "<S_I>"]
    assert [int(behavior) for behavior in Behavior] == [0, 1, 2]


def test_rows_in_a_row_with_one_query_are_one_session():
    events = make_data(
        [
            ("u", "a", 1, ""),
            ("u", "b", 2, "shoe"),
            ("u", "c", 3, "shoe"),
            ("u", "", 4, "shoe"),  # extends the session, without a click
            ("u", "d", 5, "hat"),
            ("u", "a", 6, "shoe"),  # typed again
            ("u", "b", 7, ""),
            ("u", "", 8, "shoe"),  # and again, after something else; no click
            ("v", "a", 9, "shoe"),  # another user's session is another session
        ]
    ).events
    assert described(events, 0) == [
        ("<R_I>", "a", "", 1.0),
        ("<S_Q>", "", "shoe", 2.0),
        ("<S_I>", "b", "shoe", 2.0),
        ("<S_I>", "c", "shoe", 3.0),
        ("<S_Q>", "", "hat", 5.0),
        ("<S_I>", "d", "hat", 5.0),
        ("<S_Q>", "", "shoe", 6.0),
        ("<S_I>", "a", "shoe", 6.0),
        ("<R_I>", "b", "", 7.0),
        ("<S_Q>", "", "shoe", 8.0),
    ]
    assert described(events, 1) == [("<S_Q>", "", "shoe", 9.0), ("<S_I>", "a", "shoe", 9.0)]
    assert events.query_texts == ["shoe", "hat"]
    assert events.offsets.tolist() == [0, 10, 12]
    assert events.event_users().tolist() == [0] * 10 + [1] * 2
    assert events.session_starts().tolist() == [0, 1, 1, 1, 4, 4, 6, 6, 8, 9, 10, 10]


def test_the_catalogue_keeps_items_that_nobody_clicked():
    events = make_data([("u", "c", 1, "")]).events
    assert events.item_ids == ITEM_IDS
    assert (events.num_users, events.num_items, events.num_events) == (1, 4, 1)
    assert events.items.tolist() == [2]
    assert [events.behaviors.dtype, events.items.dtype, events.queries.dtype] == [np.int8, np.int64, np.int64]
    assert [events.offsets.dtype, events.timestamps.dtype] == [np.int64, np.float64]


def test_tables_of_another_form_are_refused():
    rows = make_data([("u", "a", 1, ""), ("u", "b", 2, ""), ("v", "a", 1, "")]).interactions
    for order, row in (([1, 0, 2], 1), ([0, 2, 1], 2)):
        with pytest.raises(ValueError, match=rf"Row {row} of the interactions is out of order"):
            user_events(ITEM_IDS, rows.iloc[order].reset_index(drop=True))
    with pytest.raises(ValueError, match=r"Row 1 of the interactions has the item 'b', which is not in the catalogue"):
        user_events(["a", "c"], rows)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", "w"]),
        st.sampled_from(["", *ITEM_IDS]),
        st.integers(0, 6),
        st.sampled_from(["", "shoe", "hat"]),
    ).filter(lambda row: row[1] or row[3]),
    min_size=1,
    max_size=40,
)


@settings(max_examples=15, deadline=None)
@given(ROWS)
def test_events_keep_the_sessions_of_the_rows(rows):
    data = make_data(rows)
    events = data.events
    for user, user_id in enumerate(events.user_ids):
        sessions: list[list] = []  # of the rows: [query, time of the first row, clicks]; "" separates sessions
        for row in data.interactions[data.interactions["user_id"] == user_id].itertuples():
            if not (row.query and sessions and sessions[-1][0] == row.query):
                sessions.append([row.query, row.timestamp, []])
            sessions[-1][2] += [(row.item_id, row.timestamp)] if row.item_id else []
        told: list[list] = []  # of the events
        for token, item, query, time in described(events, user):
            if token != "<S_I>":
                told.append([query, time, []])
            if token != "<S_Q>":
                assert told[-1][0] == query
                told[-1][2].append((item, time))
        assert told == sessions
    assert list(events.user_ids) == list(dict.fromkeys(data.interactions["user_id"]))


@settings(max_examples=15, deadline=None)
@given(ROWS)
def test_the_arrays_keep_their_promises(rows):
    events = make_data(rows).events
    users = events.event_users()
    assert len(users) == events.num_events == len(events.items) == len(events.queries) == len(events.timestamps)
    assert events.offsets[0] == 0
    assert events.offsets[-1] == events.num_events
    assert ((events.items < 0) == (events.behaviors == Q)).all()
    assert ((events.queries < 0) == (events.behaviors == R)).all()
    assert not ((np.diff(events.timestamps) < 0) & (np.diff(users) == 0)).any()
    assert sorted(set(events.queries[events.queries >= 0].tolist())) == list(range(len(events.query_texts)))
    starts = events.session_starts()[events.behaviors == S]
    assert (events.behaviors[starts] == Q).all()
    assert (events.queries[starts] == events.queries[events.behaviors == S]).all()
    assert (users[starts] == users[events.behaviors == S]).all()
