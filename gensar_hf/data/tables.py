"""Tables from files, DataFrames and `datasets.Dataset`, and their columns of ids, text and times.

Every error names table, row, column, value and remedy. Rows are counted from 1, without the header, in files and in
memory.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gensar_hf.data.separated import read_separated
from gensar_hf.errors import InputError, shown

TableSource: TypeAlias = "str | os.PathLike[str] | pd.DataFrame | Any"  # Any: a datasets.Dataset, not imported here

_PARSER_COMPLAINT = 250  # characters of a parser's message that are shown
_LARGEST_INTEGER = 10**1000  # more digits are damage, and Python refuses to print more than 4,300
_STREAM_ROWS = 65_536  # of a streamed dataset that are read at a time
_ROW_BYTES = 300  # of interactions in memory, with what is made from them
_PIECE_ROWS = 1 << 19  # of a Parquet file that are read at a time; checking them takes about 250 bytes a row
_PLAIN_TEXT = "[!-~]+(?: [!-~]+)*"  # words of ASCII with single spaces between them
_LONGEST_NUMBER = 300  # characters; pandas cannot make a float of more digits
# Times of one column are in one unit: seconds, milli-, micro- or nanoseconds of 1973 and later begin at these numbers.
_UNITS = np.array([1e8, 1e11, 1e14, 1e17])
_OTHER_UNIT = "is in another unit than most times of the column", "give all of them in seconds"
_USE_ONE = "use one of the two"


def shown_value(value: Any) -> str:
    """A value as messages show it, cut to 60 characters."""
    text = shown(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else text[:60] + "…"


@dataclass(frozen=True)
class Table:
    """A table and its name in messages.

    `first_row` is the number of rows before a piece of a longer table; `parts` are the names and numbers of rows of the
    files that a table was read from, if these are several.
    """

    name: str
    frame: pd.DataFrame
    first_row: int = 0
    parts: Sequence[tuple[str, int]] = ()

    def complain(self, column: str, rows: np.ndarray, problem: str, remedy: str, value: Any = None) -> InputError:
        """The error for a column with bad `rows` (positions from 0), of which it shows the first.

        `problem` continues the sentence after the value, `remedy` ends it. `value` replaces that of the first bad row.
        """
        first = int(rows[0])
        value = self.frame[column].iloc[first] if value is None else value
        others = f" Bad rows in this column: {len(rows):,}." if len(rows) > 1 else ""
        name, row = self.name, self.first_row + first + 1
        for part, num_rows in self.parts:
            name = part
            if row <= num_rows:
                break
            row -= num_rows
        return InputError(
            f"{name}, row {row}, column {column}: {shown_value(value)} {problem}; {remedy} "
            f"(rows are counted from 1, without the header).{others}"
        )

    def require(self, columns: Iterable[str]) -> None:
        """Raise `InputError` if one of `columns` is missing; the message points out a column with a similar name."""
        present = list(self.frame.columns)
        for column in columns:
            if column in present:
                continue
            if len(present) == 1 and (marks := [mark for mark in ";\t|," if mark in present[0]]):
                raise InputError(
                    f"{self.name} has one column, {shown_value(present[0])}, which {marks[0]!r} seems to separate; "
                    "separate columns by commas in a .csv file, by tabs in a .tsv file."
                )
            by_plain_name = {name.lower().replace("_", "").replace(" ", ""): name for name in present}
            close = difflib.get_close_matches(column.replace("_", ""), by_plain_name, n=1, cutoff=0.6)
            hint = f"rename {by_plain_name[close[0]]!r} to {column!r}" if close else f"add a column named {column!r}"
            raise InputError(f"{self.name} has no column {column}, only {self.column_names}; {hint}.")

    @property
    def column_names(self) -> str:
        """The columns as messages show them: at most ten."""
        names = [name if len(name) <= 30 else f"{name[:30]}…" for name in self.frame.columns[:10]]
        more = len(self.frame.columns) - len(names)
        return (", ".join(names) or "none") + (f" and {more:,} more" if more else "")


def read_table(source: TableSource, role: str) -> Table:
    """Read a table from a file, a DataFrame or a `datasets.Dataset`.

    CSV and TSV values are read as text, so that an id like `007` and a title like `NA` stay as they are.

    Args:
        source: path of a .parquet, .csv, .tsv, .jsonl or .json file (UTF-8; .json holds a list of records); a folder
            of such files of one kind, or a pattern such as `log/2024-*.parquet`, which are read one after the other in
            the order of their names; the same as a URL of any file system that `fsspec` knows, such as `hf://` and
            `s3://`; a DataFrame; or a `datasets.Dataset`, streamed ones included.
        role: `items` or `interactions`; the name in messages of a table without a file.

    Raises:
        InputError: a file is missing, damaged or in another format, the parts have different columns, or the table has
            no rows.
    """
    if isinstance(source, pd.DataFrame):
        table = Table(f"the {role} table", source.reset_index(drop=True))
    elif _is_dataset(source):
        table = Table(f"the {role} dataset", _frame_of_dataset(source))
    elif isinstance(source, str | os.PathLike):
        table = _read_path(os.fspath(source), role)
    else:
        raise InputError(
            f"The {role} are a {type(source).__name__}; pass a path, a pandas DataFrame or one datasets.Dataset (of a "
            "DatasetDict, pick a split)."
        )
    _check_columns(table)
    if table.frame.empty:
        raise InputError(f"{table.name} holds no rows; give a table with at least one.")
    return table


def read_pieces(source: TableSource, role: str, choose: Callable[[Table], Sequence[str]]) -> Iterator[Table]:
    """Read a table of any size piece by piece: some rows of a Parquet file or a dataset, a whole file of another kind.

    Args:
        source: as for `read_table`; a DataFrame is one piece.
        role: as for `read_table`.
        choose: the columns to read, chosen from a table without rows that has all columns of a file.

    Raises:
        InputError: as in `read_table`, and what `choose` raises.
    """
    num_rows = 0
    for table in _pieces(source, role, choose):
        _check_columns(table)
        num_rows += len(table.frame)
        if len(table.frame):
            yield table
    if not num_rows:
        raise InputError(f"The {role} hold no rows; give a table with at least one.")


def refuse_too_many_rows(source: TableSource, role: str) -> None:
    """Refuse Parquet files whose rows would not fit into the memory of this machine.

    Raises:
        InputError: they would not.
    """
    if not isinstance(source, str | os.PathLike) or "://" in os.fspath(source):
        return
    num_rows = 0
    with _part_files(source, role) as files, suppress(OSError, pa.ArrowException):  # reading reports these
        num_rows = sum(pq.read_metadata(path).num_rows for path in files.values() if path.suffix.lower() == ".parquet")
    needed, available = _ROW_BYTES * num_rows, machine_bytes()
    if needed > available:
        raise InputError(
            f"{num_rows:,} {role} need about {needed / 2**30:,.1f} GiB in memory, and this machine has "
            f"{available / 2**30:,.1f} GiB; name a folder for them to be grouped in on disk (`log_dir`)."
        )


def machine_bytes() -> float:
    """Memory of this machine; infinity where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def source_files(source: TableSource, role: str) -> Any:
    """Names, sizes and times of the files of a table, for `files.fingerprint`; None for a table in memory."""
    if not isinstance(source, str | os.PathLike):
        return None
    with _part_files(source, role) as files:
        stats = {name: path.stat() for name, path in files.items() if path.is_file()}
    is_copy = "://" in os.fspath(source)
    return {name: [stat.st_size, 0 if is_copy else stat.st_mtime_ns] for name, stat in stats.items()}


