"""Fuzz the reading of tables: seeded mutations of two small tables in all formats, compared with another reading.

    python tests/fuzz/fuzz_tables.py --cases 5000 --seed 0

Each case must be read right or be refused with one sentence. The expected reading is that of Python's `csv`, `json` and
`datetime` and of the few functions here, independent of pandas and Arrow. Prints a table of counts; exits 1 after a
traceback, a hang or a wrong result.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import io
import json
import logging
import math
import random
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gensar_hf.data import InteractionDataset
from gensar_hf.errors import InputError

LIMIT = 30  # seconds a case
CLASSES = ("right", "refused", "traceback", "hang", "wrong result")
TEXT_FORMATS = {"csv": ",", "tsv": "\t", "jsonl": "", "json": ""}
FORMATS = [*TEXT_FORMATS, "parquet", "frame"]
Row = dict[str, Any]
Reading = tuple[list, list]

ITEMS: list[Row] = [
    {"item_id": "007", "title": "Lip balm, red", "brand": "Acme", "year": 1999, "price": 2.5},
    {"item_id": "P2", "title": 'The 17" screen', "brand": "Ünïcode & Sons", "year": 2001, "price": None},
    {"item_id": "P3", "title": "two\nlines", "brand": "日本", "year": None, "price": 1.0},
    {"item_id": "242", "title": "NA", "brand": None, "year": 2020, "price": 7.25},
    {"item_id": "p2", "title": "  soap   bar ", "brand": "Acme", "year": 1984, "price": 0.0},
    {"item_id": "X-9", "title": "", "brand": "Emoji 🧼", "year": 2024, "price": 3.0},
]
CLICKS: list[Row] = [
    {"user_id": f"u{row % 4}", "item_id": ITEMS[row % 6]["item_id"] if row != 7 else None,
     "timestamp": 1_700_000_000 + 61 * (row * 7 % 20), "query": ["", "soap", None, 'a "b", c', "red balm"][row % 5]}
    for row in range(20)
]  # fmt: skip
CLICKS[7]["query"] = "only typed"
COLUMNS = {"items": list(ITEMS[0]), "clicks": list(CLICKS[0])}


class Refused(Exception):
    """The expected reading is a refusal."""


class Unknown(Exception):
    """Nothing is known of the right reading; no traceback and no hang is all that is asked for."""


# ---- the independent reading


def is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float | Decimal) and value != value)


def text_of(value: Any, lists: int = 0) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        if any(0xD800 <= ord(character) < 0xE000 for character in value):
            raise Refused
        return value
    if isinstance(value, np.ndarray):
        return text_of(value.tolist(), lists)
    if isinstance(value, np.generic):
        return text_of(value.item(), lists)
    if isinstance(value, bool):
        raise Refused
    if isinstance(value, int):
        if abs(value) >= 10**1000:
            raise Refused
        return str(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value) or Fraction(value).denominator != 1:
            raise Refused
        return str(int(value))
    if isinstance(value, list | tuple) and lists:
        parts = [text_of(part, lists - 1) for part in value]
        return (", " if lists == 2 else " > ").join(filter(None, parts))
    raise Refused


def ids_of(values: list[Any]) -> list[str]:
    for value in values:
        if isinstance(value, float | np.floating) and abs(value) >= 2**53:
            raise Refused
    ids = [text_of(value).strip() for value in values]
    if any(set("\n\r\0") & set(each) for each in ids):
        raise Refused
    if all(re.fullmatch(r"-?[0-9]+\.0", each) for each in ids if each):
        ids = [each.removesuffix(".0") for each in ids]
    return ids


def times_of(values: list[Any]) -> list[float]:
    numbers, dates = [], []
    for value in (value.item() if isinstance(value, np.generic) else value for value in values):
        if is_missing(value) or isinstance(value, bool | complex | list | dict | bytes):
            raise Refused
        if isinstance(value, dt.date):
            moment = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)
            dates.append(seconds_of(moment))
        elif isinstance(value, str):
            text = value.strip()
            if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
                numbers.append(float(text))
            elif re.fullmatch(
                r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?(\+[0-9]{2}:[0-9]{2}|Z)?)?", text
            ):
                try:
                    dates.append(seconds_of(dt.datetime.fromisoformat(text)))
                except ValueError:
                    raise Refused from None
            elif not re.search("[0-9]", text):  # "", now, today, a query
                raise Refused
            else:
                raise Unknown
        else:
            try:
                numbers.append(float(value))
            except (OverflowError, TypeError, ValueError):
                raise Refused from None
    if (numbers and dates) or any(not math.isfinite(number) for number in numbers):
        raise Refused
    sizes = [abs(number) for number in numbers]
    if numbers and min(sizes) >= 1e8 and max(sizes) / min(sizes) > 50:
        raise Refused if max(sizes) / min(sizes) > 1e4 else Unknown
    return numbers or dates


def seconds_of(moment: dt.datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds()


def reading(items: list[Row], clicks: list[Row], item_names: list[str], click_names: list[str]) -> Reading:
    """Items as (id, text) and clicks as (user, item, time, query), in the dataset's order.

    Raises:
        Refused: the tables must be refused.
        Unknown: a value whose reading is not defined here.
    """
    if not items or not clicks:
        raise Refused
    for names, needed in ((item_names, {"item_id"}), (click_names, {"user_id", "item_id", "timestamp"})):
        if len(set(names)) < len(names) or needed - set(names):
            raise Refused

    def column(rows: list[Row], name: str) -> list[Any]:
        return [row.get(name) for row in rows]

    item_ids = ids_of(column(items, "item_id"))
    chosen = [name for name in ("title", "name", "brand", "categories", "year") if name in item_names]
    texts = [[" ".join(text_of(value, 2).split()) for value in column(items, name)] for name in chosen]
    joined = [". ".join(part for part in parts if part) for parts in zip(*texts, strict=True)]
    if len(set(item_ids)) < len(item_ids) or "" in item_ids or not any(joined):
        raise Refused
    users, clicked = ids_of(column(clicks, "user_id")), ids_of(column(clicks, "item_id"))
    queries = [" ".join(text_of(value).split())[:1000].strip() for value in column(clicks, "query")]
    if "" in users or set(clicked) - {"", *item_ids}:
        raise Refused
    if any(not item and not query for item, query in zip(clicked, queries, strict=True)):
        raise Refused
    times = times_of(column(clicks, "timestamp"))
    first = {user: place for place, user in reversed(list(enumerate(users)))}
    rows = sorted(zip(users, clicked, times, queries, strict=True), key=lambda row: (first[row[0]], row[2]))
    return list(zip(item_ids, joined, strict=True)), rows


def parse(data: bytes, kind: str) -> tuple[list[Row], list[str]]:
    """Rows and column names of a text format, strictly."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused from None
    if kind in ("csv", "tsv"):
        if "\0" in text:
            raise Refused
        try:
            cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=TEXT_FORMATS[kind], strict=True))
        except csv.Error:
            raise Refused from None
        cells = [row for row in cells if row and (len(row) > 1 or row[0].strip(" "))]
        if not cells or any(len(row) != len(cells[0]) for row in cells):
            raise Refused
        return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]], [name for name in cells[0] if name]
    try:
        if kind == "json":
            rows = json.loads(text, object_pairs_hook=unique)
        else:
            rows = [json.loads(line, object_pairs_hook=unique) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        raise Refused from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Refused
    return rows, list(dict.fromkeys(name for row in rows for name in row))


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


# ---- writing


def as_text(value: Any) -> str:
    return "" if is_missing(value) else str(value)


def write(rows: list[Row], names: list[str], kind: str, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    if kind in ("csv", "tsv"):
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=TEXT_FORMATS[kind], lineterminator="\n", quoting=quoting)
        writer.writerows([names, *([as_text(row.get(name)) for name in names] for row in rows)])
        return file.getvalue().encode()
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return "".join(lines).encode("utf-8", "surrogatepass")


# ---- mutations; each returns the new bytes

FRAGMENTS = [
    b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b" ", b"0", b"9", b"-", b".",
    b"e", b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b":", b"null", b"NaN", b"true", b"1e999", "ſ".encode(),
    "\u2028".encode(),
    b'"\n', b',"', b'",', b"'", b"/", b"now",
]  # fmt: skip


def insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(FRAGMENTS) + data[place + rng.choice([0, 0, 1]) :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 1, 2, 20]) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randrange(1, 60)]
    return data[:start] + piece * rng.choice([2, 3]) + data[start + len(piece) :]


