"""Searches and recommendations of users: two tables, validated, with their events and their split.

`items`: `item_id`, then any columns, some of which make the item's text. `interactions`: `user_id`, `item_id`,
`timestamp` (or `order`), and optionally `query`. A row with an item and no query is a click on a recommendation, a row
with both is a click after a search, a row with a query and no item is a search without a click.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from gensar_hf.data.large_log import GroupedLog, group_log
from gensar_hf.data.queries import assign_search_clicks
from gensar_hf.data.splits import Split, SplitMethod, leave_one_out, make_split
from gensar_hf.data.tables import (
    Table,
    TableSource,
    TimePieces,
    are_floats_as_text,
    fetched,
    id_column,
    read_pieces,
    read_table,
    refuse_too_many_rows,
    shown_value,
    source_files,
    text_column,
    text_of,
    time_column,
)
from gensar_hf.data.user_events import UserEvents, user_events
from gensar_hf.errors import InputError, types_checked
from gensar_hf.files import fingerprint, read_json, write_json
from gensar_hf.folders import finish_saving, saving

logger = logging.getLogger(__name__)

# Long text last: text encoders truncate, and the short columns say most per word.
DEFAULT_TEXT_COLUMNS = ("title", "name", "brand", "categories", "category", "genres", "year", "description")
MAX_QUERY_CHARACTERS = 1000
_ABOUT_FILE, _OLD_ABOUT_FILE = "dataset.json", "log.json"
_SOURCE_FILE = "source.json"  # of a `log_dir`
_FORMAT_VERSION = 2
_DEEPEST_NESTING = 20  # lists and structs in one another; Parquet cannot read many more than it can write


class InteractionDataset:
    """Two tables, validated: a catalogue and what users clicked and typed.

    Args:
        items: path, folder, pattern or URL of .parquet, .csv, .tsv, .jsonl or .json files (see `read_table`),
            DataFrame or `datasets.Dataset`; one row per item.
        interactions: the same kinds; one row per click or search. Columns other than `user_id`, `item_id`,
            `timestamp` (or `order`: a number that grows with time, for data without times; `timestamp` wins) and
            `query` are dropped. A folder with a grouped log (see `gensar_hf.data.large_log`), as one that was a
            `log_dir`, is read memory-mapped.
        text_columns: the columns that make an item's text, in order. Default: those of `DEFAULT_TEXT_COLUMNS` that
            the table has, in that order.
        split: which clicks are held out.
            `"leave_one_out"`: per user and task, the last click (test) and the last but one (validation).
            `"chronological"`: the latest 10 % of all events (test) and the 10 % before them (validation).
            `"none"`: no click; everything is for training.
            `"held_out"`: every click of `interactions`, as test and as validation; nothing is for training.
        history: the same users' earlier interactions. A model reads them as history; none of them is a training target
            or a request. `items` must contain their items.
        min_interactions: drop users and items with fewer clicks, repeatedly, until none is left (k-core). Every
            click counts, repeated ones included. Searches without a click do not count and stay with their user. Items
            that are never clicked leave the catalogue. 0 keeps everything.
        search_fraction: share of the clicks without a query that get one, made from the item's categories. It is for
            data without queries, see `queries.assign_search_clicks`.
        category_column: column of `items` that these queries are made from.
        seed: of the draw of these clicks.
        log_dir: for a log that is larger than the memory: new folder to group it in by user, on disk. It is read
            memory-mapped from there, and a later call with the same files finds it. Needs the extra `[duckdb]`.

    Attributes:
        items: `item_id` (str, distinct) first, then the other columns of the items table. Text columns are str, ""
            where missing.
        interactions: the columns `user_id` (str), `item_id` (str, "" for a search without a click), `timestamp`
            (float64; seconds, or the order) and `query` (str, "" for a click on a recommendation), those of `history`
            included. Users are in the order of their first appearance, their rows in the order of time. Rows of equal
            time keep the order of the table.
        text_columns: the columns of `items` that make an item's text, in order.
        split_method: the argument `split`.
        log: the grouped log that the interactions are in, None if they are in memory. `interactions`, `split_by_time`,
            `hold_out_items` and `merge` read it into memory.

    Ids are text: 242, "242" and 242.0 are the same item. Text has each run of white space replaced by one space; lists
    are joined with ", ". Queries are cut after 1,000 characters, with a warning.

    Raises:
        ValueError: an argument is outside its range.
        InputError: one sentence with table, row, column, value and remedy.
    """

    items: pd.DataFrame
    text_columns: tuple[str, ...]
    split_method: SplitMethod
    log: GroupedLog | None = None

    def __init__(
        self,
        items: TableSource,
        interactions: TableSource,
        *,
        text_columns: Sequence[str] | None = None,
        split: SplitMethod = "leave_one_out",
        history: InteractionDataset | None = None,
        min_interactions: int = 0,
        search_fraction: float = 0.0,
        category_column: str = "categories",
        seed: int = 0,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if min_interactions < 0:
            raise ValueError(f"`min_interactions` counts clicks and cannot be negative; got {min_interactions}.")
        if min_interactions and history is not None:
            raise ValueError(
                "`min_interactions` cannot be combined with `history`, because it would drop items that the history "
                "contains; filter the tables first, or leave one of the two out."
            )
        item_table, log = read_table(items, "items"), GroupedLog.find(interactions)
        if (log or log_dir) and (min_interactions or search_fraction or history is not None):
            raise ValueError(
                "`min_interactions`, `search_fraction` and `history` need the log in memory and cannot be combined "
                "with `log_dir` or a grouped log; apply them before, or leave them out."
            )
        catalogue, columns = check_items(item_table, text_columns)
        if log_dir is not None and log is None:
            _check_split_method(split)
            log = _grouped(interactions, item_table.name, catalogue, Path(log_dir))
        if log is not None:
            self._fill_from_log(catalogue, log, columns, split)
            return
        refuse_too_many_rows(interactions, "interactions")
        interaction_table = read_table(interactions, "interactions")
        rows = _check_interactions(interaction_table, item_table.name, pd.Index(catalogue["item_id"]))
        rows = rows.drop(columns="item").iloc[_by_user_and_time(rows)].reset_index(drop=True)
        if search_fraction:
            rows = assign_search_clicks(catalogue, rows, search_fraction, seed, category_column)
        if min_interactions:
            catalogue, rows = _k_core(catalogue, rows, min_interactions)
        self._fill(catalogue, rows, columns, split, history)

    @classmethod
    def from_checked(
        cls,
        items: pd.DataFrame,
        interactions: pd.DataFrame,
        text_columns: Sequence[str],
        *,
        split: SplitMethod = "leave_one_out",
        history: InteractionDataset | None = None,
    ) -> InteractionDataset:
        """A dataset of tables in the form of the attributes `items` and `interactions` (without rows of `history`).

        Raises:
            InputError: `items` lacks an item of `history`, or an interaction is earlier than the user's history.
        """
        dataset = cls.__new__(cls)
        dataset._fill(items, interactions, tuple(text_columns), split, history)
        return dataset

    def _fill(
        self,
        items: pd.DataFrame,
        rows: pd.DataFrame,
        text_columns: tuple[str, ...],
        split: SplitMethod,
        history: InteractionDataset | None,
    ) -> None:
        _check_split_method(split)
        is_history = np.zeros(len(rows), dtype=bool)
        if history is not None:
            _check_history(history.interactions, items, rows)
            is_history = np.repeat([True, False], [len(history), len(rows)])
            rows, order = _merge_rows(history.interactions, rows)
            is_history = is_history[order]
        self.items, self.interactions, self.text_columns, self.split_method = items, rows, text_columns, split
        self._is_history = is_history  # (num_interactions,) bool; the rows of `history` come first in each user's rows

    def _fill_from_log(
        self, items: pd.DataFrame, log: GroupedLog, text_columns: tuple[str, ...], split: SplitMethod
    ) -> None:
        _check_split_method(split)
        self.items, self.log, self.text_columns, self.split_method = items, log, text_columns, split
        self.events = log.events(self.item_ids)
        self._is_history = np.zeros(log.num_rows, dtype=bool)  # takes no memory until it is written to

    def __len__(self) -> int:
        """Number of interactions."""
        return len(self._is_history)

    def __repr__(self) -> str:
        """One line with the counts of users, items, interactions and distinct queries."""
        events = self.events
        counts = {
            "users": events.num_users,
            "items": len(self.items),
            "interactions": len(self),
            "queries": len(events.query_texts),
        }
        if self._is_history.any():
            counts["rows of history"] = int(self._is_history.sum())
        return f"InteractionDataset({', '.join(f'{count:,} {name}' for name, count in counts.items())})"

    @cached_property
    def item_ids(self) -> list[str]:
        """The id of each item, in the order of `items`; read only."""
        return self.items["item_id"].tolist()

    @cached_property
    def titles(self) -> list[str]:
        """The title of each item, in the order of `items`; its text if there is no column `title`; read only."""
        if "title" not in self.items.columns:
            return self.item_texts()
        return [text_of(title) or "" for title in self.items["title"]]

    def item_texts(self, columns: Sequence[str] | None = None) -> list[str]:
        """The text of each item, in the order of `items`: its non-empty text columns joined by ". ".

        For `text_columns = ("title", "year", "genres")` it reads "Toy Story. 1995. Animation, Children's, Comedy".

        Args:
            columns: of `items`, instead of the text columns. Values that are not text, such as 5.5, are left out.

        Raises:
            InputError: `items` lacks one of the columns, or they hold no text.
        """
        chosen = self.text_columns if columns is None else columns
        missing = [column for column in chosen if column not in self.items.columns]
        if missing:
            raise InputError(
                f"The items have no column {missing[0]}, only {', '.join(self.items.columns)}; name one of these."
            )
        parts = [
            self.items[column] if column in self.text_columns else [text_of(each) or "" for each in self.items[column]]
            for column in chosen
        ]
        texts = [". ".join(part for part in row if part) for row in zip(*parts, strict=True)]
        if columns is not None and not any(texts):
            raise InputError(f"The columns {', '.join(columns) or '(none)'} hold no text of any item; name others.")
        return texts

    @cached_property
    def interactions(self) -> pd.DataFrame:
        """All interactions in memory, see the class."""
        assert self.log is not None
        return self.log.interactions(self.item_ids)

    @cached_property
    def events(self) -> UserEvents:
        """The interactions as events, sorted by user, then by time; item i is row i of `items`."""
        return user_events(self.item_ids, self.interactions)

    @cached_property
    def split(self) -> Split:
        """Training events and held-out requests, as the argument `split` says."""
        return make_split(self.events, self.split_method, self._target_starts())

    def _target_starts(self) -> np.ndarray:
        """`(num_users,)` int64 event index: where the events begin that do not come from the history."""
        events = self.events
        if not self._is_history.any():
            return events.offsets[:-1]
        # A row makes the same events whatever follows it.
        before = user_events(self.item_ids, self.interactions[self._is_history])
        num_events = dict(zip(before.user_ids, np.diff(before.offsets).tolist(), strict=True))
        return events.offsets[:-1] + np.array([num_events.get(user, 0) for user in events.user_ids], dtype=np.int64)

    def with_split(self, split: SplitMethod) -> InteractionDataset:
        """The same data with other held-out clicks; `split` as for the class."""
        if self.log is not None:
            dataset = InteractionDataset.__new__(InteractionDataset)
            dataset._fill_from_log(self.items, self.log, self.text_columns, split)
            return dataset
        return self._with(self.items, self.interactions, self._is_history, split)

    def _with(
        self, items: pd.DataFrame, rows: pd.DataFrame, is_history: np.ndarray, split: SplitMethod | None = None
    ) -> InteractionDataset:
        dataset = self.from_checked(items, rows, self.text_columns, split=split or self.split_method)
        dataset._is_history = is_history
        return dataset

    def _select(self, items: np.ndarray, rows: np.ndarray) -> InteractionDataset:
        """The part with these items and these rows, both masks."""
        return self._with(
            self.items[items].reset_index(drop=True),
            self.interactions[rows].reset_index(drop=True),
            self._is_history[rows],
        )

    def split_by_time(self, later_share: float) -> tuple[InteractionDataset, InteractionDataset]:
        """Split at the moment when all but a share of the rows have passed.

        Times must be comparable between users: seconds or dates, not each user's own order.

        Args:
            later_share: of the rows (without those of `history`), above 0 and below 1. Rows of the same time stay
                together, on the later side.

        Returns:
            The earlier dataset, without the items that only later rows click. The later dataset, whose history is the
            earlier one and whose `items` are the earlier items followed by the others.

        Raises:
            ValueError: `later_share` is outside its range.
            InputError: one of the two sides would have no row.
        """
        if not 0 < later_share < 1:
            raise ValueError(f"`later_share` is a share of the rows, above 0 and below 1; got {later_share}.")
        is_newer = ~self._is_history
        times = self.interactions["timestamp"].to_numpy()
        newer_times = np.sort(times[is_newer])
        num_earlier = round((1 - later_share) * len(newer_times))
        is_later = is_newer & (times >= np.append(newer_times, np.inf)[num_earlier])
        num_later = int(is_later.sum())
        if num_later in (0, len(newer_times)):
            raise InputError(
                f"{len(newer_times):,} interactions cannot be split in time with a later share of {later_share}, "
                f"because {'all' if num_later else 'none'} of them would be later; choose another share, or data with "
                "more than one time."
            )
        # Series.isin takes a minute for a million values that are not distinct.
        early_items, late_items = (self.interactions["item_id"][rows].unique() for rows in (~is_later, is_later))
        is_new = (self.items["item_id"].isin(late_items) & ~self.items["item_id"].isin(early_items)).to_numpy()
        earlier = self._select(~is_new, ~is_later)
        items = pd.concat([self.items[~is_new], self.items[is_new]], ignore_index=True)
        rows = self.interactions[is_later].reset_index(drop=True)
        later = self.from_checked(items, rows, self.text_columns, split=self.split_method, history=earlier)
        return earlier, later

    def hold_out_items(self, fraction: float, seed: int = 0) -> tuple[InteractionDataset, InteractionDataset]:
        """Separate a random share of the items, with all their rows.

        Args:
            fraction: of the items, above 0 and below 1, rounded to a whole number of them: at least one and never all.
            seed: of the draw.

        Returns:
            The dataset without these items, and one with nothing else. Both keep the order and the times of their
            rows. `kept.merge(held_out)` puts them together again.

        Raises:
            ValueError: `fraction` is outside its range.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"`fraction` is a share of the items, above 0 and below 1; got {fraction}.")
        num_items = len(self.items)
        num_held_out = min(max(1, round(fraction * num_items)), num_items - 1)
        is_held_out = np.zeros(num_items, dtype=bool)
        # A separate random stream: the same seed also draws the search clicks.
        is_held_out[np.random.default_rng([seed, 1]).choice(num_items, num_held_out, replace=False)] = True
        in_row = self.interactions["item_id"].isin(self.items["item_id"][is_held_out]).to_numpy()
        return self._select(~is_held_out, ~in_row), self._select(is_held_out, in_row)

    def merge(self, other: InteractionDataset) -> InteractionDataset:
        """Both datasets' rows by user and time (at equal times, this dataset's first), and the items of both.

        Args:
            other: its items that this dataset lacks come last. Its text columns and its split are not used.
        """
        rows, order = _merge_rows(self.interactions, other.interactions)
        new_items = other.items[~other.items["item_id"].isin(self.items["item_id"])]
        items = pd.concat([self.items, new_items], ignore_index=True)
        return self._with(items, rows, np.concatenate([self._is_history, other._is_history])[order])

    @types_checked
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `items.parquet`, `interactions.parquet`, `split.safetensors` and `dataset.json` to `folder`.

        In the place of `interactions.parquet`, a grouped log is written as it is.

        Raises:
            InputError: the folder has a file of such a name that no dataset was saved as, or cannot be written to.
        """
        counts = {"num_items": len(self.items), "num_interactions": len(self)}
        about = {"text_columns": list(self.text_columns), "split": self.split_method, **counts}
        with saving(folder) as aside:
            self.items.to_parquet(aside / "items.parquet", index=False)
            if self.log is not None:
                self.log.copy_to(aside)
            else:
                history = {"is_history": self._is_history} if self._is_history.any() else {}
                self.interactions.assign(**history).to_parquet(aside / "interactions.parquet", index=False)
            self.split.save(aside)
            write_json(aside / _ABOUT_FILE, {"format_version": _FORMAT_VERSION, **about})

    @classmethod
    @types_checked
    def load(cls, folder: str | os.PathLike[str]) -> InteractionDataset:
        """Read what `save` wrote, or the `data` folder of a run of version 0.1 (`log.json`).

        Raises:
            InputError: a file is missing or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        finish_saving(folder)
        is_old = not (folder / _ABOUT_FILE).is_file() and (folder / _OLD_ABOUT_FILE).is_file()
        about = read_json(folder / (_OLD_ABOUT_FILE if is_old else _ABOUT_FILE))
        items, log = read_table(folder / "items.parquet", "items").frame, GroupedLog.find(folder)
        columns, split = tuple(about["text_columns"]), about.get("split", "leave_one_out")
        if log is not None:
            dataset = cls.__new__(cls)
            dataset._fill_from_log(items, log, columns, split)
        else:
            rows = read_table(folder / "interactions.parquet", "interactions").frame
            is_history = rows.pop("is_history").to_numpy(dtype=bool) if "is_history" in rows else None
            dataset = cls.from_checked(items, rows, columns, split=split)
            if is_history is not None:
                dataset._is_history = is_history
        expected = [about.get("num_items"), about.get("num_interactions"), about.get("format_version")]
        if [len(items), len(dataset), 1 if is_old else _FORMAT_VERSION] != expected:
            about_file = _OLD_ABOUT_FILE if is_old else _ABOUT_FILE
            raise InputError(
                f"{folder}: {about_file}, items.parquet and {'users' if log else 'interactions.parquet'} do not belong "
                "together; delete the folder and write the dataset again."
            )
        dataset.split = Split.load(folder, dataset.events)
        if is_old and not np.array_equal(dataset.split.train_ends, leave_one_out(dataset.events).train_ends):
            dataset.split_method = "chronological"
        return dataset


