import json
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import RECOMMENDATION, SEARCH, TASKS, InteractionDataset, training_mask
from gensar_hf.data.queries import assign_search_clicks
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


def rows(data: InteractionDataset) -> list[tuple]:
    return list(data.interactions.itertuples(index=False, name=None))


def test_the_log_is_sorted_by_first_appearance_of_the_user_then_time():
    data = InteractionDataset(ITEMS, INTERACTIONS)
    assert rows(data) == [
        ("v", "B3", 20.0, ""),
        ("v", "B1", 30.0, ""),
        ("u", "", 5.0, "soap"),
        ("u", "B2", 10.0, "dry lips"),
    ]
    assert list(data.interactions.columns) == ["user_id", "item_id", "timestamp", "query"]
    assert data.interactions["timestamp"].dtype == np.float64


def test_equal_times_keep_the_order_of_the_file():
    interactions = pd.DataFrame({"user_id": ["u"] * 4, "item_id": ["B3", "B1", "B2", "B1"], "timestamp": [1, 1, 0, 1]})
    assert [row[1] for row in rows(InteractionDataset(ITEMS, interactions))] == ["B2", "B3", "B1", "B1"]


def test_item_texts_join_the_text_columns_that_are_not_empty():
    data = InteractionDataset(ITEMS, INTERACTIONS)
    assert data.text_columns == ("title", "brand")
    assert data.item_texts() == ["Lip Balm. Acme", "Best", "Soap"]
    assert list(data.items.columns) == ["item_id", "title", "brand", "price"]
    assert InteractionDataset(ITEMS, INTERACTIONS, text_columns=["brand", "title"]).item_texts()[0] == "Acme. Lip Balm"
    assert data.item_texts(["brand"]) == ["Acme", "Best", ""]
    assert data.item_texts(["item_id", "title"])[0] == f"{data.item_ids[0]}. Lip Balm"
    numbers = InteractionDataset(ITEMS.assign(price=[3, None, 5.5]), INTERACTIONS)
    assert numbers.item_texts(["price"]) == ["3", "", ""]
    with pytest.raises(InputError, match="The items have no column genre, only item_id, title"):
        data.item_texts(["title", "genre"])
    for columns in ([], ["price"]):
        with pytest.raises(InputError, match="hold no text of any item"):
            InteractionDataset(ITEMS.assign(price=5.5), INTERACTIONS).item_texts(columns)


def test_lists_and_whole_numbers_become_text():
    items = pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "categories": [["Beauty", "Hair"], [["Beauty", "Hair"], ["Toys"]], None],
            "year": [1995.0, None, 2001.0],
        }
    )
    data = InteractionDataset(items, pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [0]}))
    assert data.items["categories"].tolist() == ["Beauty, Hair", "Beauty > Hair, Toys", ""]
    assert data.item_texts() == ["Beauty, Hair. 1995", "Beauty > Hair, Toys", "2001"]


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

    data = InteractionDataset(stored(ITEMS, "items"), stored(INTERACTIONS, "interactions"))
    assert rows(data) == rows(InteractionDataset(ITEMS, INTERACTIONS))
    assert data.item_texts() == ["Lip Balm. Acme", "Best", "Soap"]


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
        assert rows(InteractionDataset(tmp_path / "items.csv", interactions)) == expected
    integers = pd.DataFrame({"item_id": [242, 7], "title": ["Kolya", "Twelve"]})
    assert rows(InteractionDataset(integers, frame)) == expected
    mixed = pd.DataFrame({"item_id": pd.Series([242, "7"], dtype=object), "title": ["Kolya", "Twelve"]})
    assert rows(InteractionDataset(mixed, frame)) == expected


def test_csv_keeps_leading_zeros_titles_named_na_and_quoted_commas(tmp_path):
    (tmp_path / "items.csv").write_text('\ufeffitem_id,title\n007,"NA, or not"\n7,NA\n', encoding="utf-8")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,007,1\n")
    data = InteractionDataset(tmp_path / "items.csv", tmp_path / "interactions.csv")
    assert data.items["item_id"].tolist() == ["007", "7"]
    assert data.item_texts() == ["NA, or not", "NA"]


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
    assert InteractionDataset(ITEMS, frame).interactions["timestamp"].tolist() == expected