def several(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(2, 5)):
        data = rng.choice([insert, drop, repeat])(data, rng) or b"x"
    return data


def stray_quotes(data: bytes, rng: random.Random) -> bytes:
    """One quotation mark before a cell and one behind another."""
    separator = b"\t" if b"\t" in data else b","
    starts = [match.start() for match in re.finditer(rb"(?<=[\n%b])[^\"\n%b]" % (separator, separator), data)]
    ends = [match.end() for match in re.finditer(rb"[^\"\n%b](?=[\n%b])" % (separator, separator), data)]
    start, end = rng.choice(starts), rng.choice(ends)
    return (
        data[:start] + b'"' + data[start:end] + b'"' + data[end:] if start < end else data[:start] + b'"' + data[start:]
    )


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "insert": insert, "cut": cut, "drop": drop, "repeat": repeat, "several": several,
}  # fmt: skip
# Changes of the file that change no value.
NEUTRAL: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "blank lines": lambda data: data + b"\n\n",
    "no last line feed": lambda data: data.rstrip(b"\n"),
}
CELLS: list[Any] = [
    None, "", " ", "P2", " P2 ", "p2\u00a0", "\u200bP2", "P2\n", "P\n2", "P\0", "é", "e\u0301", 242, 242.0, "242.0",
    -1.0, 1.5, 2**53 + 1, float(2**53), 10**400, 10**5000, 1e300, math.inf, -math.inf, math.nan, True, False,
    Decimal("242"), Decimal("242.0"), Decimal("1.5"), Decimal("NaN"), Decimal("Infinity"), 1 + 2j, b"P2", b"\xff",
    ["P2"], ["P2", ["a", 1]], [1, None], [[[1]]], {"a": 1}, {"a": {"b": [1]}}, "\ud800", "\udfffx", "[/]", "[bold]",
    "=1+1", "now", "today", "9999-12-31", "0001-01-01", "-2024-01-01", "2024-05-31T12:00:00+01:00", "2024-02-30",
    "1.7e9", "1700000000000000000", 1_700_000_000_123, dt.date(2024, 5, 31), dt.datetime(9999, 12, 31),
    dt.datetime(2024, 5, 31, tzinfo=dt.UTC), pd.Timestamp("2024-05-31"), pd.NaT, pd.NA, np.int8(7), np.int64(242),
    np.float32(242), np.float32(2**24 + 2), np.float64(1.5), np.str_("P2"), np.bool_(True),
    np.datetime64("2024-05-31"), np.array(["P2"]), np.array(5), (1, 2), {1}, object(), dt.time(12), dt.timedelta(1),
    pd.Period("2024-05"), "x" * 5000, "a\tb", 'a"b', "a,b", "\ufeffP2",
]  # fmt: skip
COLUMN_TIMES: list[list[Any]] = [
    [f"2024-01-{day + 1:02d}" for day in range(20)],
    [f"{9980 + day}-12-31" for day in range(20)],
    [dt.date(2024, 1, day + 1) for day in range(20)],
    [dt.datetime(2024, 1, day + 1, tzinfo=dt.timezone(dt.timedelta(hours=day - 10))) for day in range(20)],
    [f"2024-01-{day + 1:02d}T00:00:00{['Z', '+05:00', ''][day % 3]}" for day in range(20)],
    [f"{day}.5" for day in range(20)],
    [Decimal(day) for day in range(20)],
    [1_700_000_000_000 + day for day in range(20)],
    ["today"] * 20,
    [True, False] * 10,
]


