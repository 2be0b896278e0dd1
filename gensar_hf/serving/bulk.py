"""Answers for many users: read as a stream, written in parts, continued after a kill."""

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from gensar_hf.data.tables import Table, id_column, id_of, text_column, text_of, time_column
from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path, fingerprint, read_json, write_json
from gensar_hf.folders import LOCK_FILE, locked, remove_leftovers
from gensar_hf.generator.catalogue import table_fingerprint
from gensar_hf.generator.history import cut_query, parse_history
from gensar_hf.pipeline import GenSARPipeline

RECORD_FILE = "answers.json"
RAY_DIR = ".ray"  # of a run on Ray that has not ended
PART_SIZE = 10_000  # requests in a part: what a kill loses at most
TASKS = ("recommend", "search")
FORMATS = (".parquet", ".jsonl")
_CHUNK_ROWS = 20_000
_EVENTS_PER_FILE = 250_000  # of a table with one event a row, which is divided by user before it is read
_MAX_FILES = 500  # open at once
_EVENT_COLUMNS = ("user_id", "item_id", "timestamp")

logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """One user's request.

    Attributes:
        user_id: of the answers; "" if the input names none.
        history: events as for `GenSARPipeline.recommend`.
        query: "" for a recommendation.
    """

    user_id: str
    history: list[dict[str, Any]]
    query: str = ""


