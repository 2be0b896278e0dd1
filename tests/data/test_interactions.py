import json
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import InteractionLog, k_core, load_log
from gensar_hf.errors import InputError

ITEMS = pd.DataFrame(
    {
        "item_id": ["B1", "B2", "B3"],
        "title": ["Lip  Balm", None, "Soap"],
        "brand": ["Acme", "Best", ""],
        "price": [1.5, None, 2.0],
    }
)
INTERACTIONS = pd.DataFrame(
    {
        "user_id": ["v", "u", "v", "u"],
        "item_id": ["B1", "B2", "B3", None],
        "timestamp": [30, 10, 20, 5],
        "query": ["", "dry lips", None, "soap"],
    }
)


def rows(log: InteractionLog) -> list[tuple]:
    return list(log.interactions.itertuples(index=False, name=None))


def test_the_log_is_sorted_by_first_appearance_of_the_user_then_time():
    log = load_log(ITEMS, INTERACTIONS)
    assert rows(log) == [
        ("v", "B3", 20.0, ""),
        ("v", "B1", 30.0, ""),
        ("u", "", 5.0, "soap"),
        ("u", "B2", 10.0, "dry lips"),
    ]
    assert list(log.interactions.columns) == ["user_id", "item_id", "timestamp", "query"]
    assert log.interactions["timestamp"].dtype == np.float64


def test_equal_times_keep_the_order_of_the_file():
    interactions = pd.DataFrame({"user_id": ["u"] * 4, "item_id": ["B3", "B1", "B2", "B1"], "timestamp": [1, 1, 0, 1]})
    assert [row[1] for row in rows(load_log(ITEMS, interactions))] == ["B2", "B3", "B1", "B1"]


def test_item_texts_join_the_text_columns_that_are_not_empty():
    log = load_log(ITEMS, INTERACTIONS)
    assert log.text_columns == ("title", "brand")
    assert log.item_texts() == ["Lip Balm. Acme", "Best", "Soap"]
    assert list(log.items.columns) == ["item_id", "title", "brand", "price"]
    assert load_log(ITEMS, INTERACTIONS, ["brand", "title"]).item_texts()[0] == "Acme. Lip Balm"


def test_lists_and_whole_numbers_become_text():
    items = pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "categories": [["Beauty", "Hair"], [["Beauty", "Hair"], ["Toys"]], None],
            "year": [1995.0, None, 2001.0],
        }
    )
    log = load_log(items, pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [0]}))
    assert log.items["categories"].tolist() == ["Beauty, Hair", "Beauty > Hair, Toys", ""]
    assert log.item_texts() == ["Beauty, Hair. 1995", "Beauty > Hair, Toys", "2001"]


@pytest.mark.parametrize("extension", ["parquet", "csv", "tsv", "jsonl", "json", "frame", "dataset"])
def test_every_kind_of_table_gives_the_same_log(tmp_path, extension):
    def stored(frame: pd.DataFrame, name: str):
        path = tmp_path / f"{name}.{extension}"
        match extension:
            case "parquet":
                frame.to_parquet(path)
            case "csv" | "tsv":
                frame.to_csv(path, index=False, sep="," if extension == "csv" else "\t")
            case "jsonl" | "json":
                frame.to_json(path, orient="records", lines=extension == "jsonl")
            case "frame":
                return frame
            case "dataset":
                import datasets

                return datasets.Dataset.from_pandas(frame)
        return path

    log = load_log(stored(ITEMS, "items"), stored(INTERACTIONS, "interactions"))
    assert rows(log) == rows(load_log(ITEMS, INTERACTIONS))
    assert log.item_texts() == ["Lip Balm. Acme", "Best", "Soap"]