def deep(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def frame_of(rows: list[Row], names: list[str], rng: random.Random) -> pd.DataFrame:
    """The rows with a random dtype for each column; a dtype that cannot hold the values is passed over."""
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        dtype = rng.choice(
            ["object", "infer", "category", "string[python]", "string[pyarrow]", "pyarrow", "Int64", "float",
             "arrow-large", "arrow-dictionary", "Float64", "decimal"]
        )  # fmt: skip
        columns[name] = converted(values, dtype)
    return pd.DataFrame(columns)


def converted(values: list[Any], dtype: str) -> pd.Series:
    plain = [None if is_missing(value) else value for value in values]
    is_text, is_whole = (all(value is None or type(value) is kind for value in plain) for kind in (str, int))
    try:
        if dtype == "infer":
            return pd.Series(plain)
        if dtype == "category":
            return pd.Series(plain, dtype="category")
        if dtype == "pyarrow":
            return pd.Series(plain, dtype=pd.ArrowDtype(pa.array(plain).type))
        if is_text and dtype.startswith("string"):
            return pd.Series(plain, dtype=dtype)
        if is_text and dtype == "arrow-large":
            return pd.Series(plain, dtype=pd.ArrowDtype(pa.large_string()))
        if is_text and dtype == "arrow-dictionary":
            return pd.Series(plain, dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))
        if is_whole and dtype in ("Int64", "Float64", "float"):
            return pd.Series(plain, dtype=dtype)
        if is_whole and dtype == "decimal":
            decimals = [None if value is None else Decimal(value) for value in plain]
            return pd.Series(decimals, dtype=pd.ArrowDtype(pa.decimal128(20, 1)))
    except (TypeError, ValueError, OverflowError, pa.ArrowException):
        pass
    return pd.Series(values, dtype=object)


