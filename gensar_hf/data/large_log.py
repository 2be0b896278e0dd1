"""Logs larger than memory: grouped by user on disk, and read as memory-mapped arrays.

A grouped log is a folder that DuckDB (`group_log`) or another engine writes:

- `users/*.parquet`: one row a user. `user_id` (text, distinct), and the lists `items`, `queries` (integers) and
  `timestamps` (float64) of equal length, in the order of time. An item is a row of the items table, a query a row of
  `queries.parquet`, both from 0, and -1 where there is none.
- `queries.parquet`: `query` (text, distinct).
- `items.parquet`, if it is there: the items table. No other one is then accepted.
- `events/`: made from the two, the arrays of `UserEvents` as `.npy` files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gensar_hf.data.user_events import UserEvents, rows_to_events
from gensar_hf.errors import InputError, extra_installed, shown
from gensar_hf.files import atomic_path, damage_reported, fingerprint, read_json, write_json

_QUERIES, _USERS, _EVENTS, _ITEMS = "queries.parquet", "users", "events", "items.parquet"
_ABOUT = "about.json"
_MEMORY_LIMIT = "1GB"  # of DuckDB, which uses the disk for the rest; each thread needs about 125 MB
_MAX_THREADS = 4
_SORTED_ROWS = 1 << 18  # that DuckDB hands over at a time
_PART_ROWS = 1 << 23  # of the log in one file of users
_USERS_AT_A_TIME = 1 << 14  # whose events are made at a time
_HEADER_BYTES = 128  # of a one-dimensional .npy file of any length
_LISTS = ("items", "queries", "timestamps")
_USER_SCHEMA = pa.schema(
    [
        ("user_id", pa.large_string()),
        ("items", pa.list_(pa.int64())),
        ("queries", pa.list_(pa.int64())),
        ("timestamps", pa.list_(pa.float64())),
    ]
)


class MappedTexts(Sequence[str]):
    """Texts in one array of UTF-8 bytes, which may be memory-mapped.

    Args:
        ends: `(num_texts + 1,)` int64; text i is `characters[ends[i]:ends[i + 1]]`.
        characters: uint8.
    """

    def __init__(self, ends: np.ndarray, characters: np.ndarray) -> None:
        self._ends, self._characters = ends, characters

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> MappedTexts: ...
    def __getitem__(self, index: int | slice) -> str | MappedTexts:
        """One text, or those of a slice of step 1."""
        if isinstance(index, slice):
            first, last, _ = index.indices(len(self))
            return MappedTexts(self._ends[first : max(first, last) + 1], self._characters)
        place = range(len(self))[index]
        return self._characters[self._ends[place] : self._ends[place + 1]].tobytes().decode()


@dataclass(frozen=True)
class GroupedLog:
    """A grouped log on disk."""

    folder: Path

    @classmethod
    def find(cls, source: Any) -> GroupedLog | None:
        """The grouped log in a folder, None if it is another table."""
        if not isinstance(source, str | os.PathLike):
            return None
        has_both = os.path.exists(os.path.join(source, _QUERIES)) and os.path.isdir(os.path.join(source, _USERS))
        return cls(Path(source)) if has_both else None

    @property
    def content(self) -> list[Path]:
        """The files and folders that everything else is made from."""
        return [self.folder / _QUERIES, self.folder / _USERS]

    def events(self, item_ids: Sequence[str]) -> UserEvents:
        """The events, memory-mapped; made first if the folder has none or has those of other users.

        Args:
            item_ids: the catalogue that the log's items are rows of.

        Raises:
            InputError: the log is damaged, breaks its form or has other items, or the folder cannot be written to.
        """
        self._check_items(item_ids)
        folder, state = self.folder / _EVENTS, self._state(len(item_ids))
        if not (folder / _ABOUT).is_file() or read_json(folder / _ABOUT).get("state") != state:
            self.write_events(len(item_ids))
        about = read_json(folder / _ABOUT)
        with damage_reported(folder, f"delete {folder}, which makes it again"):
            arrays = {path.stem: _mapped(path) for path in folder.glob("*.npy")}
            texts = [MappedTexts(arrays[f"{name}_ends"], arrays[f"{name}_characters"]) for name in ("users", "queries")]
            flat = {name: arrays[name] for name in ("offsets", "behaviors", "items", "queries", "timestamps")}
            offsets, *others = flat.values()
            if len(offsets) != len(texts[0]) + 1 or any(len(array) != offsets[-1] for array in others):
                raise ValueError("the lengths of the arrays differ")
        digest = fingerprint(about["digest"], "\n".join(item_ids))
        return UserEvents(texts[0], list(item_ids), texts[1], **flat, digest=digest)

    @property
    def num_rows(self) -> int:
        """Number of interactions, once the events are made."""
        return int(read_json(self.folder / _EVENTS / _ABOUT)["num_rows"])

    def interactions(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """All rows in memory, as `InteractionDataset.interactions`."""
        parts = [batch for _, _, batch in self._batches()]
        table = pa.Table.from_batches(parts, _USER_SCHEMA).combine_chunks()
        items, queries, times = (pc.list_flatten(table[name]).to_numpy() for name in _LISTS)
        users = np.repeat(np.arange(table.num_rows), pc.list_value_length(table["items"]).to_numpy())
        texts = self._query_texts().to_pylist()
        return pd.DataFrame(
            {
                "user_id": pd.array(table["user_id"].to_pylist(), dtype="str").take(users),
                "item_id": pd.array([*item_ids, ""], dtype="str").take(items),
                "timestamp": times,
                "query": pd.array([*texts, ""], dtype="str").take(queries),
            }
        )

    def copy_to(self, folder: Path) -> None:
        """Put the log and its events into another folder, as hard links where the disk allows it."""
        for source in (path for name in (_QUERIES, _USERS, _EVENTS) for path in _files(self.folder / name)):
            target = folder / source.relative_to(self.folder)
            target.parent.mkdir(exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)

    def write_events(self, num_items: int) -> None:
        """Check the log and make `events/` from it; errors as in `events`."""
        texts = self._query_texts()
        number_of: np.ndarray = np.full(len(texts), -1, dtype=np.int64)  # in the order of their first row
        in_order, num_rows, num_events, num_queries = [], 0, 0, 0
        user_ids: list[pa.Array] = []
        with atomic_path(self.folder / _EVENTS, replace_folder=True) as aside, _array_files(aside) as write:
            write("offsets", np.zeros(1, dtype=np.int64))
            for part, first_row, batch in self._batches():
                user_ids.append(batch["user_id"])
                users, items, queries, times = _checked_rows(batch, num_items, len(texts), part, first_row)
                typed = queries[queries >= 0]
                new = pd.unique(typed[number_of[typed] < 0])
                number_of[new] = np.arange(num_queries, num_queries + len(new))
                in_order.append(new)
                queries = np.where(queries >= 0, number_of[queries], -1) if len(texts) else queries
                offsets, *events = rows_to_events(users, items, queries, times, len(batch))
                write("offsets", offsets[1:] + num_events)
                for name, array in zip(("behaviors", "items", "queries", "timestamps"), events, strict=True):
                    write(name, array)
                num_rows, num_events, num_queries = (
                    num_rows + len(users),
                    num_events + int(offsets[-1]),
                    num_queries + len(new),
                )
            if not num_rows:
                raise InputError(f"{self.folder / _USERS} holds no rows; give a log with at least one.")
            distinct = pc.count_distinct(pa.chunked_array(user_ids)).as_py()
            if distinct != sum(map(len, user_ids)):
                raise InputError(f"{self.folder / _USERS} holds a user twice; write one row a user.")
            _write_texts(write, "users", user_ids)
            _write_texts(write, "queries", [texts.take(pa.array(np.concatenate(in_order)))])
        about = {"digest": fingerprint(self.folder / _EVENTS), "num_rows": num_rows, "state": self._state(num_items)}
        write_json(self.folder / _EVENTS / _ABOUT, about)

    def _check_items(self, item_ids: Sequence[str]) -> None:
        path = self.folder / _ITEMS
        if not path.exists():
            return
        with damage_reported(path, "write the log again"):
            ids = pq.read_table(path, columns=["item_id"])["item_id"].cast(pa.large_string())
        if not ids.equals(pa.chunked_array([pa.array(item_ids, pa.large_string())])):
            raise InputError(
                f"The log in {self.folder} was grouped with other items, or the same in another order, and refers to "
                f"them by row; give {path} as the items, or group the log again."
            )

    def _state(self, num_items: int) -> str:
        """What the events are made from; by content, since a run's folder may be copied to another machine."""
        return fingerprint(num_items, *(path for content in self.content for path in _files(content)))

    def _query_texts(self) -> pa.LargeStringArray:
        path = self.folder / _QUERIES
        with damage_reported(path, "write the log again"):
            column = pq.read_table(path, columns=["query"])["query"]
            if column.null_count:
                raise ValueError("a query is missing")
            return pa.concat_arrays([*column.cast(pa.large_string()).chunks, pa.array([], pa.large_string())])

    def _batches(self) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """Name of the part, first row and content of some users at a time."""
        for path in _files(self.folder / _USERS):
            first_row = 0
            with damage_reported(path, "write the log again, as docs/large-logs.md says"), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_USERS_AT_A_TIME, columns=_USER_SCHEMA.names):
                    batch = batch.select(_USER_SCHEMA.names).cast(_USER_SCHEMA)
                    yield path.name, first_row, batch
                    first_row += len(batch)


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder by name, without what engines put beside the parts."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.glob("*") if file.is_file() and not file.name.startswith((".", "_")))