def test_order_replaces_a_missing_timestamp():
    frame = pd.DataFrame({"user_id": ["a"] * 2, "item_id": ["B1", "B2"], "order": [1, 0]})
    assert rows(InteractionDataset(ITEMS, frame)) == [("a", "B2", 0.0, ""), ("a", "B1", 1.0, "")]


@pytest.mark.parametrize("length", [1001, 10_000, 10_001])
def test_a_very_long_query_is_cut_with_a_warning(caplog, length):
    frame = INTERACTIONS.assign(query=["ok", "x" * length, "y" * 1000, "z"])
    with caplog.at_level(logging.WARNING):
        data = InteractionDataset(ITEMS, frame)
    assert sorted(data.interactions["query"].str.len()) == [1, 2, 1000, 1000]
    assert f"row 2, column query: {length} characters are cut to 1,000 (1 such rows" in caplog.text


def changed(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    return frame.assign(**{column: pd.Series([*frame[column][:row], value, *frame[column][row + 1 :]], dtype=object)})


BAD_TABLES = {
    "missing user column": (ITEMS, INTERACTIONS.rename(columns={"user_id": "userId"}),
        "no column user_id, only userId, item_id.*rename 'userId' to 'user_id'"),
    "missing time column": (ITEMS, INTERACTIONS.drop(columns="timestamp"),
        "no column timestamp.*add a column named 'timestamp'"),
    "missing item id column": (ITEMS.rename(columns={"item_id": "asin"}), INTERACTIONS,
        "items table has no column item_id"),
    "duplicate item": (changed(ITEMS, "item_id", 2, "B1"), INTERACTIONS,
        "items table, row 3, column item_id: 'B1' is already in row 1; keep one row"),
    "item without id": (changed(ITEMS, "item_id", 1, " "), INTERACTIONS,
        "row 2, column item_id: ' ' is not an item id"),
    "unknown item": (ITEMS, changed(INTERACTIONS, "item_id", 2, "B9"),
        "interactions table, row 3, column item_id: 'B9' is not an item of the items table; add the item"),
    "no items": (ITEMS.iloc[:0], INTERACTIONS, "the items table holds no rows"),
    "no interactions": (ITEMS, INTERACTIONS.iloc[:0], "the interactions table holds no rows"),
    "NaN time": (ITEMS, changed(INTERACTIONS, "timestamp", 3, np.nan),
        "row 4, column timestamp: nan is not a time, the value is missing"),
    "blank time": (ITEMS, INTERACTIONS.assign(timestamp=["1", "2", " ", "3"]),
        "row 3, column timestamp: ' ' is not a time"),
    "infinite time": (ITEMS, INTERACTIONS.assign(timestamp=[1, np.inf, 2, 3]),
        "row 2, column timestamp: inf is not a finite number"),
    "no date": (ITEMS, INTERACTIONS.assign(timestamp=["1", "2", "yesterday", "3"]),
        "row 3, column timestamp: 'yesterday' is neither a number nor an ISO date; give"),
    "no date in row 1": (ITEMS, INTERACTIONS.assign(timestamp=["yesterday", "2", "1", "3"]),
        "row 1, column timestamp: 'yesterday' is neither"),
    "no date among dates": (ITEMS, INTERACTIONS.assign(timestamp=["2024-01-01", "2024-02-30", *["2024-03-01"] * 2]),
        "row 2, column timestamp: '2024-02-30' is neither"),
    "numbers and dates": (ITEMS, INTERACTIONS.assign(timestamp=["2024-01-01", "17.5", "2024-03-01", "2024-03-02"]),
        "row 2, column timestamp: '17.5' is a number, but row 1 holds a date"),
    "truth as time": (ITEMS, INTERACTIONS.assign(timestamp=[True, False, True, True]),
        "row 1, column timestamp: .*True.* is neither"),
    "no user": (ITEMS, changed(INTERACTIONS, "user_id", 1, None), "row 2, column user_id: None is not a user id"),
    "neither item nor query": (ITEMS, changed(INTERACTIONS, "query", 3, ""),
        "row 4, column item_id: .* is not an item id, and the row has no query"),
    "query is a number with a fraction": (ITEMS, changed(INTERACTIONS, "query", 0, 1.5),
        "row 1, column query: 1.5 is not text but a float"),
    "text is a dict": (changed(ITEMS, "title", 0, {"en": "x"}), INTERACTIONS,
        "items table, row 1, column title: {'en': 'x'} is not text but a dict; turn it into text"),
    "text is bytes": (changed(ITEMS, "title", 2, b"x"), INTERACTIONS,
        "row 3, column title: b'x' is not text but a bytes"),
    "text is floats": (ITEMS.assign(title=[1.5, 2.5, None]), INTERACTIONS,
        "row 1, column title: .*1.5.* is not text but a float.*Bad rows in this column: 2"),
    "text is truth": (ITEMS.assign(title=[True, False, True]), INTERACTIONS, "column title: .*True.* is not text"),
    "no text at all": (ITEMS.assign(title="", brand=None), INTERACTIONS,
        "text columns title, brand are empty in every row"),
    "no text column": (ITEMS[["item_id", "price"]], INTERACTIONS,
        "has no text column: none of title.*name those that describe"),
    "id with a fraction": (ITEMS, changed(INTERACTIONS, "item_id", 0, 1.5),
        "row 1, column item_id: 1.5 is not an id"),
    "id with lost digits": (ITEMS.assign(item_id=[2.0**53, 1.0, 2.0]), INTERACTIONS,
        "row 1, column item_id: .* has lost its last digits.*store the ids as text"),
    "two columns of one name": (pd.concat([ITEMS, ITEMS[["title"]]], axis=1), INTERACTIONS,
        "two columns named title"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_with_place_value_and_remedy(case):
    items, interactions, message = BAD_TABLES[case]
    with pytest.raises(InputError, match=message) as caught:
        InteractionDataset(items, interactions)
    assert "\n" not in str(caught.value)
    assert str(caught.value).rstrip("0123456789,").endswith((".", ": "))


def test_columns_of_words_that_are_not_read_are_named(caplog):
    items = pd.DataFrame(
        {
            "item_id": ["a", "b"], "title": ["x", "y"], "genre": ["Drama", "Comedy"], "plot": ["A man, 12 cats", None],
            "tags": [["big cat", "dog"], []], "price": [1.5, 2], "image": ["https://x/a.jpg"] * 2,
            "sku": ["B07Q", "K9"],
        }
    )  # fmt: skip
    clicks = pd.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    with caplog.at_level(logging.WARNING):
        InteractionDataset(items, clicks)
    warning = "texts are made from title and not from 'genre', 'plot', 'tags'; name all columns that describe an item"
    assert warning in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        InteractionDataset(items, clicks, text_columns=["title"])
    assert caplog.text == ""


def test_a_table_with_another_separator_is_told(tmp_path):
    for name, mark in (("items.csv", ";"), ("items.tsv", ",")):
        (tmp_path / name).write_text(f"item_id{mark}title\na{mark}x\n")
        with pytest.raises(InputError, match=f"which '{mark}' seems to separate; separate columns by commas in a .csv"):
            InteractionDataset(tmp_path / name, pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}))


def test_naming_a_text_column_that_is_not_there():
    with pytest.raises(InputError, match="no column titel, only item_id, title"):
        InteractionDataset(ITEMS, INTERACTIONS, text_columns=["titel"])
    with pytest.raises(InputError, match="name item_id or one column twice"):
        InteractionDataset(ITEMS, INTERACTIONS, text_columns=["title", "title"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, r"gone\.csv does not exist; pass the path of the items file"),
        ("items.xlsx", b"x", r"items\.xlsx: \.xlsx is not a supported table format.*\.parquet, \.csv"),
        ("items.csv", b"", r"items\.csv is empty"),
        ("items.csv", b"item_id,title\n", r"items\.csv holds no rows"),
        ("items.csv", b"item_id,title\na,b\nc,d,e\n", r"items\.csv cannot be read as csv .*row 2: 3"),
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
        InteractionDataset(tmp_path / name, INTERACTIONS)


def test_messages_name_the_file(tmp_path):
    ITEMS.to_csv(tmp_path / "products.csv", index=False)
    changed(INTERACTIONS, "item_id", 2, "B9").to_csv(tmp_path / "clicks.csv", index=False)
    with pytest.raises(InputError, match=r"^clicks\.csv, row 3, column item_id: 'B9' is not an item of products\.csv"):
        InteractionDataset(tmp_path / "products.csv", tmp_path / "clicks.csv")
    with pytest.raises(InputError, match="items are a dict"):
        InteractionDataset({"item_id": ["a"]}, INTERACTIONS)


def test_titles_and_ids():
    data = InteractionDataset(ITEMS, INTERACTIONS)
    assert (data.item_ids, data.titles) == (["B1", "B2", "B3"], ["Lip Balm", "", "Soap"])
    numbers = InteractionDataset(ITEMS.assign(title=[1984, None, 300.0]), INTERACTIONS, text_columns="brand")
    assert numbers.titles == ["1984", "", "300"]
    assert InteractionDataset(ITEMS.drop(columns="title"), INTERACTIONS).titles == ["Acme", "Best", ""]


def test_counts():
    data = InteractionDataset(ITEMS, INTERACTIONS)
    assert len(data) == 4
    assert repr(data) == "InteractionDataset(2 users, 3 items, 4 interactions, 2 queries)"


def clicks(*pairs: str) -> pd.DataFrame:
    frame = pd.DataFrame([pair.split() for pair in pairs], columns=["user_id", "item_id"])
    return frame.assign(timestamp=range(len(frame)))


def test_the_k_core_drops_again_what_falls_below_k():
    # x has one user, so it goes; then c has one click, so it goes; then z has one user left, so it goes.
    items = pd.DataFrame({"item_id": ["x", "y", "z", "w"], "title": "t"})
    core = InteractionDataset(items, clicks("a y", "b y", "a w", "b w", "c x", "c z", "a z"), min_interactions=2)
    assert [row[:2] for row in rows(core)] == [("a", "y"), ("a", "w"), ("b", "y"), ("b", "w")]
    assert core.item_ids == ["y", "w"]


def test_the_k_core_keeps_searches_of_users_that_stay():
    items = pd.DataFrame({"item_id": ["x"], "title": "t"})
    frame = pd.DataFrame(
        {"user_id": ["a", "a", "b"], "item_id": ["x", "", ""], "timestamp": [1, 2, 3], "query": ["", "q", "q"]}
    )
    core = InteractionDataset(items, frame, min_interactions=1)
    assert rows(core) == [("a", "x", 1.0, ""), ("a", "", 2.0, "q")]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.integers(1, 4))
def test_the_k_core_is_the_largest_part_in_which_all_have_k(pairs, k):
    items = pd.DataFrame({"item_id": range(6), "title": "t"})
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=range(len(pairs)))
    left = [(str(user), str(item)) for user, item in pairs]
    while True:  # the naive loop: drop one offender at a time
        users, clicked = [user for user, _ in left], [item for _, item in left]
        offender = next((p for p in left if users.count(p[0]) < k or clicked.count(p[1]) < k), None)
        if offender is None:
            break
        left.remove(offender)
    if not left:
        with pytest.raises(InputError, match=f"No users and items remain that have {k} clicks"):
            InteractionDataset(items, frame, min_interactions=k)
        return
    core = InteractionDataset(items, frame, min_interactions=k)
    assert sorted(row[:2] for row in rows(core)) == sorted(left)
    assert set(core.item_ids) == {item for _, item in left}