# ---- one case


class Case:
    """Sources for `InteractionDataset` and the expected reading.

    Attributes:
        name: of the mutation.
        items, clicks: the sources.
        expected: the reading, or the class of exception in its place.
        must_accept: whether a refusal is wrong.
    """

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng, self.folder, self.must_accept = rng, folder, False
        self.tables = {"items": [dict(row) for row in ITEMS], "clicks": [dict(row) for row in CLICKS]}
        self.names = {table: list(names) for table, names in COLUMNS.items()}
        self.kinds = {table: rng.choice(FORMATS) for table in COLUMNS}
        self.target = rng.choice(["items", "clicks"])
        self.sources: dict[str, Any] = {}
        self.texts: dict[str, bytes] = {}
        self.is_opaque = False
        makers = [self.bytes_case, self.bytes_case, self.quote_case, self.cell_case, self.cell_case, self.column_case,
                  self.neutral_case, self.structure_case]  # fmt: skip
        self.name = rng.choice(makers)()
        for table in COLUMNS:
            if table not in self.sources:
                self.sources[table] = self.stored(table)
        self.expected = self.expectation()

    def stored(self, table: str) -> Any:
        """Write a table in its format; a value that the format cannot hold makes it a DataFrame."""
        kind, rows, names = self.kinds[table], self.tables[table], self.names[table]
        path = self.folder / f"{table}.{kind}"
        if table in self.texts:
            path.write_bytes(self.texts[table])
            return path
        if kind in TEXT_FORMATS:
            try:
                data = write(rows, names, kind)
            except (TypeError, ValueError, RecursionError):
                pass
            else:
                self.texts[table] = data
                path.write_bytes(data)
                return path
        frame = frame_of(rows, names, self.rng)
        if kind == "parquet":
            try:
                frame.to_parquet(path)
                return path
            except Exception:  # of any kind: what pandas cannot write is passed in memory
                path.unlink(missing_ok=True)
        self.kinds[table] = "frame"
        return frame

    def expectation(self) -> Any:
        if self.is_opaque:
            return Unknown
        rows, names = dict(self.tables), dict(self.names)
        try:
            for table, data in self.texts.items():
                rows[table], names[table] = parse(data, self.kinds[table])
            return reading(rows["items"], rows["clicks"], names["items"], names["clicks"])
        except (Refused, Unknown) as verdict:
            return type(verdict)

    # mutations: each changes the tables or the texts and returns its name

    def text_kind(self, *kinds: str) -> str:
        self.kinds[self.target] = self.rng.choice(kinds)
        return self.kinds[self.target]

    def bytes_case(self) -> str:
        kind = self.text_kind(*TEXT_FORMATS, *TEXT_FORMATS, "parquet")
        name = self.rng.choice(list(BYTES))
        if kind == "parquet":
            path = self.folder / f"{self.target}.parquet"
            pd.DataFrame(self.tables[self.target]).to_parquet(path)
            path.write_bytes(BYTES[name](path.read_bytes(), self.rng))
            self.sources[self.target], self.is_opaque = path, True
            return f"bytes of parquet: {name}"
        quoting = self.rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        data = write(self.tables[self.target], self.names[self.target], kind, quoting)
        self.texts[self.target] = BYTES[name](data, self.rng)
        return f"bytes of {kind}: {name}"

    def quote_case(self) -> str:
        kind = self.text_kind("csv", "tsv")
        data = write(self.tables[self.target], self.names[self.target], kind)
        self.texts[self.target] = stray_quotes(data, self.rng)
        return "stray quotation marks"

    def cell_case(self) -> str:
        rows = self.tables[self.target]
        column, value = self.rng.choice(self.names[self.target]), self.rng.choice(CELLS)
        for row in self.rng.sample(rows, self.rng.choice([1, 1, 1, 2, len(rows)])):
            row[column] = value
        return f"cell of {column}"

    def column_case(self) -> str:
        if self.rng.random() < 0.5:
            self.target = "clicks"
            for row, time in zip(self.tables["clicks"], self.rng.choice(COLUMN_TIMES), strict=True):
                row["timestamp"] = time
            return "column of times"
        ids = {row["item_id"]: place * 1000 + 7 for place, row in enumerate(ITEMS)}  # all ids are whole numbers
        for rows in self.tables.values():
            for row in rows:
                row["item_id"] = ids.get(row["item_id"])
        self.must_accept = True
        return "whole numbers as ids"

    def neutral_case(self) -> str:
        self.must_accept = True
        kind = self.text_kind(*FORMATS)
        if kind not in TEXT_FORMATS:
            return f"{kind}, as it is"
        name = self.rng.choice(list(NEUTRAL))
        quoting = self.rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        data = NEUTRAL[name](write(self.tables[self.target], self.names[self.target], kind, quoting))
        if kind in ("csv", "tsv") and self.rng.random() < 0.3:
            data = data.replace(b"\n", b"\r\n")
        self.texts[self.target] = data
        return f"{name}, {kind}"

    def structure_case(self) -> str:
        """Changes of columns, rows, names of files and encodings."""
        table, rows, names = self.target, self.tables[self.target], self.names[self.target]
        choice = self.rng.choice(
            ["twice", "shuffled", "dropped", "extra", "deep", "encoding", "short row", "long name", "key twice",
             "metadata", "not UTF-8", "order of rows", "empty", "many columns"]
        )  # fmt: skip
        if choice == "twice":
            self.text_kind("csv", "tsv")
            names.append(self.rng.choice(names))
        elif choice == "shuffled":
            self.rng.shuffle(names)
            for row in rows:
                items = [(name, row[name]) for name in names]
                row.clear()
                row.update(items)
            self.must_accept = True
        elif choice == "dropped":
            name = self.rng.choice(names)
            names.remove(name)
            for row in rows:
                del row[name]
        elif choice in ("extra", "deep"):
            value = self.rng.choice(CELLS) if choice == "extra" else deep(self.rng.choice([3, 50, 150, 500, 900]))
            names.append("extra")
            for row in rows:
                row["extra"] = value if self.rng.random() < 0.7 else None
        elif choice == "encoding":
            kind = self.text_kind(*TEXT_FORMATS)
            encoding = self.rng.choice(["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32", "utf-7", "shift_jis"])
            self.texts[table] = write(rows, names, kind).decode().encode(encoding, "replace")
        elif choice == "short row":
            kind = self.text_kind("csv", "tsv")
            lines = write(rows, names, kind).split(b"\n")
            place, separator = self.rng.randrange(1, len(lines) - 1), TEXT_FORMATS[kind].encode()
            lines[place] = self.rng.choice(
                [lines[place].rpartition(separator)[0], lines[place] + separator, separator + lines[place]]
            )
            self.texts[table] = b"\n".join(lines)
        elif choice == "long name":
            self.sources[table] = self.folder / f"{'ü' * self.rng.choice([126, 200, 3000])}.csv"
            self.is_opaque = True
        elif choice == "key twice":
            kind = self.text_kind("json", "jsonl")
            row = self.rng.choice(rows)
            line = json.dumps(row, ensure_ascii=False)
            name = self.rng.choice(names)
            longer = f"{line[:-1]}, {json.dumps(name)}: {json.dumps(row[name])}}}"
            self.texts[table] = write(rows, names, kind).replace(line.encode(), longer.encode())
        elif choice in ("metadata", "not UTF-8"):
            path = self.folder / f"{table}.parquet"
            arrow = pa.Table.from_pandas(pd.DataFrame(rows))
            if choice == "metadata":
                noise = self.rng.choice(
                    [b"", b"{}", b"[]", b'{"columns": 1}', b'{"index_columns": ["x"], "columns": []}', b"\xff"]
                )
                arrow = arrow.replace_schema_metadata({b"pandas": noise})
                self.must_accept = True
            else:
                name = self.rng.choice([field.name for field in arrow.schema if "string" in str(field.type)])
                values = pa.array([b"\xff\xfe"] * len(rows), pa.binary())
                bad = pa.Array.from_buffers(pa.string(), len(rows), values.buffers())
                arrow = arrow.set_column(arrow.column_names.index(name), name, bad)
                self.is_opaque = True
            pq.write_table(arrow, path)
            self.sources[table], self.kinds[table] = path, "parquet"
        elif choice == "order of rows":
            self.rng.shuffle(rows)
            self.must_accept = True
        elif choice == "empty":
            rows.clear()
        elif choice == "many columns":
            names[:] = [f"c{number}" for number in range(3000)]
            rows[:] = [dict.fromkeys(names, 1)] * 2
        return choice

    # the verdict

    def verdict(self) -> tuple[str, str]:
        """The class of the result, and what there is to say about it."""
        previous = signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            data = InteractionDataset(self.sources["items"], self.sources["clicks"])
            if self.rng.random() < 0.2:
                data.save(self.folder / "saved")
                data = InteractionDataset.load(self.folder / "saved")
            got = read_back(data)
        except InputError as error:
            message = str(error)
            if len(message) > 500 or "\n" in message or not message.rstrip("0123456789,").endswith((".", ":", ": ")):
                return "traceback", f"not one sentence of 500 characters: {message[:600]}"
            if self.must_accept and self.expected is not Refused:
                return "wrong result", f"refused: {message}"
            return "refused", message
        except TimeoutError:
            return "hang", traceback.format_exc(limit=-3)
        except Exception:
            return "traceback", traceback.format_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        if self.name == "stray quotation marks" and (len(got[0]), len(got[1])) != (len(ITEMS), len(CLICKS)):
            return "wrong result", f"rows are swallowed: {len(got[0])} items, {len(got[1])} rows"
        if self.expected is Unknown:
            return "right", ""
        if self.expected is Refused:
            return "wrong result", f"accepted, but it must be refused: {str(got)[:1500]}"
        for theirs, own in zip(got, self.expected, strict=True):
            if theirs != own:
                wrong = next((pair for pair in zip(theirs, own, strict=False) if pair[0] != pair[1]), "number of rows")
                return "wrong result", f"got and expected: {wrong}"
        return "right", ""