def test_ids_match_whatever_their_type(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n242,Kolya\n7,Twelve\n")
    frame = pd.DataFrame(
        {"user_id": [1, 1, 2], "item_id": [242, None, 7], "timestamp": [1, 2, 3], "query": ["", "x", ""]}
    )
    assert frame["item_id"].dtype == np.float64
    frame.to_csv(tmp_path / "interactions.csv", index=False)
    assert "242.0" in (tmp_path / "interactions.csv").read_text()
    expected = [("1", "242", 1.0, ""), ("1", "", 2.0, "x"), ("2", "7", 3.0, "")]
    for interactions in (frame, tmp_path / "interactions.csv", frame.astype({"item_id": "category"})):
        assert rows(load_log(tmp_path / "items.csv", interactions)) == expected
    integers = pd.DataFrame({"item_id": [242, 7], "title": ["Kolya", "Twelve"]})
    assert rows(load_log(integers, frame)) == expected
    mixed = pd.DataFrame({"item_id": pd.Series([242, "7"], dtype=object), "title": ["Kolya", "Twelve"]})
    assert rows(load_log(mixed, frame)) == expected


def test_csv_keeps_leading_zeros_titles_named_na_and_quoted_commas(tmp_path):
    (tmp_path / "items.csv").write_text('\ufeffitem_id,title\n007,"NA, or not"\n7,NA\n', encoding="utf-8")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,007,1\n")
    log = load_log(tmp_path / "items.csv", tmp_path / "interactions.csv")
    assert log.items["item_id"].tolist() == ["007", "7"]
    assert log.item_texts() == ["NA, or not", "NA"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1970-01-02", "1970-01-01T00:00:01", "1970-01-01 01:00:00+01:00"], [86400.0, 1.0, 0.0]),
        (["3", "1.5", "-2"], [3.0, 1.5, -2.0]),
        (pd.to_datetime(["1970-01-02 00:00:00", "1970-01-01 00:00:01", "1970-01-01 00:00:00"]), [86400.0, 1.0, 0.0]),
        (
            pd.to_datetime(["1970-01-02 00:00:00", "1970-01-01 00:00:01", "1970-01-01 00:00:00"], utc=True),
            [86400.0, 1.0, 0.0],
        ),
        (np.array([3, 2, 1], dtype=np.int16), [3.0, 2.0, 1.0]),
    ],
)
def test_times_in_all_their_forms(times, expected):
    frame = pd.DataFrame({"user_id": ["a", "b", "c"], "item_id": ["B1"] * 3, "timestamp": times})
    assert load_log(ITEMS, frame).interactions["timestamp"].tolist() == expected


def test_order_stands_in_for_a_timestamp():
    frame = pd.DataFrame({"user_id": ["a"] * 2, "item_id": ["B1", "B2"], "order": [1, 0]})
    assert rows(load_log(ITEMS, frame)) == [("a", "B2", 0.0, ""), ("a", "B1", 1.0, "")]


@pytest.mark.parametrize("length", [1001, 10_000, 10_001])
def test_a_very_long_query_is_cut_with_a_warning(caplog, length):
    frame = INTERACTIONS.assign(query=["ok", "x" * length, "y" * 1000, "z"])
    with caplog.at_level(logging.WARNING):
        log = load_log(ITEMS, frame)
    assert sorted(log.interactions["query"].str.len()) == [1, 2, 1000, 1000]
    assert f"row 2, column query: {length} characters are cut to 1,000 (1 such rows" in caplog.text


