"""Tables from files, DataFrames and `datasets.Dataset`, and their columns of ids, text and times.

Every error names table, row, column, value and remedy. Rows are counted from 1, without the header, in files and in
memory.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from gensar_hf.errors import InputError

TableSource: TypeAlias = "str | os.PathLike[str] | pd.DataFrame | Any"  # Any: a datasets.Dataset, not imported here

_EXACT_FLOAT = 2**53  # float64 cannot represent all larger whole numbers


def shown_value(value: Any) -> str:
    """A value as messages show it, cut to 60 characters."""
    shown = repr(value.item() if isinstance(value, np.generic) else value)
    return shown if len(shown) <= 60 else shown[:60] + "…"


@dataclass(frozen=True)
class Table:
    """A table and its name in messages; `first_row` is the number of rows before a piece of a longer table."""

    name: str
    frame: pd.DataFrame
    first_row: int = 0

    def complain(self, column: str, rows: np.ndarray, problem: str, remedy: str, value: Any = None) -> InputError:
        """The error for a column with bad `rows` (positions from 0), of which it shows the first.

        `problem` continues the sentence after the value, `remedy` ends it. `value` replaces that of the first bad row.
        """
        first = int(rows[0])
        value = self.frame[column].iloc[first] if value is None else value
        others = f" Bad rows in this column: {len(rows):,}." if len(rows) > 1 else ""
        return InputError(
            f"{self.name}, row {self.first_row + first + 1}, column {column}: {shown_value(value)} {problem}; {remedy} "
            f"(rows are counted from 1, without the header).{others}"
        )

    def require(self, columns: Iterable[str]) -> None:
        """Raise `InputError` if one of `columns` is missing; the message points out a column with a similar name."""
        present = [str(name) for name in self.frame.columns]
        for column in columns:
            if column in present:
                continue
            by_plain_name = {name.lower().replace("_", "").replace(" ", ""): name for name in present}
            close = difflib.get_close_matches(column.replace("_", ""), by_plain_name, n=1, cutoff=0.6)
            hint = f"rename {by_plain_name[close[0]]!r} to {column!r}" if close else f"add a column named {column!r}"
            raise InputError(f"{self.name} has no column {column}, only {', '.join(present) or 'none'}; {hint}.")


def read_table(source: TableSource, role: str) -> Table:
    """Read a table from a file, a DataFrame or a `datasets.Dataset`.

    CSV and TSV values are read as text, so that an id like `007` and a title like `NA` stay as they are.

    Args:
        source: path of a .parquet, .csv, .tsv, .jsonl or .json file (UTF-8; .json holds a list of records), a
            DataFrame, or a `datasets.Dataset`.
        role: `items` or `interactions`; the name in messages of a table without a file.

    Raises:
        InputError: the file is missing, damaged or in another format, or the table has no rows.
    """
    if isinstance(source, pd.DataFrame):
        table = Table(f"the {role} table", source.reset_index(drop=True))
    elif hasattr(source, "to_pandas") and hasattr(source, "column_names"):
        table = Table(f"the {role} dataset", source.to_pandas())
    elif isinstance(source, str | os.PathLike):
        table = Table(Path(source).name, _read_file(Path(source), role))
    else:
        raise InputError(
            f"The {role} are a {type(source).__name__}; pass a path, a pandas DataFrame or one datasets.Dataset (of a "
            "DatasetDict, pick a split)."
        )
    if not table.frame.columns.is_unique:
        twice = table.frame.columns[table.frame.columns.duplicated()][0]
        raise InputError(f"{table.name} has two columns named {twice}; rename or drop one of them.")
    if table.frame.empty:
        raise InputError(f"{table.name} holds no rows; give a table with at least one.")
    return table


def _read_file(path: Path, role: str) -> pd.DataFrame:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.name}: {path.suffix or 'a name without an extension'} is not a supported table format; save the "
            f"{role} as one of {', '.join(_READERS)}."
        )
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {problem}; pass the path of the {role} file.")
    try:
        return reader(path)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path.name} is empty; give a table with a header and at least one row.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text ({error}); save it as UTF-8.") from None
    except (ValueError, pa.ArrowException, pd.errors.ParserError, pd.errors.ParserWarning, OSError) as error:
        raise InputError(
            f"{path.name} cannot be read as {path.suffix.lower()[1:]} ({error}); correct it or write it again."
        ) from error


def _read_separated(path: Path) -> pd.DataFrame:
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    with warnings.catch_warnings():
        # pandas only warns when rows are longer than the header, and then drops or shifts columns
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")


def _read_json_lines(path: Path) -> pd.DataFrame:
    try:
        return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
    except ValueError:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            try:
                json.loads(line if line.strip() else "{}")
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
        raise


def _read_json(path: Path) -> pd.DataFrame:
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("it is not a list of objects, one object a row")
    return pd.DataFrame(records)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
}


def id_column(table: Table, column: str) -> pd.Series:
    """Ids as text, "" where missing, without surrounding spaces.

    Whole numbers become text, so that 242, "242" and the 242.0 of a column with missing values are the same id. If
    every value of a text column ends in ".0" (such a column, saved as CSV), that ending is dropped.
    """
    values = _unwrapped(table.frame[column])
    if pd.api.types.is_float_dtype(values):
        large = np.flatnonzero(values.abs().to_numpy(dtype=float, na_value=0.0) >= _EXACT_FLOAT)
        if len(large):
            raise table.complain(
                column, large, "has lost its last digits in a column of floats", "store the ids as text"
            )
    texts, bad = _scalar_texts(values)
    if len(bad):
        raise table.complain(column, bad, "is not an id", "ids are text or whole numbers")
    texts = texts.str.strip()
    if texts.str.endswith(".0").any() and texts[texts != ""].str.fullmatch(r"\d+\.0").all():
        texts = texts.str.removesuffix(".0")
    return texts


def text_column(table: Table, column: str, remedy: str) -> pd.Series:
    """Text, "" where missing, with each run of white space replaced by one space.

    Whole numbers (a year) become text. A list is joined with ", ", a list inside it (a category path) with " > ".
    `remedy` ends the sentence about a value that is not text.
    """
    texts, bad = _scalar_texts(_unwrapped(table.frame[column]))
    if len(bad):
        value = table.frame[column].iloc[int(bad[0])]
        raise table.complain(column, bad, f"is not text but a {type(value).__name__}", remedy)
    texts = texts.str.strip()
    untidy = texts.str.contains(r"\s\s|[\t\r\n]", regex=True)  # replacing in the few rows only is ten times faster
    return texts.mask(untidy, texts[untidy].str.split().str.join(" ")) if untidy.any() else texts


def _unwrapped(values: pd.Series) -> pd.Series:
    """A categorical column as the column of its values; a column of objects of one type as that type."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    return values.infer_objects() if values.dtype == object else values


