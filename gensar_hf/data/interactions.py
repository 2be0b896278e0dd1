"""A user's two tables → one validated, chronological log.

`items`: `item_id`, then any columns; some of them make the item's text. `interactions`: `user_id`, `item_id`,
`timestamp` (or `order`), and optionally `query`. A row with an item and no query is a click on a recommendation, a row
with both is a click after a search, a row with a query and no item is a search without a click.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from gensar_hf.data.tables import Table, TableSource, id_column, read_table, text_column, time_column
from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path, read_json, write_json

logger = logging.getLogger(__name__)

# Long text last: text encoders cut what is too long, and the short columns say most per word.
DEFAULT_TEXT_COLUMNS = ("title", "name", "brand", "categories", "category", "genres", "year", "description")
MAX_QUERY_CHARACTERS = 1000
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "query")
_TIME_COLUMNS = ("timestamp", "order")
_FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """What `load_log` returns: both tables in one known form.

    Attributes:
        items: `item_id` (str, distinct) first, then the other columns of the items table; text columns are str, ""
            where missing.
        interactions: the columns `user_id` (str), `item_id` (str, "" for a search without a click), `timestamp`
            (float64; seconds, or the order) and `query` (str, "" for a click on a recommendation). Users stand in the
            order of their first appearance, their rows in the order of time; rows of equal time keep the file's order.
        text_columns: the columns of `items` that make an item's text, in order.
    """

    items: pd.DataFrame
    interactions: pd.DataFrame
    text_columns: tuple[str, ...]

    def item_texts(self) -> list[str]:
        """The text of each item, in the order of `items`: its non-empty text columns joined by ". ".

        For `text_columns = ("title", "year", "genres")` it reads "Toy Story. 1995. Animation, Children's, Comedy".
        """
        rows = zip(*(self.items[column] for column in self.text_columns), strict=True)
        return [". ".join(part for part in row if part) for row in rows]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `items.parquet`, `interactions.parquet` and, last, `log.json` into `folder`."""
        folder = Path(folder)
        for name, frame in (("items", self.items), ("interactions", self.interactions)):
            with atomic_path(folder / f"{name}.parquet") as aside:
                frame.to_parquet(aside, index=False)
        write_json(
            folder / "log.json",
            {
                "format_version": _FORMAT_VERSION,
                "text_columns": list(self.text_columns),
                "num_items": len(self.items),
                "num_interactions": len(self.interactions),
            },
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> InteractionLog:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or damaged, or the three do not belong together.
        """
        folder = Path(folder)
        about = read_json(folder / "log.json")
        items = read_table(folder / "items.parquet", "items").frame
        interactions = read_table(folder / "interactions.parquet", "interactions").frame
        expected = [about.get("num_items"), about.get("num_interactions"), _FORMAT_VERSION]
        if [len(items), len(interactions), about.get("format_version")] != expected:
            raise InputError(
                f"{folder}: log.json, items.parquet and interactions.parquet do not belong together; delete them and "
                "run the data stage again."
            )
        return cls(items, interactions, tuple(about["text_columns"]))


def load_log(
    items: TableSource, interactions: TableSource, text_columns: Sequence[str] | None = None
) -> InteractionLog:
    """Read and check a user's two tables.

    Args:
        items: path (.parquet, .csv, .tsv, .jsonl, .json), DataFrame or `datasets.Dataset`; one row an item.
        interactions: the same kinds; one row a click or a search. Columns other than `user_id`, `item_id`, `timestamp`
            (or `order`: a number that grows with time, where no timestamp is known; `timestamp` wins) and `query` are
            dropped.
        text_columns: the columns that make an item's text, in order. By default those of `DEFAULT_TEXT_COLUMNS` that
            the table has, in that order.

    Returns:
        The log. Ids are text: 242, "242" and 242.0 are the same item. Text has its runs of white space made one space;
        lists are joined with ", ". Queries beyond 1,000 characters are cut there, with a warning.

    Raises:
        InputError: one sentence with table, row, column, value and what to do.
    """
    item_table, interaction_table = read_table(items, "items"), read_table(interactions, "interactions")
    checked_items, chosen = _check_items(item_table, text_columns)
    return InteractionLog(checked_items, _check_interactions(interaction_table, item_table.name, checked_items), chosen)


def _check_items(table: Table, text_columns: Sequence[str] | None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    table.require(["item_id"])
    item_ids = id_column(table, "item_id")
    _check_item_ids(table, item_ids)
    chosen = _choose_text_columns(table, text_columns)
    remedy = "turn it into text, or leave the column out by naming the text columns (`text_columns`)"
    columns: dict[str, pd.Series] = {"item_id": item_ids}
    for column in table.frame.columns:
        if column in chosen:
            columns[column] = text_column(table, column, remedy)
        elif column != "item_id":
            columns[str(column)] = _storable(table.frame[column])
    items = pd.DataFrame(columns)
    without_text = int((items[list(chosen)] == "").all(axis=1).sum())
    if without_text == len(items):
        raise InputError(
            f"{table.name}: the text columns {', '.join(chosen)} are empty in every row; fill at least one."
        )
    if without_text:
        logger.warning("%s: %d of %d items have no text at all.", table.name, without_text, len(items))
    return items, chosen


def _check_item_ids(table: Table, item_ids: pd.Series) -> None:
    missing = np.flatnonzero(item_ids == "")
    if len(missing):
        raise table.complain("item_id", missing, "is no item id, the value is missing", "give every item an id")
    repeated = np.flatnonzero(item_ids.duplicated())
    if len(repeated):
        first = int(np.flatnonzero(item_ids == item_ids.iloc[repeated[0]])[0])
        raise table.complain(
            "item_id",
            repeated,
            f"stands in row {first + 1} already",
            "keep one row per item",
            item_ids.iloc[repeated[0]],
        )


def _choose_text_columns(table: Table, text_columns: Sequence[str] | None) -> tuple[str, ...]:
    if text_columns is None:
        chosen = [column for column in DEFAULT_TEXT_COLUMNS if column in table.frame.columns]
    else:
        chosen = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        table.require(chosen)
    if not chosen:
        raise InputError(
            f"{table.name} has no text column: none of {', '.join(DEFAULT_TEXT_COLUMNS)} is among its columns "
            f"{', '.join(map(str, table.frame.columns))}; name those that describe an item (`text_columns`)."
        )
    if "item_id" in chosen or len(set(chosen)) < len(chosen):
        raise InputError(
            f"The text columns {', '.join(chosen)} name item_id or one column twice; name others, once each."
        )
    return tuple(chosen)


def _storable(values: pd.Series) -> pd.Series:
    """A column that is no text, as it is; as text where its values have no type in common, which Parquet refuses."""
    try:
        pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError):
        return values.astype("str")
    return values


def _check_interactions(table: Table, items_name: str, items: pd.DataFrame) -> pd.DataFrame:
    time_name = "order" if "timestamp" not in table.frame.columns and "order" in table.frame.columns else "timestamp"
    table.require(["user_id", "item_id", time_name])
    user_ids, item_ids = id_column(table, "user_id"), id_column(table, "item_id")
    queries = _check_queries(table)
    missing = np.flatnonzero(user_ids == "")
    if len(missing):
        raise table.complain("user_id", missing, "is no user id, the value is missing", "give every row a user")
    neither = np.flatnonzero((item_ids == "") & (queries == ""))
    if len(neither):
        raise table.complain(
            "item_id", neither, "is no item id, and the row has no query either", "give an item, a query, or both"
        )
    unknown = np.flatnonzero((item_ids != "") & ~item_ids.isin(items["item_id"]))
    if len(unknown):
        raise table.complain(
            "item_id",
            unknown,
            f"is not an item of {items_name}",
            "add the item there or drop the row",
            item_ids.iloc[unknown[0]],
        )
    timestamps = time_column(table, time_name)
    frame = pd.DataFrame({"user_id": user_ids, "item_id": item_ids, "timestamp": timestamps, "query": queries})
    users = pd.factorize(frame["user_id"])[0]
    return frame.iloc[np.lexsort((timestamps, users))].reset_index(
        drop=True
    )  # lexsort is stable: ties keep their order


def _check_queries(table: Table) -> pd.Series:
    if "query" not in table.frame.columns:
        return pd.Series("", index=table.frame.index, dtype="str")
    queries = text_column(table, "query", "give the words that were typed, or nothing")
    too_long = np.flatnonzero(queries.str.len() > MAX_QUERY_CHARACTERS)
    if len(too_long):
        logger.warning(
            "%s, row %d, column query: %d characters are cut to %s (%d such rows; rows are counted from 1, without the "
            "header).",
            table.name,
            too_long[0] + 1,
            len(queries.iloc[too_long[0]]),
            f"{MAX_QUERY_CHARACTERS:,}",
            len(too_long),
        )
        queries = queries.str.slice(0, MAX_QUERY_CHARACTERS).str.strip()
    return queries


def k_core(log: InteractionLog, min_interactions: int) -> InteractionLog:
    """Drop users and items with fewer than `min_interactions` clicks, again and again until none is left to drop.

    Every click counts, repeated ones included; searches without a click count for nobody and stay with their user.
    Items that are never clicked leave the catalogue, too.

    Args:
        log: what to filter; it is not changed.
        min_interactions: at least 1.

    Raises:
        ValueError: `min_interactions` is below 1.
        InputError: nothing is left.
    """
    if min_interactions < 1:
        raise ValueError(f"`min_interactions` must be at least 1, because it counts clicks; got {min_interactions}.")
    clicked = log.interactions["item_id"] != ""
    clicks = log.interactions[clicked]
    while True:
        per_user = clicks.groupby("user_id")["item_id"].transform("size")
        per_item = clicks.groupby("item_id")["user_id"].transform("size")
        enough = (per_user >= min_interactions) & (per_item >= min_interactions)
        if enough.all():
            break
        clicks = clicks[enough]
    if clicks.empty:
        raise InputError(
            f"No user and item have {min_interactions} clicks each among the others that do; lower the k of the k-core."
        )
    stays = log.interactions.index.isin(clicks.index) | (
        ~clicked & log.interactions["user_id"].isin(clicks["user_id"].unique())
    )
    items = log.items[log.items["item_id"].isin(clicks["item_id"].unique())]
    return InteractionLog(
        items.reset_index(drop=True), log.interactions[stays].reset_index(drop=True), log.text_columns
    )