def test_arguments_outside_their_range():
    data = InteractionDataset(ITEMS, INTERACTIONS)
    for options, message in (
        ({"min_interactions": -1}, "`min_interactions` counts clicks and cannot be negative; got -1"),
        ({"min_interactions": 2, "history": data}, "cannot be combined with `history`"),
        ({"search_fraction": 1.5, "category_column": "brand"}, "`search_fraction` is a share .*; got 1.5"),
        ({"split": "random"}, "`split` must be one of 'leave_one_out', .*; got 'random'"),
    ):
        with pytest.raises(ValueError, match=message):
            InteractionDataset(ITEMS, INTERACTIONS, **options)
    with pytest.raises(ValueError, match="`fraction` is a share of the items, above 0 and below 1; got 1"):
        data.hold_out_items(1)
    with pytest.raises(ValueError, match=r"`later_share` is a share of the rows, above 0 and below 1; got 1\.5"):
        data.split_by_time(1.5)


def test_search_clicks_are_drawn_before_the_k_core():
    items = ITEMS.assign(categories=["Lips", "Lips > Dry", "Hands"])
    frame = pd.DataFrame({"user_id": list("uuuuvvvv"), "item_id": ["B1", "B2"] * 3 + ["B3", "B1"]})
    frame = frame.assign(timestamp=range(8))
    plain = InteractionDataset(items, frame)
    expected = assign_search_clicks(plain.items, plain.interactions, 0.5, 3)
    data = InteractionDataset(items, frame, search_fraction=0.5, seed=3, min_interactions=2)
    kept = expected[expected["item_id"] != "B3"]
    assert data.interactions["query"].tolist() == kept["query"].tolist()
    assert set(data.interactions["query"]) == {"", "lips", "lips dry"}


