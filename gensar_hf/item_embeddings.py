"""Tables of item embeddings: checks, unit rows, and safetensors files."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gensar_hf.errors import InputError
from gensar_hf.files import fingerprint, load_array_metadata, load_arrays, save_arrays

CHUNK_ROWS = 1024  # queries against a whole catalogue at once
_ARRAY = "embeddings"
_ITEMS_KEY = "item_ids_sha256"


def row_chunks(num_rows: int, size: int = CHUNK_ROWS) -> Iterator[slice]:
    """Slices of `size` rows, the last one shorter, that together cover all rows."""
    return (slice(start, start + size) for start in range(0, num_rows, size))


def checked_table(name: str, embeddings: Any) -> np.ndarray:
    """The embeddings as a finite float32 table, `(num_items, dim)`; no row is allowed.

    Args:
        name: `"semantic"` or `"collaborative"`, for the message.
        embeddings: an array, or a torch tensor on the CPU.

    Raises:
        InputError: not a table, or a value that is not finite.
    """
    table = np.asarray(embeddings, dtype=np.float32)
    if table.ndim != 2:
        raise InputError(
            f"The {name} embeddings must be a table with one row per item; got an array of shape {table.shape}."
        )
    is_finite = np.isfinite(table)
    if not is_finite.all():
        row, column = np.argwhere(~is_finite)[0]
        raise InputError(
            f"The {name} embedding of item {row} (counted from 0) is {table[row, column]} in dimension {column}; every "
            "value must be finite, so check the model that made the embeddings."
        )
    return table


def checked_pair(semantic: Any, collaborative: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as `checked_table`, with the same number of rows.

    Raises:
        InputError: as in `checked_table`, or the numbers of rows differ.
    """
    semantic, collaborative = checked_table("semantic", semantic), checked_table("collaborative", collaborative)
    if len(semantic) != len(collaborative):
        raise InputError(
            f"There are {len(semantic)} semantic but {len(collaborative)} collaborative embeddings; give one of each "
            "per item, in the same order."
        )
    return semantic, collaborative


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """The rows of `(num_items, dim)` scaled to length 1, float32; zero rows stay zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def save_item_embeddings(path: str | os.PathLike[str], embeddings: np.ndarray, item_ids: Sequence[str]) -> None:
    """Write finite `(num_items, dim)` embeddings, as float32, and a hash of the item ids in order, atomically.

    Raises:
        InputError: the number of rows differs from the number of items, or a value is not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    _check_rows(path, embeddings, item_ids)
    save_arrays(path, {_ARRAY: embeddings}, metadata={_ITEMS_KEY: fingerprint(list(item_ids))})


def load_item_embeddings(path: str | os.PathLike[str], item_ids: Sequence[str]) -> np.ndarray:
    """Read what `save_item_embeddings` wrote for exactly these items, `(num_items, dim)` float32.

    Raises:
        InputError: the file is missing or damaged, belongs to other items (or another order), or holds a value that
            is not finite.
    """
    arrays = load_arrays(path)
    if _ARRAY not in arrays:
        raise InputError(
            f"{path} holds no array named '{_ARRAY}', so it is not a file of item embeddings; run the stage again."
        )
    embeddings = arrays[_ARRAY].astype(np.float32, copy=False)
    _check_rows(path, embeddings, item_ids)
    if load_array_metadata(path).get(_ITEMS_KEY) != fingerprint(list(item_ids)):
        raise InputError(
            f"{path} was made for other items, or the same ones in another order, than the {len(item_ids)} of this "
            "catalogue; delete it and run the stage again."
        )
    return embeddings


def _check_rows(path: str | os.PathLike[str], embeddings: np.ndarray, item_ids: Sequence[str]) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(item_ids):
        raise InputError(
            f"{path} needs one row for each of the {len(item_ids)} items, but the embeddings have the shape "
            f"{embeddings.shape}; make them again from this catalogue."
        )
    is_finite = np.isfinite(embeddings).all(axis=1)
    if not is_finite.all():
        row = int(is_finite.argmin())
        raise InputError(
            f"{path}: the embedding of item '{item_ids[row]}' (row {row + 1}) holds NaN or an infinity; the encoder "
            "or its training diverged, so make the embeddings again, for example with a lower learning rate."
        )
