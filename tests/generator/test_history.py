import logging

import pandas as pd
import pytest

from gensar_hf.data import Behavior
from gensar_hf.generator.history import EventArrays, cut_query, parse_history

R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM
ROWS = {"242": 0, "302": 1, "377": 2}


def short(events: EventArrays) -> list[tuple]:
    return [(behavior, query if behavior is Q else item) for behavior, item, query in zip(*events, strict=True)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], []),
        ([{"item_id": "242"}, {"item_id": "377", "query": ""}, {"item_id": 302}], [(R, 0), (R, 2), (R, 1)]),
        ([{"query": "comedy"}, {"item_id": "242", "query": "comedy"}], [(Q, "comedy"), (S, 0)]),
        ([{"item_id": "242", "query": "comedy"}], [(Q, "comedy"), (S, 0)]),
        (
            [{"query": "comedy"}, {"item_id": "242", "query": "comedy"}, {"item_id": "302", "query": "comedy"}],
            [(Q, "comedy"), (S, 0), (S, 1)],
        ),
        ([{"query": "comedy"}, {"item_id": "242", "query": "war"}], [(Q, "comedy"), (Q, "war"), (S, 0)]),
        (
            [{"item_id": "242", "query": "war"}, {"item_id": "302"}, {"item_id": "377", "query": "war"}],
            [(Q, "war"), (S, 0), (R, 1), (Q, "war"), (S, 2)],
        ),
        ([{"query": "war"}, {"query": "war"}], [(Q, "war"), (Q, "war")]),
        (({"item_id": None, "query": " war "},), [(Q, "war")]),
    ],
)
def test_a_session_is_one_query_and_its_clicks(history: list, expected: list) -> None:
    assert short(parse_history(history, ROWS.__getitem__).with_query_events()) == expected


def test_a_searched_item_remembers_its_query() -> None:
    assert parse_history([{"item_id": "242", "query": "war"}], ROWS.__getitem__) == ([S], [0], ["war"])


def test_an_unknown_item_is_named_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"history\[1\]: item '999' is not in the model's catalogue; .*on_unknown"):
        parse_history([{"item_id": "242"}, {"item_id": "999"}], ROWS.__getitem__)


def test_an_unknown_item_may_be_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    history = [{"item_id": "242"}, {"item_id": "999"}, {"item_id": "302"}]
    with caplog.at_level(logging.WARNING):
        events = parse_history(history, ROWS.__getitem__, on_unknown="skip")
    assert short(events) == [(R, 0), (R, 1)]
    assert "history[1]: item '999' is not in the catalogue and was skipped" in caplog.text


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([{"title": "x"}], r"history\[0\] must be a mapping with 'item_id', 'query' or both.*got \{'title': 'x'\}"),
        ([{"item_id": "242"}, "302"], r"history\[1\] must be a mapping .*got '302'"),
        ([{}], r"history\[0\] must be a mapping"),
        ("242", r"A history must be a list of events .*got '242'"),
        ({"item_id": "242"}, r"A history must be a list of events"),
        (None, r"A history must be a list of events .*got None"),
        ([{"query": 7}], r"A query must be text with at least one word; got 7"),
        ([{"query": " \t"}], r"history\[0\] must be a mapping"),
    ],
)
def test_what_is_no_history_is_refused(history: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_history(history, ROWS.__getitem__)  # type: ignore[arg-type]


def test_an_unknown_way_of_handling_unknown_items_is_refused() -> None:
    with pytest.raises(ValueError, match="`on_unknown` must be one of raise, skip; got 'drop'"):
        parse_history([], ROWS.__getitem__, on_unknown="drop")


def test_a_long_query_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert cut_query("x" * 10_000) == "x" * 1000
    assert "A query of 10000 characters was cut to the first 1000" in caplog.text
    caplog.clear()
    assert cut_query("x" * 1000) == "x" * 1000
    assert not caplog.text


def test_a_history_made_from_a_data_frame() -> None:
    """Ids become floats, and missing queries NaN, where a frame has missing values."""
    for missing in (None, float("nan"), pd.NA, pd.NaT, "", " "):
        frame = pd.DataFrame({"item_id": [242.0, None, 302.0], "query": ["war", "space  film", None]})
        records = frame.astype(object).where(frame.notna(), missing).to_dict("records")
        assert parse_history(records, ROWS.__getitem__) == ([S, Q, R], [0, -1, 1], ["war", "space film", ""])
    for event in ({"item_id": [242]}, {"item_id": True}, {"item_id": 242.5}, {"item_id": float("nan")}):
        with pytest.raises(ValueError, match=r"history\[0\](: .* is no item id| must be a mapping)"):
            parse_history([event], ROWS.__getitem__)