# u: a ?x b c | c a, the session of x continues; v: a b | ?y d; w: | d
LOG = [
    ("u", "a", 1, ""), ("u", "b", 2, "x"), ("u", "c", 5, "x"), ("u", "a", 6, ""),
    ("v", "a", 3, ""), ("v", "b", 4, ""), ("v", "d", 7, "y"),
    ("w", "d", 8, ""),
]  # fmt: skip
CATALOGUE = pd.DataFrame({"item_id": list("abcde"), "title": list("ABCDE")})


def make_data(log: list[tuple], **options) -> InteractionDataset:
    return InteractionDataset(
        CATALOGUE, pd.DataFrame(log, columns=["user_id", "item_id", "timestamp", "query"]), **options
    )


def targets(requests) -> str:
    return "".join("abcde"[item] for item in requests.target_items)


def test_a_dataset_is_split_at_the_moment_when_a_share_has_passed():
    data = make_data(LOG)
    earlier, later = data.split_by_time(0.5)
    assert earlier.interactions["timestamp"].tolist() == [1, 2, 3, 4]
    assert earlier.item_ids == ["a", "b", "e"]  # e was never clicked
    assert later.item_ids == ["a", "b", "e", "c", "d"]
    pd.testing.assert_frame_equal(later.interactions, data.interactions)
    assert repr(later).endswith("8 interactions, 2 queries, 4 rows of history)")
    starts = later.split.target_starts - later.events.offsets[:-1]
    assert starts.tolist() == [3, 2, 0]
    assert np.diff(later.events.offsets).tolist() == [5, 4, 1]
    assert (data.split.target_starts == data.events.offsets[:-1]).all()
    latest = later.split_by_time(0.25)[1]  # a quarter of the four newer rows
    assert (latest.split.target_starts - latest.events.offsets[:-1]).tolist() == [5, 4, 0]