def _scalar_texts(values: pd.Series) -> tuple[pd.Series, np.ndarray]:
    """Each value as text, and the positions of the values that cannot be text."""
    missing = values.isna().to_numpy()
    none = np.empty(0, dtype=np.int64)
    if pd.api.types.is_integer_dtype(values):
        return values.astype("str").mask(missing, ""), none
    if pd.api.types.is_float_dtype(values):
        numbers = values.to_numpy(dtype=float, na_value=0.0)
        whole = np.isfinite(numbers) & (numbers == np.trunc(numbers))
        as_integers = pd.Series(np.where(whole & ~missing, numbers, 0).astype(np.int64), index=values.index)
        return as_integers.astype("str").mask(missing, ""), np.flatnonzero(~whole & ~missing)
    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").astype("str"), none
    if values.dtype != object:  # bool, datetime, ...
        return values.astype("str"), np.flatnonzero(~missing)
    texts = ["" if absent else text_of(value) for value, absent in zip(values, missing, strict=True)]
    bad = np.array([position for position, text in enumerate(texts) if text is None], dtype=np.int64)
    return pd.Series(["" if text is None else text for text in texts], index=values.index, dtype="str"), bad


def text_of(value: Any, separators: tuple[str, ...] = (", ", " > ")) -> str | None:
    """One value as text; None if it is neither text, a whole number, nor a list of these, at most two levels deep."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() else None
    if isinstance(value, list | tuple | np.ndarray) and separators:
        inner = [text_of(part, separators[1:]) for part in value if part is not None]
        return None if None in inner else separators[0].join(part for part in inner if part)
    return None


def time_column(table: Table, column: str) -> np.ndarray:
    """Times as float64: numbers as they are, dates as seconds since 1970-01-01 (UTC unless a zone is named).

    Raises:
        InputError: a value is missing, infinite or neither a number nor an ISO date, or the column mixes the two.
    """
    values = _unwrapped(table.frame[column])
    remedy = "give a number (seconds, or a position) or an ISO date such as 2024-05-31T12:00:00"
    is_missing = values.isna().to_numpy()
    if isinstance(values.dtype, pd.StringDtype):
        is_missing = is_missing | (values.str.strip() == "").to_numpy(dtype=bool, na_value=False)
    missing = np.flatnonzero(is_missing)
    if len(missing):
        raise table.complain(column, missing, "is not a time, the value is missing", remedy)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64)
    else:
        numbers = _parse_times(table, column, values, remedy)
    infinite = np.flatnonzero(~np.isfinite(numbers))
    if len(infinite):
        raise table.complain(column, infinite, "is not a finite number", remedy)
    return numbers


def _parse_times(table: Table, column: str, values: pd.Series, remedy: str) -> np.ndarray:
    """Times from text or dates; the first row determines whether the column holds numbers or dates."""
    kind, parse, other, parse_other = "number", _numbers, "date", _dates
    if parse(values.iloc[:1]).isna().all():
        kind, parse, other, parse_other = other, parse_other, kind, parse
    parsed = parse(values)
    bad = np.flatnonzero(parsed.isna().to_numpy())
    if not len(bad):
        return parsed.to_numpy(dtype=np.float64)
    if bad[0] and parse_other(values.iloc[bad[:1]]).notna().all():
        raise table.complain(column, bad, f"is a {other}, but row 1 holds a {kind}", "use one of the two")
    raise table.complain(column, bad[:1] if bad[0] == 0 else bad, "is neither a number nor an ISO date", remedy)


def _numbers(values: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_bool_dtype(values):
        return pd.Series(np.nan, index=values.index)
    return pd.to_numeric(values, errors="coerce").astype("float64")


def _dates(values: pd.Series) -> pd.Series:
    """Seconds since 1970, NaN where a value is not an ISO date."""
    if pd.api.types.is_bool_dtype(values):
        return pd.Series(np.nan, index=values.index)
    dates = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    return (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