def read_back(data: InteractionDataset) -> Reading:
    rows = list(data.interactions[["user_id", "item_id", "timestamp", "query"]].itertuples(index=False, name=None))
    return list(zip(data.item_ids, data.item_texts(), strict=True)), rows


def _alarm(*_: Any) -> None:
    raise TimeoutError


def run(num_cases: int, seed: int, show: int = 20) -> dict[str, Counter]:
    """Class → mutation → count; the first `show` bad cases go to stderr."""
    counts: dict[str, Counter] = {name: Counter() for name in CLASSES}
    logging.disable(logging.WARNING)
    try:
        for number in range(num_cases):
            with tempfile.TemporaryDirectory() as folder:
                case = Case(random.Random(f"{seed}-{number}"), Path(folder))
                verdict, about = case.verdict()
            counts[verdict][re.sub(r" of (csv|tsv|jsonl|json)|, (csv|tsv|jsonl|json)$", "", case.name)] += 1
            if verdict in CLASSES[2:] and sum(map(Counter.total, list(counts.values())[2:])) <= show:
                print(
                    f"--- case {number}: {case.name}, {case.target}, {case.kinds}: {verdict}\n{about}", file=sys.stderr
                )
    finally:
        logging.disable(logging.NOTSET)
    return counts


def main() -> int:
    """Run and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="bad cases that are described")
    args = parser.parse_args()
    counts = run(args.cases, args.seed, args.show)
    names = sorted({name for by_name in counts.values() for name in by_name})
    print(f"{'mutation':<28}" + "".join(f"{name:>14}" for name in CLASSES))
    for name in names:
        print(f"{name:<28}" + "".join(f"{counts[kind][name]:>14,}" for kind in CLASSES))
    print(f"{'all':<28}" + "".join(f"{counts[kind].total():>14,}" for kind in CLASSES))
    return int(any(counts[kind] for kind in CLASSES[2:]))


if __name__ == "__main__":
    sys.exit(main())
