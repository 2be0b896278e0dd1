import datetime as dt
import json
import logging
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gensar_hf.data import InteractionDataset
from gensar_hf.data.tables import Table, id_column, id_of, read_ids, text_column, text_of
from gensar_hf.errors import InputError

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["Lip balm", "Cream", "Soap"]})
CLICKS = pd.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})


def write(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def refusal(items: object, clicks: object = CLICKS) -> str:
    with pytest.raises(InputError) as caught:
        InteractionDataset(items, clicks)
    message = str(caught.value)
    assert len(message) <= 500
    assert "\n" not in message
    return message


DAMAGED_ROWS = {
    "a quotation mark swallows rows": ("row 1 has a cell .* spans 3 lines", 'a,"17 inch\nb,Cream\nc,Soap"\nd,Oil\n'),
    "a quotation mark swallows rows up to a quoted cell": ("row 2 has a cell", 'a,x\nb,"17 inch\nc,"red, soap"\n'),
    "text after a quoted cell": ("row 2 has a cell that begins", 'a,x\nb,"17" inch\nc,z\n'),
    "a quotation mark is never closed": ("row 2 has a cell that begins", 'a,x\nb,"17 inch\nc,z\n'),
    "short row": ("cells in row 3: 1, in the header: 2", "a,x\nb,y\nc\n"),
    "long row": ("cells in row 2: 3", 'a,"x\n"\n\nb,y,z\nc,w\n'),
    "carriage return in a title": ("cells in row 2: 1", "a,red\rsoap\nb,y\n"),
    "line break in a title": ("cells in row 2: 1", "a,red\nsoap\nb,y\n"),
    "cut in the last row": ("cells in row 2: 1", "a,x\nb"),
    "NUL": ("row 2 holds a NUL", "a,x\nb,\0\0\n"),
}


@pytest.mark.parametrize("case", DAMAGED_ROWS)
@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_damaged_rows_are_refused_by_their_number(tmp_path, case, extension):
    message, rows = DAMAGED_ROWS[case]
    content = "item_id,title\n" + rows
    if extension == "tsv":
        content = content.replace("red, soap", "red; soap").replace(",", "\t")
    assert pd.Series(refusal(write(tmp_path, f"i.{extension}", content))).str.contains(message).all()


def test_a_swallowed_query_is_refused(tmp_path):
    rows = 'user_id,item_id,timestamp,query\nu,a,1,"17 inch\nu,b,2,\nu,c,3,soap"\nu,a,4,\n'
    assert "c.csv cannot be read as csv (row 1 has a cell" in refusal(ITEMS, write(tmp_path, "c.csv", rows))


def test_legitimate_quotation_marks_and_line_breaks_are_text(tmp_path):
    rows = (
        'item_id,title\r\na,"two\r\nlines, with a comma"\r\nb,17" screen\r\nc,"the ""best"" soap"\r\n\r\nd,"1\n2"\r\n'
    )
    data = InteractionDataset(write(tmp_path, "i.csv", "\ufeff" + rows), CLICKS)
    assert data.titles == ["two lines, with a comma", '17" screen', 'the "best" soap', "1 2"]


def test_a_file_without_a_last_line_break_is_read_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = InteractionDataset(write(tmp_path, "i.csv", "item_id,title\na,x\nb,y\nc,z"), CLICKS)
    assert data.titles == ["x", "y", "z"]
    assert "i.csv ends without a line break, so its last row (3) may be cut" in caplog.text


BAD_FILES = {
    "i.csv": (b"item_id,title,title\na,x,y\n", "two columns named title"),
    "twice.json": (b'[{"item_id": "a", "title": "x", "item_id": "b"}]', "the key 'item_id' is twice"),
    "twice.jsonl": (b'\n{"item_id": "a", "title": "x", "title": "y"}', "line 2 is not JSON: the key 'title' is twice"),
    "deep.json": (b'[{"item_id": "a", "title": ' + b"[" * 1000 + b"]" * 1000 + b"}]", "nested too deeply"),
    "half.json": (b'[{"item_id": "a", "title": "\\ud800"}]', "row 1, column title: '\\ud800' holds half a character"),
    "half-name.json": (b'[{"item_id": "a", "title": "x", "\\ud800": 1}]', "cannot be read as json"),
    "columns.csv": (",".join(f"c{n}" for n in range(500)).encode() + b"\n", "c9 and 490 more; add"),
    "ü" * 200 + ".csv": (None, "cannot be read as csv"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_short_sentence(tmp_path, name):
    content, message = BAD_FILES[name]
    if content is None:
        assert message in refusal(tmp_path / name)
    else:
        rows = b"1," * 499 + b"1\n" if name == "columns.csv" else b""
        assert message in refusal(write(tmp_path, name, content + rows))


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    for name, lines in (("i.json", False), ("i.jsonl", True)):
        text = "\ufeff" + ITEMS.to_json(orient="records", lines=lines)
        assert InteractionDataset(write(tmp_path, name, text), CLICKS).titles == ITEMS["title"].tolist()


def test_parquet_is_read_without_the_metadata_of_pandas(tmp_path):
    table = pa.Table.from_pandas(ITEMS.set_index("item_id"))
    for number, metadata in enumerate([table.schema.metadata, {b"pandas": b"\xff"}, {b"pandas": b"[]"}]):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{number}.parquet")
        assert InteractionDataset(tmp_path / f"{number}.parquet", CLICKS).titles == ITEMS["title"].tolist()
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    pq.write_table(pa.table({"item_id": ["a"], "title": bad}), tmp_path / "bad.parquet")
    assert "column title: text that is not UTF-8" in refusal(tmp_path / "bad.parquet")


def test_deeply_nested_extra_columns_can_be_saved_and_loaded(tmp_path):
    nested: object = 1
    for _ in range(200):
        nested = [nested]
    InteractionDataset(ITEMS.assign(extra=[nested, None, None]), CLICKS).save(tmp_path)
    assert InteractionDataset.load(tmp_path).items["extra"].tolist()[0].startswith("[[[")


# ---- one reading of ids and texts

MISSING = [None, pd.NA, pd.NaT, np.nan, Decimal("NaN"), ""]
SAME_ID = [
    242,
    242.0,
    "242",
    " 242\t",
    np.int16(242),
    np.int64(242),
    np.float32(242),
    Decimal("242.0"),
    np.array(242),
]
NO_ID = [
    True, np.bool_(True), 1.5, Decimal("1.5"), 2.0**53, np.float32(2**24), b"242", [242], ("2", "4"), {"a": 1}, {1},
    1 + 2j, np.inf, 10**5000, "\ud800", "2\n42", "2\0", dt.date(2024, 1, 1),
    np.datetime64("2024-01-01"), np.timedelta64(1), object(),
]  # fmt: skip


def test_one_value_is_one_id():
    assert {id_of(value) for value in MISSING} == {""}
    assert {id_of(value) for value in SAME_ID} == {"242"}
    assert {id_of(value) for value in NO_ID} == {None}
    assert id_of("é") != id_of("e\u0301")
    assert read_ids([242.0, " 7"], "item_ids") == ["242", "7"]
    for values in ("242", {"242": 1}, [None], [True]):
        with pytest.raises(InputError, match="item_ids"):
            read_ids(values, "item_ids")


def test_columns_of_objects_are_read_as_their_values():
    values = [*MISSING, *SAME_ID]
    table = Table("the table", pd.DataFrame({"x": pd.Series(values, dtype=object)}))
    assert id_column(table, "x").tolist() == [id_of(value) for value in values]
    assert text_column(table, "x", "").tolist() == [text_of(value).strip() for value in values]
    for value in NO_ID:
        with pytest.raises(InputError, match="row 1, column x"):
            id_column(Table("the table", pd.DataFrame({"x": pd.Series([value], dtype=object)})), "x")


DTYPES = {
    "int64": [242, 7], "float64": [242, None], "float32": [242, None], "Int64": [242, None], "Float64": [242, None],
    "object": [242, "7"], "category": [242, None], "string[python]": ["242", None], "str": ["242", None],
    "int64[pyarrow]": [242, None], "float[pyarrow]": [242, None], "string[pyarrow]": ["242", None],
    "Sparse[int]": [242, 7],
    "decimal": [Decimal(242), None], "text": ["242", None], "dictionary": ["242", None], "arrow list": [["242"], None],
}  # fmt: skip
ARROW = {
    "decimal": pa.decimal128(20, 2), "text": pa.large_string(), "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "arrow list": pa.list_(pa.string()),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_holds_the_same_ids_and_texts(dtype):
    values = pd.Series(DTYPES[dtype], dtype=pd.ArrowDtype(ARROW[dtype]) if dtype in ARROW else dtype)
    table, expected = Table("the table", pd.DataFrame({"x": values})), ["242", "7" if DTYPES[dtype][1] else ""]
    assert text_column(table, "x", "").tolist() == expected
    if dtype != "arrow list":
        assert id_column(table, "x").tolist() == expected


def test_lost_digits_of_small_floats_are_noticed():
    for dtype, lost in (("float32", 2**24), ("Float32", 2**24), ("float[pyarrow]", 2**24), ("float64", 2**53)):
        for number, is_exact in ((lost - 1, True), (lost, False)):
            table = Table("the table", pd.DataFrame({"x": pd.Series([number], dtype=dtype)}))
            if is_exact:
                assert id_column(table, "x").tolist() == [str(number)]
            else:
                with pytest.raises(InputError, match="has lost its last digits"):
                    id_column(table, "x")


def test_large_whole_numbers_stay_exact_beside_missing_ones(tmp_path):
    large = 2**53 + 1
    items = pd.DataFrame({"item_id": pd.array([large, 7], dtype="Int64"), "title": ["x", "y"]})
    clicks = [
        {"user_id": 1, "item_id": large, "timestamp": 1},
        {"user_id": 1, "item_id": None, "query": "q", "timestamp": 2},
    ]
    items.to_parquet(tmp_path / "i.parquet")
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, clicks)))
    data = InteractionDataset(tmp_path / "i.parquet", tmp_path / "c.jsonl")
    assert data.interactions["item_id"].tolist() == [str(large), ""]


# ---- times

DAY, EAST = 86400.0, dt.timezone(dt.timedelta(hours=23))
TIMES = {
    "years far away": (["9999-12-31", "1970-01-02", "0001-01-01"], [253402214400.0, DAY, -62135596800.0]),
    "dates": ([dt.date(1970, 1, 2), dt.date(1970, 1, 1), dt.datetime(1970, 1, 3)], [DAY, 0.0, 2 * DAY]),
    "zones": (
        [dt.datetime(1970, 1, 2, tzinfo=EAST), "1970-01-02", "1970-01-02T00:00+01:00"],
        [3600.0, DAY, DAY - 3600],
    ),
    "numbers of several types": ([1, "2.5", Decimal("3.5")], [1.0, 2.5, 3.5]),
    "arrow dates": (pd.Series([dt.date(1970, 1, 2)] * 3, dtype="date32[pyarrow]"), [DAY] * 3),
    "arrow times": (pd.Series(pd.to_datetime(["1970-01-02"] * 3)).astype("timestamp[s][pyarrow]"), [DAY] * 3),
    "arrow decimals": (pd.Series([Decimal(2)] * 3, dtype=pd.ArrowDtype(pa.decimal128(9, 1))), [2.0] * 3),
    "positions": ([0, 10**9, 10**18], [0.0, 1e9, 1e18]),
}  # fmt: skip


@pytest.mark.parametrize("case", TIMES)
def test_times(case):
    given, expected = TIMES[case]
    times = given if isinstance(given, pd.Series) else pd.Series(given, dtype=object)
    clicks = CLICKS.assign(user_id=["a", "b", "c"], timestamp=times)
    assert InteractionDataset(ITEMS, clicks).interactions["timestamp"].tolist() == expected


NO_TIMES = {
    "now": ["2024-01-01", "now", "2024-01-01"], "today": ["today"] * 3, "a year before Christ": ["-2024-01-01"] * 3,
    "nanoseconds among seconds": [1_700_000_000, 1_700_000_001, 1_700_000_002 * 10**9], "bytes": [b"1"] * 3,
    "too many digits": [1, 10**400, 3], "far too many digits": [1, 10**5000, 3], "complex": [1 + 2j, 1j, 2j],
    "durations": pd.to_timedelta([1, 2, 3]), "truth": [1, True, 0], "lists": [[1], [2], [3]],
    "times of day": [dt.time(1)] * 3,
    "periods": pd.period_range("2024", periods=3), "dates and numbers": [dt.date(2024, 1, 1), 5, 6],
}  # fmt: skip


@pytest.mark.parametrize("case", NO_TIMES)
def test_what_is_no_time_is_refused(case):
    values = NO_TIMES[case]
    times = pd.Series(values, dtype=object) if isinstance(values, list) else pd.Series(values)
    assert "column timestamp: " in refusal(
        ITEMS, CLICKS.assign(timestamp=times.to_numpy() if case == "complex" else times)
    )


def test_queries_cannot_be_made_from_anything():
    items = ITEMS.assign(paths=pd.Series([["Beauty"], None, {1: 2}], dtype=object))
    with pytest.raises(InputError, match=r"row 2, column price: 0.5 is neither text nor a list"):
        InteractionDataset(items.assign(price=[1, 0.5, 2]), CLICKS, search_fraction=1.0, category_column="price")


@pytest.mark.parametrize("dtype", ["str", "string"])
@pytest.mark.parametrize(
    "values", [["a b", "~!", "7.0", None, ""], ["7.0", None, "8.0"], ["a  b", " a", "ü\u00a0", "x\x1c"]]
)
def test_columns_of_text_are_read_like_columns_of_objects(values: list, dtype: str) -> None:
    texts, objects = (Table("t", pd.DataFrame({"c": pd.Series(values, dtype=kind)})) for kind in (dtype, object))
    pd.testing.assert_series_equal(text_column(texts, "c", "no"), text_column(objects, "c", "no"))
    pd.testing.assert_series_equal(id_column(texts, "c"), id_column(objects, "c"))