def test_rows_of_one_time_stay_on_one_side():
    earlier, later = make_data([(*row[:2], min(row[2], 4), row[3]) for row in LOG]).split_by_time(0.25)
    assert (len(earlier), len(later)) == (3, 8)
    with pytest.raises(
        InputError, match=r"8 interactions cannot be split in time .* because all of them would be later"
    ):
        make_data([(*row[:2], 4, row[3]) for row in LOG]).split_by_time(0.25)
    with pytest.raises(InputError, match="because none of them would be later; choose another share"):
        make_data(LOG).split_by_time(0.01)


def test_history_is_neither_a_training_target_nor_a_request():
    _, later = make_data(LOG).split_by_time(0.5)
    held_out = later.with_split("held_out").split
    assert held_out.test is held_out.validation
    assert held_out.train_ends.tolist() == held_out.target_starts.tolist()
    items = np.array(later.item_ids)
    assert items[held_out.test[RECOMMENDATION].target_items].tolist() == ["a", "d"]
    assert items[held_out.test[SEARCH].target_items].tolist() == ["c", "d"]
    everything = later.with_split("none").split
    assert training_mask(everything).all()
    assert sum(len(requests) for requests in (*everything.test.values(), *everything.validation.values())) == 0
    last = later.split  # leave one out: u's click on c is the first one of search, w has one click only
    assert items[last.test[RECOMMENDATION].target_items].tolist() == ["a"]
    assert items[last.test[SEARCH].target_items].tolist() == ["c"]
    assert [len(requests) for requests in last.validation.values()] == [0, 0]
    cut = later.with_split("chronological").split
    assert cut.events.timestamps[cut.test[RECOMMENDATION].targets].tolist() == [8]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 9), st.sampled_from(["", "x"])),
             min_size=2, max_size=40),
    st.sampled_from(["leave_one_out", "chronological", "none", "held_out"]),
    st.floats(0.1, 0.9),
)  # fmt: skip
def test_no_split_requests_a_click_of_the_history(log, method, later_share):
    data = make_data(log, split=method)
    try:
        later = data.split_by_time(later_share)[1]
        split = later.split
    except InputError:
        return
    assert len(later) == len(data)
    first_new = later.interactions[~later._is_history].groupby("user_id")["timestamp"].min()
    events = later.events
    for user, user_id in enumerate(events.user_ids):
        new = events.timestamps[split.target_starts[user] : events.offsets[user + 1]]
        assert (new >= first_new.get(user_id, np.inf)).all()
        assert (user_id in first_new) == (len(new) > 0)
    for requests in (*split.validation.values(), *split.test.values()):
        assert (requests.targets >= split.target_starts[requests.users]).all()
        assert (requests.targets >= split.train_ends[requests.users]).all()