def check_items(table: Table, text_columns: Sequence[str] | None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The items table in the form of `InteractionDataset.items`, and its text columns.

    Raises:
        InputError: a column or an id is missing, an id is repeated, or a value of a text column is not text.
    """
    item_ids = distinct_ids(table)
    chosen = _choose_text_columns(table, text_columns)
    remedy = "turn it into text, or leave the column out by naming the text columns (`text_columns`)"
    columns: dict[str, pd.Series] = {"item_id": item_ids}
    for column in table.frame.columns:
        if column in chosen:
            columns[column] = text_column(table, column, remedy)
        elif column != "item_id":
            columns[column] = _storable(table, column)
    items = pd.DataFrame(columns)
    without_text = int((items[list(chosen)] == "").all(axis=1).sum())
    if without_text == len(items):
        raise InputError(
            f"{table.name}: the text columns {', '.join(chosen)} are empty in every row; fill at least one."
        )
    if without_text:
        logger.warning("%s: %d of %d items have no text at all.", table.name, without_text, len(items))
    return items, chosen


def distinct_ids(table: Table) -> pd.Series:
    """The ids of an items table.

    Raises:
        InputError: the column or an id is missing, or an id is repeated.
    """
    table.require(["item_id"])
    item_ids = id_column(table, "item_id")
    _refuse(table, "item_id", item_ids == "", "is not an item id, the value is missing", "give every item an id")
    repeated = item_ids.duplicated()
    if repeated.any():
        value = item_ids[repeated].iloc[0]
        first = int((item_ids == value).argmax())
        _refuse(table, "item_id", repeated, f"is already in row {first + 1}", "keep one row per item", value)
    return item_ids


def _refuse(table: Table, column: str, is_bad: pd.Series, problem: str, remedy: str, value: str | None = None) -> None:
    """Raise the error of `Table.complain` if a row is bad."""
    rows = np.flatnonzero(is_bad)
    if len(rows):
        raise table.complain(column, rows, problem, remedy, value)


def _choose_text_columns(table: Table, text_columns: Sequence[str] | None) -> tuple[str, ...]:
    if text_columns is None:
        chosen = [column for column in DEFAULT_TEXT_COLUMNS if column in table.frame.columns]
        others = [str(name) for name in table.frame if name not in (*chosen, "item_id")]
        passed_over = [name for name in others if _holds_words(table, name)]
        if chosen and passed_over:
            logger.warning(
                "%s: the items' texts are made from %s and not from %s; name all columns that describe an item "
                "(`text_columns`) if they should be.",
                table.name,
                ", ".join(chosen),
                ", ".join(map(shown_value, passed_over[:5])),
            )
    else:
        chosen = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        table.require(chosen)
    if not chosen:
        raise InputError(
            f"{table.name} has no text column: none of {', '.join(DEFAULT_TEXT_COLUMNS)} is among its columns "
            f"{table.column_names}; name those that describe an item (`text_columns`)."
        )
    if "item_id" in chosen or len(set(chosen)) < len(chosen):
        raise InputError(
            f"The text columns {', '.join(chosen)} name item_id or one column twice; name others, once each."
        )
    return tuple(chosen)


def _holds_words(table: Table, column: str) -> bool:
    """Whether most values of a column, of its first 100, are words, and not numbers, codes or addresses."""
    values = [text for value in table.frame[column].iloc[:100] if (text := text_of(value))]
    words = [value for value in values if re.search(r"(^|[\s,>|])[^\W\d_]{3,}\b", value) and "://" not in value]
    return len(words) > len(values) / 2


def _storable(table: Table, column: str) -> pd.Series:
    """The column as it is, or as text if Parquet refuses it: values without a common type, or deeply nested ones."""
    values = table.frame[column]
    try:
        is_storable = str(pa.array(values, from_pandas=True).type).count("<") < _DEEPEST_NESTING
    except (pa.ArrowException, ArithmeticError, RecursionError, TypeError, ValueError):
        is_storable = False
    if is_storable:
        return values
    try:
        texts = [str(value) if (text := text_of(value)) is None else text for value in values]
    except (RecursionError, ValueError):
        raise InputError(f"{table.name}, column {column}: its values cannot be stored; drop the column.") from None
    return pd.Series([text.encode("utf-8", "backslashreplace").decode("utf-8") for text in texts], index=values.index)


def _check_split_method(split: str) -> None:
    if split not in get_args(SplitMethod):
        raise ValueError(f"`split` must be one of {', '.join(map(repr, get_args(SplitMethod)))}; got {split!r}.")


def _columns_of_interactions(table: Table) -> list[str]:
    """The columns that are read: ids, time (`timestamp` or `order`) and, if there is one, `query`."""
    time_name = "order" if "timestamp" not in table.frame.columns and "order" in table.frame.columns else "timestamp"
    table.require(["user_id", "item_id", time_name])
    return ["user_id", "item_id", time_name, *(["query"] if "query" in table.frame.columns else [])]


def _check_interactions(
    table: Table,
    items_name: str,
    known: pd.Index,
    are_floats: Mapping[str, bool] | None = None,
    times: TimePieces | None = None,
) -> pd.DataFrame:
    """The columns of `InteractionDataset.interactions`, in the order of the table, and `item`.

    `item` is the row of the items table, -1 where there is no item.

    Args:
        table: the interactions, or a piece of them.
        items_name: of the items table.
        known: all item ids.
        are_floats: of a piece, see `id_column`.
        times: of a piece.
    """
    time_name = _columns_of_interactions(table)[2]
    user_ids, item_ids = (id_column(table, name, (are_floats or {}).get(name)) for name in ("user_id", "item_id"))
    queries = _check_queries(table)
    _refuse(table, "user_id", user_ids == "", "is not a user id, the value is missing", "give every row a user")
    neither, remedy = (item_ids == "") & (queries == ""), "give an item, a query, or both"
    _refuse(table, "item_id", neither, "is not an item id, and the row has no query either", remedy)
    item_rows = known.get_indexer(pd.Index(item_ids))
    unknown = (item_ids != "") & (item_rows < 0)
    if unknown.any():
        value, remedy = item_ids[unknown].iloc[0], "add the item there or drop the row"
        _refuse(table, "item_id", unknown, f"is not an item of {items_name}", remedy, value)
    timestamps = time_column(table, time_name) if times is None else times.read(table, time_name)
    columns = {"user_id": user_ids, "item_id": item_ids, "timestamp": timestamps, "query": queries}
    return pd.DataFrame({**columns, "item": item_rows})


def _grouped(interactions: TableSource, items_name: str, items: pd.DataFrame, folder: Path) -> GroupedLog:
    """The interactions as a grouped log in `folder`, which an earlier call may have made from the same files."""
    finish_saving(folder)
    with fetched(interactions, "interactions") as local:
        files = source_files(local, "interactions")
        source = fingerprint(files, "\n".join(items["item_id"]))
        is_there = files and (folder / _SOURCE_FILE).is_file()
        if not is_there or read_json(folder / _SOURCE_FILE).get("source") != source:
            with saving(folder, replace=True) as aside:
                group_log(_checked_pieces(local, items_name, pd.Index(items["item_id"])), aside)
                GroupedLog(aside).write_events(len(items))
                items.to_parquet(aside / "items.parquet", index=False)
                write_json(aside / _SOURCE_FILE, {"source": source})
    return GroupedLog(folder)


def _checked_pieces(interactions: TableSource, items_name: str, known: pd.Index) -> Iterator[pd.DataFrame]:
    """Pieces of the interactions, checked."""
    are_floats = {column: _are_floats(interactions, column) for column in ("user_id", "item_id")}
    times = TimePieces()
    for piece in read_pieces(interactions, "interactions", _columns_of_interactions):
        yield _check_interactions(piece, items_name, known, are_floats, times)
    times.finish()


def _are_floats(interactions: TableSource, column: str) -> bool:
    """`are_floats_as_text` of all pieces; as a rule the first one settles it."""
    found = False

    def choose(table: Table) -> list[str]:
        _columns_of_interactions(table)
        return [column]

    for piece in read_pieces(interactions, "interactions", choose):
        for frame in (piece.frame[:100], piece.frame):
            ids = id_column(dataclasses.replace(piece, frame=frame), column, are_floats=False)
            if (ids != "").any() and not are_floats_as_text(ids):
                return False
            found |= bool((ids != "").any())
    return found


def _by_user_and_time(rows: pd.DataFrame) -> np.ndarray:
    """The order of the rows by user (first appearance first), then by time; equal times keep their order."""
    return np.lexsort((rows["timestamp"].to_numpy(), pd.factorize(rows["user_id"])[0]))  # lexsort is stable


def _merge_rows(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """All rows by user and time, and where each of them was in the concatenation of the two."""
    rows = pd.concat([first, second], ignore_index=True)
    order = _by_user_and_time(rows)
    return rows.iloc[order].reset_index(drop=True), order


def _check_queries(table: Table) -> pd.Series:
    if "query" not in table.frame.columns:
        return pd.Series("", index=table.frame.index, dtype="str")
    queries = text_column(table, "query", "give the words that were typed, or nothing", separators=())
    too_long = np.flatnonzero(queries.str.len() > MAX_QUERY_CHARACTERS)
    if len(too_long):
        logger.warning(
            "%s, row %d, column query: %d characters are cut to %s (%d such rows; rows are counted from 1, without the "
            "header).",
            table.name, too_long[0] + 1, len(queries.iloc[too_long[0]]), f"{MAX_QUERY_CHARACTERS:,}", len(too_long),
        )  # fmt: skip
        queries = queries.str.slice(0, MAX_QUERY_CHARACTERS).str.strip()
    return queries


def _check_history(history: pd.DataFrame, items: pd.DataFrame, rows: pd.DataFrame) -> None:
    missing = history["item_id"][(history["item_id"] != "") & ~history["item_id"].isin(items["item_id"])].unique()
    if len(missing):
        raise InputError(
            f"`history` contains {len(missing):,} items that `items` lacks, such as {missing[0]!r}; give the whole "
            "catalogue as `items`, earlier and new items together."
        )
    last = history.groupby("user_id")["timestamp"].max()
    is_too_early = (rows["timestamp"] < rows["user_id"].map(last)).to_numpy()
    if is_too_early.any():
        first = rows[is_too_early].iloc[0]
        raise InputError(
            f"{int(is_too_early.sum()):,} of the interactions are earlier than the history of their user: user "
            f"{first['user_id']} has one at {first['timestamp']:.10g}, and the last of the history is at "
            f"{last[first['user_id']]:.10g}; give only newer interactions."
        )


def _k_core(items: pd.DataFrame, rows: pd.DataFrame, min_interactions: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The largest part in which every user and every item has `min_interactions` clicks.

    Raises:
        InputError: nothing is left.
    """
    clicked = rows["item_id"] != ""
    clicks = rows[clicked]
    while True:
        per_user = clicks.groupby("user_id")["item_id"].transform("size")
        per_item = clicks.groupby("item_id")["user_id"].transform("size")
        enough = (per_user >= min_interactions) & (per_item >= min_interactions)
        if enough.all():
            break
        clicks = clicks[enough]
    if clicks.empty:
        raise InputError(
            f"No users and items remain that have {min_interactions} clicks each among one another; lower "
            "`min_interactions`."
        )
    stays = rows.index.isin(clicks.index) | (~clicked & rows["user_id"].isin(clicks["user_id"].unique()))
    kept_items = items[items["item_id"].isin(clicks["item_id"].unique())]
    return kept_items.reset_index(drop=True), rows[stays].reset_index(drop=True)