def _checked_rows(
    batch: pa.RecordBatch, num_items: int, num_queries: int, part: str, first_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Users from 0, items, queries and times of the rows of some users.

    Raises:
        InputError: the form of the log is broken.
    """

    def refuse(is_bad: np.ndarray, users: np.ndarray, problem: str) -> None:
        if is_bad.any():
            user = int(users[int(is_bad.argmax())])
            raise InputError(
                f"{part}, row {first_row + user + 1} (user {shown(batch['user_id'][user].as_py())}): {problem}; write "
                "the log again, as docs/large-logs.md says."
            )

    everyone = np.arange(len(batch))
    lengths = [pc.fill_null(pc.list_value_length(batch[name]), -1).to_numpy() for name in _LISTS]
    refuse(
        ~np.array([bool(user) for user in batch["user_id"].to_pylist()], dtype=bool), everyone, "the user id is missing"
    )
    refuse(lengths[0] < 1, everyone, "the list `items` is missing or empty")
    refuse((lengths[1] != lengths[0]) | (lengths[2] != lengths[0]), everyone, "the lists differ in length")
    users = np.repeat(everyone, lengths[0])
    items, queries, times = (batch[name].flatten().to_numpy(zero_copy_only=False) for name in _LISTS)
    for name, values, limit in (("items", items, num_items), ("queries", queries, num_queries)):
        refuse(~((values >= -1) & (values < limit)), users, f"`{name}` holds a number outside -1 … {limit - 1:,}")
    refuse((items < 0) & (queries < 0), users, "a row has neither an item nor a query")
    refuse(~np.isfinite(times), users, "`timestamps` holds a value that is missing or not finite")
    refuse(np.append(False, (np.diff(users) == 0) & (np.diff(times) < 0)), users, "`timestamps` are not in order")
    return users, items.astype(np.int64), queries.astype(np.int64), times


# ---- the arrays


@contextmanager
def _array_files(folder: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yields `write(name, array)`, which appends to the one-dimensional array in `folder/name.npy`."""
    folder.mkdir()
    with ExitStack() as stack:
        files: dict[str, tuple[BinaryIO, np.dtype]] = {}

        def write(name: str, array: np.ndarray) -> None:
            if name not in files:
                files[name] = stack.enter_context((folder / f"{name}.npy").open("wb")), array.dtype
                files[name][0].write(bytes(_HEADER_BYTES))
            files[name][0].write(np.ascontiguousarray(array).data)

        yield write
        for file, dtype in files.values():
            length = (file.tell() - _HEADER_BYTES) // dtype.itemsize
            file.seek(0)
            header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == _HEADER_BYTES


def _mapped(path: Path) -> np.ndarray:
    is_empty = path.stat().st_size <= _HEADER_BYTES  # which cannot be mapped
    return np.load(path, mmap_mode=None if is_empty else "r", allow_pickle=False).view(np.ndarray)


def _write_texts(write: Callable[[str, np.ndarray], None], name: str, arrays: Iterable[pa.LargeStringArray]) -> None:
    """The arrays of `MappedTexts`."""
    num_characters = 0
    write(f"{name}_ends", np.zeros(1, dtype=np.int64))
    write(f"{name}_characters", np.zeros(0, dtype=np.uint8))
    for array in arrays:
        _, ends, characters = array.buffers()
        if len(array):
            bounds = np.frombuffer(ends, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
            write(f"{name}_ends", bounds[1:] - bounds[0] + num_characters)
            if characters is not None:
                write(f"{name}_characters", np.frombuffer(characters, dtype=np.uint8)[bounds[0] : bounds[-1]])
            num_characters += int(bounds[-1] - bounds[0])


# ---- DuckDB


def group_log(pieces: Iterable[pd.DataFrame], folder: Path) -> GroupedLog:
    """Write a grouped log with DuckDB, which sorts on disk what does not fit into `_MEMORY_LIMIT`.

    Users are in the order of their first row, rows of equal time in the order of the log.

    Args:
        pieces: the rows of the log, checked: `user_id` (text), `item` (row of the items table, -1 where there is none),
            `timestamp` (float64), `query` (text, "" where there is none).
        folder: an empty one.

    Raises:
        InputError: the package duckdb is missing, or disk or memory do not suffice.
    """
    with extra_installed("duckdb"):
        import duckdb
    with tempfile.TemporaryDirectory(prefix=".duckdb-", dir=folder) as temporary:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY_LIMIT,
            "threads": min(_MAX_THREADS, os.cpu_count() or 1),
            "temp_directory": temporary,
        }
        try:
            with duckdb.connect(f"{temporary}/log.duckdb", config=config) as connection:
                _load(connection, pieces)
                _write_grouped(connection, folder)
        except duckdb.Error as error:
            raise InputError(
                f"DuckDB could not group the log in {folder} ({str(error)[:200]}); make room on that disk or in memory."
            ) from error
    return GroupedLog(folder)


def _load(connection: Any, pieces: Iterable[pd.DataFrame]) -> None:
    """The tables `log`, `users` and `queries`, the last two numbered by their first row."""
    connection.execute("SET enable_progress_bar = false")
    connection.execute("CREATE TABLE log (row BIGINT, user_id VARCHAR, item BIGINT, time DOUBLE, query VARCHAR)")
    num_rows = 0
    for piece in pieces:
        table = pa.Table.from_pandas(piece[["user_id", "item", "timestamp", "query"]], preserve_index=False)
        table = table.append_column("row", pa.array(np.arange(num_rows, num_rows + len(piece))))
        connection.register("piece", table)
        connection.execute("INSERT INTO log SELECT row, user_id, item, timestamp, nullif(query, '') FROM piece")
        connection.unregister("piece")
        num_rows += len(piece)
    for name, column in (("users", "user_id"), ("queries", "query")):
        connection.execute(
            f"CREATE TABLE {name} AS SELECT {column}, row_number() OVER (ORDER BY min(row)) - 1 AS number "
            f"FROM log WHERE {column} IS NOT NULL GROUP BY {column}"
        )


def _write_grouped(connection: Any, folder: Path) -> None:
    queries = connection.sql("SELECT query FROM queries ORDER BY number").to_arrow_reader(_SORTED_ROWS)
    with pq.ParquetWriter(folder / _QUERIES, pa.schema([("query", pa.large_string())])) as writer:
        for batch in queries:
            writer.write_batch(batch.cast(writer.schema))
    (folder / _USERS).mkdir()
    rows = connection.sql(
        "SELECT user_id, users.number AS user, item, coalesce(queries.number, -1) AS query, time FROM log "
        "JOIN users USING (user_id) LEFT JOIN queries USING (query) ORDER BY users.number, time, row"
    ).to_arrow_reader(_SORTED_ROWS)
    writer, num_rows, num_parts = None, 0, 0
    for block in _whole_users(rows):
        if writer is None or num_rows >= _PART_ROWS:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / _USERS / f"part-{num_parts:05d}.parquet", _USER_SCHEMA)
            num_rows, num_parts = 0, num_parts + 1
        users = block["user"].to_numpy()
        starts = np.flatnonzero(np.append(True, np.diff(users) != 0))
        offsets = pa.array(np.append(starts, len(users)).astype(np.int32))
        lists = [pa.ListArray.from_arrays(offsets, block[name].combine_chunks()) for name in ("item", "query", "time")]
        user_ids = block["user_id"].combine_chunks().take(pa.array(starts)).cast(pa.large_string())
        writer.write_table(pa.Table.from_arrays([user_ids, *lists], schema=_USER_SCHEMA))
        num_rows += len(users)
    if writer is not None:
        writer.close()


def _whole_users(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Sorted rows in tables that no user is spread over."""
    waiting: list[pa.Table] = []
    for batch in batches:
        table = pa.Table.from_batches([batch])
        users = table["user"].to_numpy()
        cut = int(np.searchsorted(users, users[-1]))  # where the last user begins
        if cut or (waiting and waiting[-1]["user"][0].as_py() != users[0]):
            whole = [*waiting, table.slice(0, cut)]
            waiting = [table.slice(cut)]
            whole = [part for part in whole if part.num_rows]
            if whole:
                yield pa.concat_tables(whole)
        else:
            waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting)