def test_newer_interactions_with_a_history():
    earlier = make_data(LOG[:3])
    newer = pd.DataFrame({"user_id": ["v", "u"], "item_id": ["e", "d"], "timestamp": [9, 5]})
    data = InteractionDataset(CATALOGUE, newer, history=earlier, split="none")
    assert [row[:2] for row in rows(data)] == [("u", "a"), ("u", "b"), ("u", "c"), ("u", "d"), ("v", "e")]
    assert (data.split.target_starts - data.events.offsets[:-1]).tolist() == [4, 0]
    with pytest.raises(
        InputError,
        match=r"^1 of the interactions are earlier than .* user u has one at 4, and the last .* is at 5; give",
    ):
        InteractionDataset(CATALOGUE, newer.assign(timestamp=[9, 4]), history=earlier)
    with pytest.raises(InputError, match=r"row 1, column item_id: 'e' is not an item of the items table"):
        InteractionDataset(CATALOGUE[:4], newer, history=earlier)
    with pytest.raises(
        InputError, match=r"^`history` contains 2 items that `items` lacks, such as 'a'; give the whole"
    ):
        InteractionDataset(CATALOGUE[2:], newer, history=earlier)


def test_held_out_items_leave_with_their_rows_and_come_back():
    data = make_data(LOG)
    kept, held_out = data.hold_out_items(0.4, seed=1)
    assert len(held_out.items) == 2
    assert set(held_out.interactions["item_id"]) <= set(held_out.item_ids)
    assert not set(kept.interactions["item_id"]) & set(held_out.item_ids)
    again = kept.merge(held_out)
    pd.testing.assert_frame_equal(
        again.interactions.sort_values("timestamp", ignore_index=True),
        data.interactions.sort_values("timestamp", ignore_index=True),
    )
    assert again.item_ids == kept.item_ids + held_out.item_ids
    assert len(data.hold_out_items(0.01)[1].items) == 1
    assert len(data.hold_out_items(0.99)[0].items) == 1


