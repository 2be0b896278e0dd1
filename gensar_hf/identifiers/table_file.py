"""Reading and writing `identifiers.parquet`, column by column: no loop over its rows unless one of them is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path

TABLE_FILE = "identifiers.parquet"
FORMAT_VERSION = 1
_METADATA_KEY = b"gensar_hf.identifiers"


def table_path(path: str | os.PathLike[str]) -> Path:
    """The path itself if it ends in `.parquet`, otherwise `identifiers.parquet` inside it."""
    path = Path(path)
    return path if path.suffix == ".parquet" else path / TABLE_FILE


def write_fields(target: Path, fields: dict[str, Any]) -> None:
    """Write the fields of an `IdentifierTable`, by name, aside first.

    Columns: `item_id`, `semantic_codes`, `collaborative_codes` (lists of int32), `available`, and `title` and `text` if
    the table has them, and `neighbors` (null for trained items) if items were added; the numbers and the report are in
    the file's metadata.
    """
    columns = {
        "item_id": pa.array(fields["item_ids"], pa.string()),
        "semantic_codes": _list_column(fields["semantic_codes"]),
        "collaborative_codes": _list_column(fields["collaborative_codes"]),
        "available": pa.array(fields["available"]),
    }
    for column, name in (("title", "titles"), ("text", "texts")):
        if fields[name] is not None:
            columns[column] = pa.array(fields[name], pa.string())
    if len(fields["neighbors"]):
        columns["neighbors"] = _neighbors_column(fields["neighbors"], len(fields["item_ids"]))
    metadata = {name: fields[name] for name in ("num_shared_levels", "codebook_size", "build_report")}
    metadata["format_version"] = FORMAT_VERSION
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
    codes = [f"{column}.list.element" for column in ("semantic_codes", "collaborative_codes")]
    with atomic_path(target) as aside:
        pq.write_table(table, aside, use_dictionary=codes)  # ids and texts hardly repeat: a dictionary only slows them


def read_fields(source: Path) -> dict[str, Any]:
    """Read what `write_fields` wrote; a file without the column `available` has all items available.

    Raises:
        InputError: the file is missing, damaged or not an identifier table, or a row has not one code a level.
    """
    table, metadata = _read(source)
    return {
        "item_ids": _strings(table["item_id"]),
        "semantic_codes": _codes(table, "semantic_codes", source),
        "collaborative_codes": _codes(table, "collaborative_codes", source),
        "num_shared_levels": metadata["num_shared_levels"],
        "codebook_size": metadata["codebook_size"],
        "titles": _strings(table["title"]) if "title" in table.column_names else None,
        "texts": _strings(table["text"]) if "text" in table.column_names else None,
        "build_report": metadata.get("build_report", {}),
        "available": _available(table, source),
        "neighbors": _neighbors(table, source),
    }


def _read(source: Path) -> tuple[pa.Table, dict]:
    if not source.is_file():
        raise InputError(
            f"{source} does not exist; it holds the identifiers that the model's tokens stand for, so copy it from the "
            "folder in which the model was saved, or run the identifier stage again."
        )
    try:
        table = pq.read_table(source)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source} is damaged ({error}); delete it and run the identifier stage again.") from None
    missing = {"item_id", "semantic_codes", "collaborative_codes"} - set(table.column_names)
    raw = (table.schema.metadata or {}).get(_METADATA_KEY)
    if missing or raw is None:
        what = f"the column {min(missing)}" if missing else "the metadata that `IdentifierTable.save` writes"
        raise InputError(f"{source} is not an identifier table: {what} is missing.")
    metadata = json.loads(raw)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{source} has format version {metadata.get('format_version')}, but this version of gensar-hf reads "
            f"{FORMAT_VERSION}; run the identifier stage again."
        )
    return table, metadata


def _list_column(codes: np.ndarray) -> pa.Array:
    num_items, num_levels = codes.shape
    offsets = np.arange(num_items + 1, dtype=np.int32) * np.int32(num_levels)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes.astype(np.int32).ravel()))


def _neighbors_column(neighbors: np.ndarray, num_items: int) -> pa.Array:
    """A list for each of the last rows, null for those before."""
    num_added, num_neighbors = neighbors.shape
    offsets = np.maximum(np.arange(num_items + 1) - (num_items - num_added), 0) * num_neighbors
    is_trained = np.arange(num_items) < num_items - num_added
    values = pa.array(neighbors.astype(np.int32).ravel())
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, mask=pa.array(is_trained))


def _neighbors(table: pa.Table, source: Path) -> np.ndarray | None:
    """`(num_added, k)` int64 of the rows behind the last null."""
    if "neighbors" not in table.column_names:
        return None
    has_neighbors = table["neighbors"].is_valid().to_numpy()
    num_added = int(has_neighbors.sum())
    if not has_neighbors[len(has_neighbors) - num_added :].all():
        row = int(np.flatnonzero(has_neighbors)[0])
        raise InputError(
            f"{source}, row {row + 1}, column neighbors: only the last rows, of added items, may have neighbors."
        )
    return _codes(table.slice(len(table) - num_added), "neighbors", source) if num_added else None


def _strings(column: pa.ChunkedArray) -> list[str]:
    # By way of NumPy it is several times faster, but other types than strings come out as something else there.
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.to_numpy().tolist() if is_text else column.to_pylist()


def _codes(table: pa.Table, column: str, source: Path) -> np.ndarray:
    """`(num_items, num_levels)` int64 of a column of lists of one length."""
    lists = table[column].combine_chunks()
    is_list = pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)
    if len(lists) and is_list and lists.null_count == 0 and pa.types.is_integer(lists.type.value_type):
        codes, lengths = lists.flatten(), pc.list_value_length(lists).to_numpy()
        if codes.null_count == 0 and (lengths == lengths[0]).all():
            return codes.to_numpy().astype(np.int64).reshape(len(lists), -1)
    return _codes_by_row(lists.to_pylist(), column, source)


def _codes_by_row(rows: list, column: str, source: Path) -> np.ndarray:
    for row, codes in enumerate(rows, start=1):
        is_list = isinstance(codes, list) and all(isinstance(code, int) for code in codes)
        if not is_list or len(codes) != len(rows[0]):
            raise InputError(
                f"{source}, row {row}, column {column}: {codes!r} is not a list of {len(rows[0] or [])} codes."
            )
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]) if rows else 0)


def _available(table: pa.Table, source: Path) -> np.ndarray:
    """`(num_items,)` bool."""
    if "available" not in table.column_names:
        return np.ones(len(table), dtype=bool)
    column = table["available"]
    if len(column) and (not pa.types.is_boolean(column.type) or column.null_count):
        values = column.to_pylist()
        row = next(row for row, value in enumerate(values) if not isinstance(value, bool))
        raise InputError(f"{source}, row {row + 1}, column available: {values[row]!r} is not true or false.")
    return column.to_numpy().astype(bool)