def _pieces(source: TableSource, role: str, choose: Callable[[Table], Sequence[str]]) -> Iterator[Table]:
    if _is_dataset(source):
        dataset: Any = source
        first_row = 0
        for batch in dataset.with_format("arrow").iter(batch_size=_PIECE_ROWS):
            table = Table(f"the {role} dataset", _plain_frame(pa.table(batch)), first_row)
            _check_columns(table)
            yield dataclasses.replace(table, frame=table.frame[list(choose(table))])
            first_row += len(table.frame)
        return
    if not isinstance(source, str | os.PathLike):
        table = read_table(source, role)
        yield Table(table.name, table.frame[list(choose(table))])
        return
    with _part_files(source, role) as files:
        for name, frame in _frames(os.fspath(source), files, role, {**_READERS, ".parquet": _parquet_columns}):
            _check_columns(Table(name, frame))
            columns = list(choose(Table(name, frame.iloc[:0])))
            if files[name].suffix.lower() != ".parquet":
                yield Table(name, frame[columns])
                continue
            first_row = 0
            with _reading(files[name]), pq.ParquetFile(files[name]) as file:
                for batch in file.iter_batches(_PIECE_ROWS, columns=columns):
                    yield Table(name, _plain_frame(pa.Table.from_batches([batch])), first_row)
                    first_row += len(batch)