@pytest.mark.parametrize("method", ["leave_one_out", "chronological", "none", "held_out"])
@pytest.mark.parametrize("with_history", [False, True])
def test_save_and_load_round_trip(tmp_path, method, with_history):
    data = make_data(LOG, split=method)
    data = data.split_by_time(0.5)[1] if with_history else data
    data.save(tmp_path / "data")
    loaded = InteractionDataset.load(tmp_path / "data")
    pd.testing.assert_frame_equal(loaded.items, data.items)
    pd.testing.assert_frame_equal(loaded.interactions, data.interactions)
    assert (loaded.text_columns, loaded.split_method, repr(loaded)) == (("title",), method, repr(data))
    assert loaded.split.train_ends.tolist() == data.split.train_ends.tolist()
    assert loaded.split.target_starts.tolist() == data.split.target_starts.tolist()
    for task in TASKS:
        assert loaded.split.test[task].targets.tolist() == data.split.test[task].targets.tolist()
        assert loaded.split.validation[task].targets.tolist() == data.split.validation[task].targets.tolist()
    assert (loaded.split.test is loaded.split.validation) or method != "held_out"
    assert loaded.with_split("none").split.target_starts.tolist() == data.split.target_starts.tolist()
    assert {path.suffix for path in (tmp_path / "data").iterdir()} == {".parquet", ".json", ".safetensors"}


def test_a_column_of_mixed_kinds_can_be_saved(tmp_path):
    mixed = ITEMS.assign(extra=pd.Series([1, "x", {"a": 1}], dtype=object))
    InteractionDataset(mixed, INTERACTIONS).save(tmp_path)
    assert InteractionDataset.load(tmp_path).items["extra"].tolist() == ["1", "x", "{'a': 1}"]


def test_load_notices_missing_damaged_and_foreign_files(tmp_path):
    data = InteractionDataset(ITEMS, INTERACTIONS)
    with pytest.raises(InputError, match=r"dataset\.json does not exist"):
        InteractionDataset.load(tmp_path)
    data.save(tmp_path)
    about = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(about | {"num_items": 9}))
    with pytest.raises(
        InputError, match=r"dataset\.json, items\.parquet and interactions\.parquet do not belong together"
    ):
        InteractionDataset.load(tmp_path)
    data.save(tmp_path)
    InteractionDataset(ITEMS, INTERACTIONS.assign(item_id="B1")).interactions.to_parquet(
        tmp_path / "interactions.parquet"
    )
    with pytest.raises(InputError, match=r"split\.safetensors was made from other interactions; delete the folder"):
        InteractionDataset.load(tmp_path)
    data.save(tmp_path)
    (tmp_path / "items.parquet").write_bytes((tmp_path / "items.parquet").read_bytes()[:50])
    with pytest.raises(InputError, match=r"items\.parquet cannot be read"):
        InteractionDataset.load(tmp_path)


@pytest.mark.parametrize("method", ["leave_one_out", "chronological"])
def test_a_folder_of_version_0_1_is_read(tmp_path, method):
    data = make_data(LOG, split=method)
    data.save(tmp_path)
    about = json.loads((tmp_path / "dataset.json").read_text()) | {"format_version": 1}
    (tmp_path / "log.json").write_text(json.dumps({name: about[name] for name in about if name != "split"}))
    (tmp_path / "dataset.json").unlink()
    loaded = InteractionDataset.load(tmp_path)
    assert (loaded.split_method, repr(loaded)) == (method, repr(data))
    assert loaded.split.train_ends.tolist() == data.split.train_ends.tolist()