class BulkAnswers:
    """Answers requests as tables with one row an answer.

    Args:
        pipe: the model.
        task: `"recommend"` or `"search"`.
        top_k: answers per request.
        among: as for `GenSARPipeline.recommend`, one for all requests.
        exclude_seen: leave out the items of the history.
        on_unknown: as for `GenSARPipeline.recommend`.
    """

    def __init__(
        self,
        pipe: GenSARPipeline,
        task: str = "recommend",
        top_k: int = 10,
        among: Any = None,
        exclude_seen: bool = False,
        on_unknown: str = "raise",
    ) -> None:
        self.pipe, self.task = pipe, task
        prepared = None if among is None else pipe.filter(among, on_unknown)
        self.options: dict[str, Any] = {
            "top_k": top_k, "among": prepared, "exclude_seen": exclude_seen, "on_unknown": on_unknown,
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What the answers depend on besides the requests, as JSON."""
        among, options = self.options["among"], {name: self.options[name] for name in ("top_k", "exclude_seen")}
        rows = None if among is None else fingerprint(among.rows)
        return {"model": _model_fingerprint(self.pipe), "task": self.task, **options, "among": rows}

    def arguments(self) -> dict[str, Any]:
        """Arguments that make the same answers of a pipeline with the same catalogue."""
        among = self.options["among"]
        item_ids = self.pipe.tokenizer.identifiers.item_ids
        return {**self.options, "among": None if among is None else [item_ids[row] for row in among.rows.tolist()]}

    def requests(self, source: Path, folder: Path) -> Iterator[Request]:
        """`read_requests` with a temporary folder inside another one."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".events-") as aside:
            yield from read_requests(source, self.task, Path(aside))

    def __call__(self, requests: Sequence[Request]) -> pa.Table:
        """`user_id`, `query` (of a search), `rank` from 1, `item_id`, `score` and, where items have them, `title`.

        Raises:
            InputError: a request that cannot be answered; the message names the user.
        """
        histories = [request.history for request in requests]
        try:
            if self.task == "search":
                found: Any = self.pipe.search([request.query for request in requests], histories, **self.options)
            else:
                found = self.pipe.recommend(histories, **self.options)
        except ValueError as error:
            self.check(requests)
            raise InputError(str(error)) from error
        answers = [answer for own in found for answer in own]
        counts = [len(own) for own in found]
        columns: dict[str, pa.Array] = {"user_id": _repeated([request.user_id for request in requests], counts)}
        if self.task == "search":
            columns["query"] = _repeated([request.query for request in requests], counts)
        ranks = np.concatenate([np.zeros(0, np.int32), *(np.arange(1, count + 1, dtype=np.int32) for count in counts)])
        columns["rank"] = pa.array(ranks)
        columns["item_id"] = pa.array([answer["item_id"] for answer in answers], pa.string())
        columns["score"] = pa.array([answer["score"] for answer in answers], pa.float32())
        if self.pipe.tokenizer.identifiers.titles is not None:
            columns["title"] = pa.array([answer["title"] for answer in answers], pa.string())
        return pa.table(columns)

    def write(
        self, requests: Sequence[Request], path: Path, on_step: Callable[[int], Any] = lambda number: None
    ) -> None:
        """Answer the requests of a part, which appears complete or not at all; `on_step` gets numbers of requests."""
        tables, step = [], 8 * self.pipe.batch_size
        for start in range(0, len(requests), step):
            tables.append(self(requests[start : start + step]))
            on_step(len(requests[start : start + step]))
        with atomic_path(path) as partial:
            pq.write_table(pa.concat_tables(tables), partial)

    def check(self, requests: Sequence[Request]) -> None:
        """Raise an `InputError` about the first request that the pipeline refuses; it names the user."""
        known = self.pipe.tokenizer.identifiers
        for request in requests:
            try:
                parse_history(request.history, known.index_of, self.options["on_unknown"])
                if self.task == "search":
                    cut_query(request.query)
            except ValueError as error:
                raise InputError(f"User '{request.user_id}': {error}") from None


def _repeated(values: list[str], counts: list[int]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(np.repeat(np.arange(len(values)), counts)))


def write_answers(
    answer: BulkAnswers, source: str | os.PathLike[str], output_dir: str | os.PathLike[str], part_size: int = PART_SIZE
) -> int:
    """Answer every request of a file, into `part-FIRST-END.parquet` files named by the requests that they answer.

    A part appears complete or not at all, so that the same call continues after a kill, with no answer twice and none
    missing. Memory is that of a part, or of the events of about 250,000 rows.

    Args:
        answer: the model and its settings.
        source: see `read_requests`.
        output_dir: for the parts and `answers.json`, the record of model, input and settings.
        part_size: requests per part.

    Returns:
        the number of requests.

    Raises:
        InputError: the input cannot be read, the folder holds answers of another model, input or settings, or another
            process writes it.
    """
    source, folder = Path(source), Path(output_dir)
    number = 0
    with answers_opened(answer, source, folder, part_size) as record:
        with tqdm(desc=answer.task, unit=" requests", mininterval=1.0) as bar:
            requests = answer.requests(source, folder)
            while part := list(islice(requests, part_size)):
                path = part_path(folder, number, number + len(part))
                if not path.exists():
                    answer.write(part, path, bar.update)
                number += len(part)
                bar.n = number  # also of parts that were there
        write_json(folder / RECORD_FILE, {**record, "num_requests": number})
        shutil.rmtree(folder / RAY_DIR, ignore_errors=True)
    return number


def part_path(folder: Path, first: int, end: int) -> Path:
    """The file of the answers to the requests `first` … `end - 1`."""
    return folder / f"part-{first:010d}-{end:010d}.parquet"


@contextmanager
def answers_opened(answer: BulkAnswers, source: Path, folder: Path, part_size: int) -> Iterator[dict[str, Any]]:
    """Hold the lock of a folder of answers; yields the record of what they are made of; errors of `write_answers`."""
    if part_size < 1:
        raise InputError(f"A part must hold at least 1 request; got {part_size}.")
    _check_columns(source, answer.task)
    with locked(folder):
        remove_leftovers(folder)
        record = {"input": fingerprint(source), "part_size": part_size, **answer.settings()}
        _check_record(folder, record)
        for leftover in folder.glob(".events-*"):  # of a killed run
            shutil.rmtree(leftover)
        yield record


def _check_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record into a new folder; raise `InputError` if the folder belongs to something else."""
    path = folder / RECORD_FILE
    if not path.exists() and any(present.name != LOCK_FILE for present in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no answers to continue; name a new folder.")
    present = read_json(path) if path.exists() else {}
    differs = [name for name in record if present.get(name) != record[name]]
    if differs and any(folder.glob("part-*")):
        raise InputError(
            f"{folder} holds answers with another {', '.join(differs)}; name a new folder, or delete this one to "
            "replace them."
        )
    if differs:
        write_json(path, record)


def _model_fingerprint(pipe: GenSARPipeline) -> str:
    """Of everything that determines answers, wherever the model lies."""
    catalogue, config = pipe.tokenizer.catalogue, pipe.model.config.to_dict()
    table = catalogue.identifiers
    weights = {
        name: tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        for name, tensor in pipe.model.state_dict().items()
    }
    settings = {name: repr(value) for name, value in config.items() if not name.startswith(("_", "transformers"))}
    texts = None if catalogue.texts is None else [catalogue.texts.vectors, "\n".join(catalogue.texts.texts)]
    items = [table_fingerprint(table), table.available, table.neighbors, "\n".join(table.titles or ())]
    words = [pipe.tokenizer.backend_tokenizer.to_str(), pipe.tokenizer.max_history_events]
    return fingerprint(weights, settings, items, texts, words, pipe.num_beams)


# ---- requests


def read_requests(source: Path, task: str, aside: Path) -> Iterator[Request]:
    """The requests of a table in a fixed order, in bounded memory.

    Args:
        source: a `.parquet` or `.jsonl` file, or a folder of one kind of them. With a column `history` (a list of
            events, or of item ids, oldest first) or for a search, a row is a request: `user_id`, `history` (optional
            in a search), `query`. Otherwise a row is an event, as in the interactions table of the training:
            `user_id`, `item_id`, `timestamp`, `query`; rows may have any order.
        task: `"recommend"` or `"search"`.
        aside: an empty folder, in which events are divided by user.

    Raises:
        InputError: a column or value is missing or of another kind; the message names the row.
    """
    if task == "recommend" and "history" not in _columns(source):
        yield from _grouped_events(source, aside)
        return
    for table in _tables(source):
        frame = table.frame
        users = id_column(table, "user_id") if "user_id" in frame.columns else pd.Series("", index=frame.index)
        queries = pd.Series("", index=frame.index)
        if task == "search":
            queries = text_column(table, "query", "give the words that were typed")
            empty = np.flatnonzero(queries == "")
            if len(empty):
                raise table.complain("query", empty, "is not a query", "give the words that were typed")
        histories = frame["history"] if "history" in frame.columns else [None] * len(frame)
        for row, (user, history, query) in enumerate(zip(users, histories, queries, strict=True)):
            events = [_event(event) for event in history] if isinstance(history, list | np.ndarray) else None
            if history is None or (isinstance(history, float) and np.isnan(history)):
                events = []
            if events is None or None in events:
                remedy = "give a list of item ids, or of events such as {'item_id': '242', 'query': 'comedy'}"
                raise table.complain("history", np.array([row]), "is not a list of events", remedy)
            yield Request(user, [event for event in events if event is not None], query)


def _event(event: Any) -> dict[str, Any] | None:
    """An event as the pipeline reads it; None for something else."""
    values = event if isinstance(event, dict) else {"item_id": event}
    read = {"item_id": id_of(values.get("item_id")), "query": text_of(values.get("query"), ())}
    return None if None in read.values() else {name: value for name, value in read.items() if value} or None


def _grouped_events(source: Path, aside: Path) -> Iterator[Request]:
    """One request per user from a table of events: first divided by user into files, which are then read one by one."""
    num_files = min(1 + _estimated_rows(source) // _EVENTS_PER_FILE, _MAX_FILES)
    paths = [aside / f"{number}.jsonl" for number in range(num_files)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for table in tqdm(_tables(source), desc="events", unit=f" × {_CHUNK_ROWS} rows", leave=False):
            users, items = id_column(table, "user_id"), id_column(table, "item_id")
            times = time_column(table, "timestamp")
            queries = pd.Series("", index=users.index)
            if "query" in table.frame.columns:
                queries = text_column(table, "query", "give the words that were typed, or nothing")
            for column, bad in (("user_id", users == ""), ("item_id", (items == "") & (queries == ""))):
                if bad.any():
                    raise table.complain(column, np.flatnonzero(bad), "is missing", "give every row a user and an item")
            for row in zip(users, times.tolist(), items, queries, strict=True):
                files[zlib.crc32(row[0].encode()) % num_files].write(json.dumps(row) + "\n")
    for path in paths:
        users_events: dict[str, list[tuple[float, str, str]]] = {}
        with path.open(encoding="utf-8") as file:
            for user, *event in map(json.loads, file):
                users_events.setdefault(user, []).append(tuple(event))
        for user, events in users_events.items():
            ordered = sorted(events, key=lambda event: event[0])  # stable: equal times keep their order
            yield Request(user, [_named(item, query) for _, item, query in ordered])


def _named(item: str, query: str) -> dict[str, Any]:
    return {name: value for name, value in (("item_id", item), ("query", query)) if value}


# ---- files


def _files(source: Path) -> list[Path]:
    paths = [source] if not source.is_dir() else sorted(path for path in source.iterdir() if path.suffix in FORMATS)
    if not source.exists() or not paths or len({path.suffix for path in paths}) > 1 or paths[0].suffix not in FORMATS:
        kind = "does not exist" if not source.exists() else "is neither a Parquet nor a JSON Lines file"
        raise InputError(f"{source} {kind}; give a .parquet or .jsonl file, or a folder of files of one of the two.")
    return paths


def _columns(source: Path) -> list[str]:
    path = _files(source)[0]
    if path.suffix == ".parquet":
        return _parquet(path).schema_arrow.names
    table = next(_tables(source), None)
    return [] if table is None else [str(name) for name in table.frame.columns]


def _check_columns(source: Path, task: str) -> None:
    columns, needed = _columns(source), ["query"] if task == "search" else ["user_id"]
    if task == "recommend" and "history" not in columns:
        needed = list(_EVENT_COLUMNS)
    Table(source.name, pd.DataFrame(columns=columns)).require(needed)


def _estimated_rows(source: Path) -> int:
    return sum(
        _parquet(path).metadata.num_rows if path.suffix == ".parquet" else path.stat().st_size // 80
        for path in _files(source)
    )


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path.name} cannot be read as Parquet ({error}); write it again.") from error


def _tables(source: Path) -> Iterator[Table]:
    """The rows of all files in pieces, each with the number of its first row."""
    for path in _files(source):
        first_row = 0
        if path.suffix == ".parquet":
            frames: Iterator[pd.DataFrame] = (
                pd.DataFrame(batch.to_pylist(), columns=batch.schema.names)
                for batch in _parquet(path).iter_batches(batch_size=_CHUNK_ROWS)
            )
        else:
            frames = _json_frames(path)
        for frame in frames:
            yield Table(path.name, frame, first_row)
            first_row += len(frame)


def _json_frames(path: Path) -> Iterator[pd.DataFrame]:
    with path.open(encoding="utf-8") as file:
        number, columns = 0, list[str]()
        while lines := list(islice(file, _CHUNK_ROWS)):
            rows = []
            for line in lines:
                number += 1
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise InputError(f"{path.name}, line {number} is not JSON ({error}); correct it.") from None
                if not isinstance(rows[-1], dict):
                    raise InputError(f'{path.name}, line {number} is not an object such as {{"user_id": "1"}}.')
            columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
            yield pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})