def changed(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    return frame.assign(**{column: pd.Series([*frame[column][:row], value, *frame[column][row + 1 :]], dtype=object)})


BAD_TABLES = {
    "missing user column": (
        ITEMS,
        INTERACTIONS.rename(columns={"user_id": "userId"}),
        "no column user_id, only userId, item_id.*rename 'userId' to 'user_id'",
    ),
    "missing time column": (
        ITEMS,
        INTERACTIONS.drop(columns="timestamp"),
        "no column timestamp.*add a column named 'timestamp'",
    ),
    "missing item id column": (
        ITEMS.rename(columns={"item_id": "asin"}),
        INTERACTIONS,
        "items table has no column item_id",
    ),
    "duplicate item": (
        changed(ITEMS, "item_id", 2, "B1"),
        INTERACTIONS,
        "items table, row 3, column item_id: 'B1' stands in row 1 already; keep one row",
    ),
    "item without id": (changed(ITEMS, "item_id", 1, " "), INTERACTIONS, "row 2, column item_id: ' ' is no item id"),
    "unknown item": (
        ITEMS,
        changed(INTERACTIONS, "item_id", 2, "B9"),
        "interactions table, row 3, column item_id: 'B9' is not an item of the items table; add the item",
    ),
    "no items": (ITEMS.iloc[:0], INTERACTIONS, "the items table holds no rows"),
    "no interactions": (ITEMS, INTERACTIONS.iloc[:0], "the interactions table holds no rows"),
    "NaN time": (
        ITEMS,
        changed(INTERACTIONS, "timestamp", 3, np.nan),
        "row 4, column timestamp: nan is no time, the value is missing",
    ),
    "blank time": (
        ITEMS,
        INTERACTIONS.assign(timestamp=["1", "2", " ", "3"]),
        "row 3, column timestamp: ' ' is no time",
    ),
    "infinite time": (
        ITEMS,
        INTERACTIONS.assign(timestamp=[1, np.inf, 2, 3]),
        "row 2, column timestamp: inf is not a finite number",
    ),
    "no date": (
        ITEMS,
        INTERACTIONS.assign(timestamp=["1", "2", "yesterday", "3"]),
        "row 3, column timestamp: 'yesterday' is neither a number nor an ISO date; give",
    ),
    "no date in row 1": (
        ITEMS,
        INTERACTIONS.assign(timestamp=["yesterday", "2", "1", "3"]),
        "row 1, column timestamp: 'yesterday' is neither",
    ),
    "no date among dates": (
        ITEMS,
        INTERACTIONS.assign(timestamp=["2024-01-01", "2024-02-30", "2024-03-01", "2024-03-02"]),
        "row 2, column timestamp: '2024-02-30' is neither",
    ),
    "numbers and dates": (
        ITEMS,
        INTERACTIONS.assign(timestamp=["2024-01-01", "17.5", "2024-03-01", "2024-03-02"]),
        "row 2, column timestamp: '17.5' is a number, but row 1 holds a date",
    ),
    "truth as time": (
        ITEMS,
        INTERACTIONS.assign(timestamp=[True, False, True, True]),
        "row 1, column timestamp: .*True.* is neither",
    ),
    "no user": (ITEMS, changed(INTERACTIONS, "user_id", 1, None), "row 2, column user_id: None is no user id"),
    "neither item nor query": (
        ITEMS,
        changed(INTERACTIONS, "query", 3, ""),
        "row 4, column item_id: .* is no item id, and the row has no query",
    ),
    "query is a number with a fraction": (
        ITEMS,
        changed(INTERACTIONS, "query", 0, 1.5),
        "row 1, column query: 1.5 is not text but a float",
    ),
    "text is a dict": (
        changed(ITEMS, "title", 0, {"en": "x"}),
        INTERACTIONS,
        "items table, row 1, column title: {'en': 'x'} is not text but a dict; turn it into text",
    ),
    "text is bytes": (
        changed(ITEMS, "title", 2, b"x"),
        INTERACTIONS,
        "row 3, column title: b'x' is not text but a bytes",
    ),
    "text is floats": (
        ITEMS.assign(title=[1.5, 2.5, None]),
        INTERACTIONS,
        "row 1, column title: .*1.5.* is not text but a float.*Rows at fault in this column: 2",
    ),
    "text is truth": (ITEMS.assign(title=[True, False, True]), INTERACTIONS, "column title: .*True.* is not text"),
    "no text at all": (
        ITEMS.assign(title="", brand=None),
        INTERACTIONS,
        "text columns title, brand are empty in every row",
    ),
    "no text column": (
        ITEMS[["item_id", "price"]],
        INTERACTIONS,
        "has no text column: none of title.*name those that describe",
    ),
    "id with a fraction": (ITEMS, changed(INTERACTIONS, "item_id", 0, 1.5), "row 1, column item_id: 1.5 is not an id"),
    "id with lost digits": (
        ITEMS.assign(item_id=[2.0**53, 1.0, 2.0]),
        INTERACTIONS,
        "row 1, column item_id: .* has lost its last digits.*store the ids as text",
    ),
    "two columns of one name": (pd.concat([ITEMS, ITEMS[["title"]]], axis=1), INTERACTIONS, "two columns named title"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_with_place_value_and_remedy(case):
    items, interactions, message = BAD_TABLES[case]
    with pytest.raises(InputError, match=message) as caught:
        load_log(items, interactions)
    assert "\n" not in str(caught.value)
    assert str(caught.value).rstrip("0123456789,").endswith((".", ": "))


def test_naming_a_text_column_that_is_not_there():
    with pytest.raises(InputError, match="no column titel, only item_id, title"):
        load_log(ITEMS, INTERACTIONS, ["titel"])
    with pytest.raises(InputError, match="name item_id or one column twice"):
        load_log(ITEMS, INTERACTIONS, ["title", "title"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, r"gone\.csv does not exist; give the path of the items file"),
        ("items.xlsx", b"x", r"items\.xlsx: \.xlsx is not a table format.*\.parquet, \.csv"),
        ("items.csv", b"", r"items\.csv is empty"),
        ("items.csv", b"item_id,title\n", r"items\.csv holds no rows"),
        ("items.csv", b"item_id,title\na,b\nc,d,e\n", r"items\.csv cannot be read as csv .*line 3"),
        ("items.csv", b"item_id,title\na,b,c\nc,d,e\n", r"items\.csv cannot be read as csv"),
        ("items.csv", "item_id,title\na,caf\xe9\n".encode("latin-1"), r"items\.csv is not UTF-8"),
        ("items.parquet", b"PAR1 no", r"items\.parquet cannot be read as parquet"),
        ("items.jsonl", b'{"item_id": "a", "title": "x"}\n{"item_id": \n', r"items\.jsonl cannot be read .*line 2"),
        ("items.json", b'{"item_id": "a"}', r"items\.json cannot be read .*not a list of objects"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_log(tmp_path / name, INTERACTIONS)


def test_messages_name_the_file(tmp_path):
    ITEMS.to_csv(tmp_path / "products.csv", index=False)
    changed(INTERACTIONS, "item_id", 2, "B9").to_csv(tmp_path / "clicks.csv", index=False)
    with pytest.raises(InputError, match=r"^clicks\.csv, row 3, column item_id: 'B9' is not an item of products\.csv"):
        load_log(tmp_path / "products.csv", tmp_path / "clicks.csv")
    with pytest.raises(InputError, match="items are given as a dict"):
        load_log({"item_id": ["a"]}, INTERACTIONS)


def test_save_and_load_round_trip(tmp_path):
    log = load_log(ITEMS, INTERACTIONS, ["brand", "title"])
    log.save(tmp_path / "data")
    loaded = InteractionLog.load(tmp_path / "data")
    pd.testing.assert_frame_equal(loaded.items, log.items)
    pd.testing.assert_frame_equal(loaded.interactions, log.interactions)
    assert loaded.text_columns == ("brand", "title")


def test_a_column_of_mixed_kinds_can_be_saved(tmp_path):
    load_log(ITEMS.assign(extra=pd.Series([1, "x", {"a": 1}], dtype=object)), INTERACTIONS).save(tmp_path)
    assert InteractionLog.load(tmp_path).items["extra"].tolist() == ["1", "x", "{'a': 1}"]


def test_load_notices_missing_damaged_and_foreign_files(tmp_path):
    log = load_log(ITEMS, INTERACTIONS)
    with pytest.raises(InputError, match=r"log\.json does not exist"):
        InteractionLog.load(tmp_path)
    log.save(tmp_path)
    about = json.loads((tmp_path / "log.json").read_text())
    (tmp_path / "log.json").write_text(json.dumps(about | {"num_items": 9}))
    with pytest.raises(InputError, match="do not belong together"):
        InteractionLog.load(tmp_path)
    log.save(tmp_path)
    (tmp_path / "items.parquet").write_bytes((tmp_path / "items.parquet").read_bytes()[:50])
    with pytest.raises(InputError, match=r"items\.parquet cannot be read"):
        InteractionLog.load(tmp_path)


def clicks(*pairs: str) -> pd.DataFrame:
    frame = pd.DataFrame([pair.split() for pair in pairs], columns=["user_id", "item_id"])
    return frame.assign(timestamp=range(len(frame)))


def test_k_core_drops_again_what_falls_below_k():
    # x has one user, so it goes; then c has one click, so it goes; then z has one user left, so it goes.
    items = pd.DataFrame({"item_id": ["x", "y", "z", "w"], "title": "t"})
    log = load_log(items, clicks("a y", "b y", "a w", "b w", "c x", "c z", "a z"))
    core = k_core(log, 2)
    assert [row[:2] for row in rows(core)] == [("a", "y"), ("a", "w"), ("b", "y"), ("b", "w")]
    assert core.items["item_id"].tolist() == ["y", "w"]
    assert len(log.items) == 4


def test_k_core_keeps_searches_of_users_that_stay():
    items = pd.DataFrame({"item_id": ["x"], "title": "t"})
    frame = pd.DataFrame(
        {"user_id": ["a", "a", "b"], "item_id": ["x", "", ""], "timestamp": [1, 2, 3], "query": ["", "q", "q"]}
    )
    assert rows(k_core(load_log(items, frame), 1)) == [("a", "x", 1.0, ""), ("a", "", 2.0, "q")]


def test_k_core_that_leaves_nothing_or_makes_no_sense():
    log = load_log(ITEMS, INTERACTIONS)
    with pytest.raises(InputError, match="No user and item have 5 clicks"):
        k_core(log, 5)
    with pytest.raises(ValueError, match="at least 1"):
        k_core(log, 0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.integers(1, 4))
def test_k_core_is_the_largest_part_in_which_all_have_k(pairs, k):
    log = load_log(
        pd.DataFrame({"item_id": range(6), "title": "t"}),
        pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=range(len(pairs))),
    )
    left = [(str(user), str(item)) for user, item in pairs]
    while True:  # the naive loop: drop one offender at a time
        users, items = [user for user, _ in left], [item for _, item in left]
        offender = next((p for p in left if users.count(p[0]) < k or items.count(p[1]) < k), None)
        if offender is None:
            break
        left.remove(offender)
    if not left:
        with pytest.raises(InputError):
            k_core(log, k)
        return
    core = k_core(log, k)
    assert sorted(row[:2] for row in rows(core)) == sorted(left)
    assert set(core.items["item_id"]) == {item for _, item in left}