def _check_columns(table: Table) -> None:
    frame = table.frame
    frame.columns = frame.columns.map(str)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"{table.name} has two columns named {twice}; rename or drop one of them.")
    for name, values in frame.items():
        if isinstance(values.dtype, pd.StringDtype | pd.ArrowDtype):
            try:
                values.array.__arrow_array__().validate(full=True)
            except (pa.ArrowException, UnicodeError):
                raise InputError(f"{table.name}, column {name}: text that is not UTF-8; write it again.") from None


def _is_dataset(source: Any) -> bool:
    return hasattr(source, "to_pandas") and hasattr(source, "column_names") and not isinstance(source, pd.DataFrame)


def _frame_of_dataset(dataset: Any) -> pd.DataFrame:
    """A `datasets.Dataset` or a stream (`IterableDataset`) as a table."""
    if hasattr(dataset, "num_rows"):
        return dataset.to_pandas()
    pieces = [pa.table(piece) for piece in dataset.with_format("arrow").iter(batch_size=_STREAM_ROWS)]
    return pa.concat_tables(pieces, promote_options="permissive").to_pandas() if pieces else pd.DataFrame()


def _read_path(path: str, role: str) -> Table:
    """A file, a folder or a pattern, in the local file system or in another one, as one table."""
    with _part_files(path, role) as files:
        frames = dict(_frames(path, files, role, _READERS))
    if len(frames) == 1:
        ((name, frame),) = frames.items()
        return Table(Path(name).name, frame)
    sizes = [(name, len(frame)) for name, frame in frames.items()]
    frame = pd.concat([frame for frame in frames.values() if len(frame)] or [*frames.values()], ignore_index=True)
    return Table(f"{Path(path).name} ({len(frames)} files)", frame, parts=sizes)


@dataclass(frozen=True)
class _Copies(os.PathLike[str]):
    """A URL and copies of its files: name in messages → file."""

    url: str
    files: dict[str, Path]

    def __fspath__(self) -> str:
        return self.url


@contextmanager
def fetched(source: TableSource, role: str) -> Iterator[TableSource]:
    """The source; of a URL, copies of its files for the time of the block, so that they can be read several times."""
    if isinstance(source, str | os.PathLike) and "://" in (url := os.fspath(source)):
        with tempfile.TemporaryDirectory() as folder:
            yield _Copies(url, _fetched(url, Path(folder), role))
    else:
        yield source


@contextmanager
def _part_files(source: str | os.PathLike[str], role: str) -> Iterator[dict[str, Path]]:
    """The files of a path or URL: name in messages → file, which may be a copy for the time of the block."""
    path = os.fspath(source)
    with ExitStack() as stack:
        if "://" in path:
            copies = source if isinstance(source, _Copies) else stack.enter_context(fetched(path, role))
            assert isinstance(copies, _Copies)
            yield copies.files
        elif os.path.isdir(path):  # False for a name that is too long, which pathlib refuses
            names = (found.relative_to(path) for found in Path(path).rglob("*") if found.is_file())
            # Spark and others write `_SUCCESS` and hidden checksums beside the parts.
            visible = [name for name in names if not any(part.startswith((".", "_")) for part in name.parts)]
            yield {name.as_posix(): Path(path) / name for name in sorted(visible)}
        elif glob.has_magic(path) and not os.path.exists(path):
            found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
            yield {Path(name).name if "**" not in path else name: Path(name) for name in found}
        else:
            yield {Path(path).name: Path(path)}


def _fetched(url: str, folder: Path, role: str) -> dict[str, Path]:
    """Copy the files of a URL into a folder: name → copy."""
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        if system.isdir(root):
            found = system.find(root)
        else:
            found = system.glob(root) if glob.has_magic(root) else [root] if system.exists(root) else []
        copies = {}
        for number, name in enumerate(sorted(found)):
            relative = name.removeprefix(root).lstrip("/") or Path(name).name
            if not any(part.startswith((".", "_")) for part in Path(relative).parts):
                copies[relative] = folder / f"{number:06d}{Path(name).suffix}"
                system.get_file(name, str(copies[relative]))
    except (ImportError, ValueError, OSError) as error:
        raise InputError(
            f"{url} cannot be read ({str(error)[:_PARSER_COMPLAINT]}); correct the address of the {role}, or install "
            "what reads it."
        ) from error
    return copies


def _frames(
    path: str, files: dict[str, Path], role: str, readers: dict[str, Callable[[Path], pd.DataFrame]]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and content of each of several files, which must be of one kind and have the same columns."""
    if not files:
        raise InputError(f"{path} does not exist or holds no files; pass the path of the {role}.")
    kinds = {Path(name).suffix.lower() for name in files}
    if len(kinds) > 1:
        raise InputError(f"{path} holds files of several kinds ({', '.join(sorted(kinds))}); leave one kind there.")
    first = next(iter(files))
    columns: set[Any] = set()
    for name, file in files.items():
        try:
            frame = _read_file(file, role, readers)
        except InputError as error:
            if file.name == name:
                raise
            # A copy has another name.
            raise InputError(str(error).replace(str(file), name).replace(file.name, name)) from error
        columns = columns if name != first else set(frame.columns)
        if different := set(frame.columns) ^ columns:
            raise InputError(
                f"{path}: only one of {first} and {name} has the column {min(map(str, different))!r}; give parts of "
                "one table."
            )
        yield name, frame


def _read_file(path: Path, role: str, readers: dict[str, Callable[[Path], pd.DataFrame]]) -> pd.DataFrame:
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.name}: {path.suffix or 'a name without an extension'} is not a supported table format; save the "
            f"{role} as one of {', '.join(readers)}."
        )
    with _reading(path):
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"{path} {problem}; pass the path of the {role} file.")
        if path.stat().st_size == 0:
            raise InputError(f"{path.name} is empty; give a table with a header and at least one row.")
        return reader(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text ({error}); save it as UTF-8.") from None
    except (ValueError, TypeError, LookupError, RecursionError, pa.ArrowException, OSError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, TypeError | LookupError) else str(error)
        raise InputError(
            f"{path.name} cannot be read as {path.suffix.lower()[1:]} ({reason[:_PARSER_COMPLAINT]}); correct it or "
            "write it again."
        ) from error


def _read_json(path: Path) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        records = _parse_json(text)
    else:
        records = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    records.append(_parse_json(line))
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("it is not a list of objects, one object a row")
    return pd.DataFrame(records, dtype=object)  # other types would turn whole numbers beside missing ones into floats


def _parse_json(text: str) -> Any:
    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
            raise ValueError(f"the key {shown_value(twice)} is twice in one object")
        return values

    try:
        return json.loads(text, object_pairs_hook=record)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_parquet(path: Path) -> pd.DataFrame:
    return _plain_frame(pq.ParquetFile(path).read())


def _parquet_columns(path: Path) -> pd.DataFrame:
    """The columns of a file, without rows."""
    return _plain_frame(pq.ParquetFile(path).schema_arrow.empty_table())


def _plain_frame(table: pa.Table) -> pd.DataFrame:
    # The metadata of pandas can be damaged, and can turn a column into the index.
    frame = table.replace_schema_metadata().to_pandas(integer_object_nulls=True)
    return frame.drop(columns=[name for name in frame.columns if str(name).startswith("__index_level_")])


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": _read_parquet,
    ".csv": partial(read_separated, separator=","),
    ".tsv": partial(read_separated, separator="\t"),
    ".jsonl": _read_json,
    ".json": _read_json,
}


def id_of(value: Any, exact_bits: int = 53) -> str | None:
    """One id as text without surrounding spaces, "" where missing; None if it is neither one line of text nor a number.

    Whole numbers become text, so that 242, "242" and the 242.0 of a column with missing values are the same id.

    Args:
        value: as callers and tables have it.
        exact_bits: floats from 2 to this power on have lost digits and are refused.
    """
    if isinstance(value, float | np.floating) and abs(value) >= 2 ** min(exact_bits, np.finfo(type(value)).nmant + 1):
        return None
    text = text_of(value, separators=())
    text = None if text is None else text.strip()
    return None if text is None or any(character in text for character in "\n\r\0") else text


def read_ids(values: Iterable[Any], name: str) -> list[str]:
    """Ids that a caller passes, read as those of a table.

    Raises:
        ValueError: not a list, or a value that is missing or not an id.
    """
    is_list = isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1
    if isinstance(values, str | bytes | dict) or not is_list:
        raise InputError(f"`{name}` must be a list of item ids such as ['242', '302']; got {shown_value(values)}.")
    values = list(values)
    ids = [id_of(value) for value in values]
    for index, read in enumerate(ids):
        if not read:
            raise InputError(f"{name}[{index}]: {shown_value(values[index])} is not an item id; leave it out.")
    return [read for read in ids if read]


def id_column(table: Table, column: str, are_floats: bool | None = None) -> pd.Series:
    """Ids as text, "" where missing, read by `id_of`.

    If every value of a text column ends in ".0" (a column of floats, saved as CSV), that ending is dropped; of a piece
    of a column, `are_floats` says whether this holds of all of it.
    """
    values = table.frame[column]
    is_float = getattr(values.dtype, "kind", "") == "f"
    exact_bits = {2: 11, 4: 24}.get(getattr(values.dtype, "itemsize", 8), 53) if is_float else 53
    texts, bad = _read_each(values, partial(id_of, exact_bits=exact_bits))
    if len(bad):
        value = values.iloc[int(bad[0])]
        if isinstance(value, float | np.floating) and float(value).is_integer():
            raise table.complain(column, bad, "has lost its last digits in a column of floats", "store the ids as text")
        raise table.complain(column, bad, "is not an id", "ids are one line of text, or whole numbers")
    if are_floats_as_text(texts) if are_floats is None else are_floats:
        texts = texts.str.removesuffix(".0")
    return texts


def are_floats_as_text(ids: pd.Series) -> bool:
    """Whether ids, "" where missing, are whole numbers that a column of floats was turned into."""
    return bool(ids.str.endswith(".0").any() and ids[ids != ""].str.fullmatch(r"-?\d+\.0").all())


def tidy(text: str) -> str:
    """The text with each run of white space replaced by one space."""
    return " ".join(text.split())


def text_column(table: Table, column: str, remedy: str, separators: tuple[str, ...] = (", ", " > ")) -> pd.Series:
    """Text, "" where missing, read by `text_of`, with each run of white space replaced by one space.

    `remedy` ends the sentence about a value that is not text.
    """

    def read(value: Any) -> str | None:
        text = text_of(value, separators)
        return None if text is None else tidy(text)

    texts, bad = _read_each(table.frame[column], read)
    if len(bad):
        value = table.frame[column].iloc[int(bad[0])]
        problem = "holds half a character" if isinstance(value, str) else f"is not text but a {type(value).__name__}"
        raise table.complain(column, bad, problem, remedy)
    return texts


def _read_each(values: pd.Series, read: Callable[[Any], str | None]) -> tuple[pd.Series, np.ndarray]:
    """What `read` makes of each value, and the positions of the values that it refuses (None).

    Columns of one type are read once per distinct value. In a column of objects, 1 and True would be one value. Plain
    text, which `read` must leave as it is, is not read at all.
    """
    if isinstance(values.dtype, pd.SparseDtype):
        values = pd.Series(np.asarray(values), index=values.index)
    codes: np.ndarray = np.arange(len(values))
    distinct: Any = values
    if values.dtype != object:
        with suppress(TypeError, pa.ArrowException):  # lists have no hash
            codes, distinct = pd.factorize(values)  # the code of a missing value is -1, the last of `texts`
    is_text = isinstance(distinct, pd.Index) and isinstance(distinct.dtype, pd.StringDtype)
    if is_text and distinct.str.fullmatch(_PLAIN_TEXT).all():
        plain = pd.concat([distinct.to_series(), pd.Series([""])]).astype("str").array
        return pd.Series(plain.take(codes), index=values.index), np.zeros(0, dtype=np.int64)
    texts = [*map(read, distinct), ""]
    is_bad = np.array([text is None for text in texts])
    column = pd.array([text or "" for text in texts], dtype="str").take(codes)
    return pd.Series(column, index=values.index), np.flatnonzero(is_bad[codes])


def text_of(value: Any, separators: tuple[str, ...] = (", ", " > ")) -> str | None:
    """One value as text, "" where missing; None if it is neither text, a whole number, nor a list of these.

    Whole numbers (a year) become text. A list is joined with the first separator, a list inside it (a category path)
    with the second one. Text with half a surrogate pair, which UTF-8 cannot store, is not text.
    """
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "mM":  # a date would become a number
        value = value.tolist()
    if isinstance(value, str):
        return value if value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value) else None
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float | Decimal):
        if value != value:
            return ""
        if not -_LARGEST_INTEGER < value < _LARGEST_INTEGER:  # infinities, too
            return None
        return str(int(value)) if value == int(value) else None
    if isinstance(value, list | tuple) and separators:
        inner = [text_of(part, separators[1:]) for part in value]
        return None if None in inner else separators[0].join(part for part in inner if part)
    return None


def time_column(table: Table, column: str) -> np.ndarray:
    """Times as float64: numbers as they are, dates as seconds since 1970-01-01 (UTC unless a zone is named).

    Raises:
        InputError: a value is missing, infinite or neither a number nor an ISO date; or the column mixes the two, or
            seconds with parts of seconds.
    """
    times, kind = _read_times(table, column)
    units = np.digitize(np.abs(times), _UNITS)
    is_other = units != np.bincount(units).argmax()
    if column == "timestamp" and kind == "number" and units.min() > 0 and is_other.any():
        raise table.complain(column, np.flatnonzero(is_other), *_OTHER_UNIT)
    return times


class TimePieces:
    """Times of a column that is read piece by piece; the rules of `time_column` hold for all pieces together."""

    def __init__(self) -> None:
        self._kind = ""
        self._counts = np.zeros(len(_UNITS) + 1, dtype=np.int64)
        self._first: dict[int, InputError] = {}  # unit → the error of its first row

    def read(self, table: Table, column: str) -> np.ndarray:
        """The times of the next piece.

        Raises:
            InputError: as in `time_column`, but for mixed units.
        """
        times, kind = _read_times(table, column, self._kind)
        self._kind = self._kind or kind
        if kind != self._kind:
            raise table.complain(column, np.zeros(1, int), f"is a {kind}, but row 1 holds a {self._kind}", _USE_ONE)
        if column == "timestamp" and kind == "number":
            units = np.digitize(np.abs(times), _UNITS)
            self._counts += np.bincount(units, minlength=len(self._counts))
            found, rows = np.unique(units, return_index=True)
            for row, unit in sorted(zip(rows.tolist(), found.tolist(), strict=True)):
                if unit not in self._first:
                    self._first[unit] = table.complain(column, np.array([row]), *_OTHER_UNIT)
        return times

    def finish(self) -> None:
        """Check what only the whole column shows.

        Raises:
            InputError: the column mixes seconds with parts of seconds.
        """
        others = [error for unit, error in self._first.items() if unit != self._counts.argmax()]
        if others and not self._counts[0]:
            raise others[0]


def _read_times(table: Table, column: str, expected: str = "") -> tuple[np.ndarray, str]:
    """Finite times, and what they are: each a "number" or each a "date"; `expected` is what earlier rows are."""
    values = table.frame[column]
    remedy = "give a number (seconds, or a position) or an ISO date such as 2024-05-31T12:00:00"
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    kind = getattr(values.dtype, "kind", "")
    if kind in ("i", "u", "f"):
        is_missing, times = values.isna().to_numpy(), values.to_numpy(dtype=np.float64, na_value=np.nan)
    elif pd.api.types.is_datetime64_any_dtype(values):
        is_missing, times = values.isna().to_numpy(), _seconds(pd.to_datetime(values, utc=True))
    else:
        if isinstance(values.dtype, pd.StringDtype):  # most times differ, and one by one they take five times as long
            texts, bad = values.fillna("").astype("str").str.strip(), np.zeros(0, dtype=np.int64)
        else:
            texts, bad = _read_each(values, _time_text)
        if len(bad):
            raise table.complain(column, bad, "is neither a number nor an ISO date", remedy)
        is_missing = (texts == "").to_numpy()
        kind, times = ("", np.zeros(0)) if is_missing.any() else _parse_times(table, column, texts, remedy, expected)
    missing = np.flatnonzero(is_missing)
    if len(missing):
        raise table.complain(column, missing, "is not a time, the value is missing", remedy)
    infinite = np.flatnonzero(~np.isfinite(times))
    if len(infinite):
        raise table.complain(column, infinite, "is not a finite number", remedy)
    return times, "number" if kind in ("i", "u", "f") else "date"


def _time_text(value: Any) -> str | None:
    """A time as the text of a number or a date, "" where missing; None if it is neither."""
    if hasattr(value, "isoformat") and value is not pd.NaT:
        return value.isoformat()
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, float | np.floating | Decimal) and value == value:
        return str(value)
    text = text_of(value, separators=())
    return None if text is None else text.strip()


def _parse_times(
    table: Table, column: str, texts: pd.Series, remedy: str, expected: str = ""
) -> tuple[str, np.ndarray]:
    """The kind of times, "f" (numbers) or "M" (dates), and the times; the first row of all determines the kind."""
    readers = {"f": ("number", _numbers), "M": ("date", _dates)}
    is_date = expected == "date" if expected else np.isnan(_numbers(texts.iloc[:1])).all()
    kind, other = ("M", "f") if is_date else ("f", "M")
    (name, parse), (other_name, parse_other) = readers[kind], readers[other]
    times = parse(texts)
    bad = np.flatnonzero(np.isnan(times))
    if not len(bad):
        return kind, times
    is_first = bad[0] == 0 and not expected
    if not is_first and not np.isnan(parse_other(texts.iloc[bad[:1]])).all():
        raise table.complain(column, bad, f"is a {other_name}, but row 1 holds a {name}", _USE_ONE)
    raise table.complain(column, bad[:1] if is_first else bad, "is neither a number nor an ISO date", remedy)


def _numbers(texts: pd.Series) -> np.ndarray:
    short = texts.mask(texts.str.len() > _LONGEST_NUMBER, "inf")
    return pd.to_numeric(short, errors="coerce").to_numpy(dtype=np.float64)


def _dates(texts: pd.Series) -> np.ndarray:
    """Seconds since 1970, NaN where a text is not an ISO date. pandas reads "now" as one, too."""
    dated = texts.where(texts.str.match(r"\d{4}"))
    return _seconds(pd.to_datetime(dated, errors="coerce", format="ISO8601", utc=True))


def _seconds(dates: pd.Series) -> np.ndarray:
    index = pd.DatetimeIndex(dates)
    seconds = index.asi8 / {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[index.unit]
    return np.where(index.isna(), np.nan, seconds)
