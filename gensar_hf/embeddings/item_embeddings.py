"""One vector an item in a safetensors file that knows which items its rows belong to."""

import os
from collections.abc import Sequence

import numpy as np

from gensar_hf.errors import InputError
from gensar_hf.files import fingerprint, load_array_metadata, load_arrays, save_arrays

_ARRAY = "embeddings"
_ITEMS_KEY = "item_ids_sha256"


def save_item_embeddings(path: str | os.PathLike[str], embeddings: np.ndarray, item_ids: Sequence[str]) -> None:
    """Write the embeddings, together with a hash of the item ids in order.

    Args:
        path: the `.safetensors` file.
        embeddings: `(num_items, dim)`, finite; stored as float32.
        item_ids: `(num_items,)` the item of each row.

    Raises:
        InputError: the number of rows differs from the number of items, or a value is not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    _check_rows(path, embeddings, item_ids)
    save_arrays(path, {_ARRAY: embeddings}, metadata={_ITEMS_KEY: fingerprint(list(item_ids))})


def load_item_embeddings(path: str | os.PathLike[str], item_ids: Sequence[str]) -> np.ndarray:
    """Read what `save_item_embeddings` wrote, for exactly these items.

    Args:
        path: the `.safetensors` file.
        item_ids: the items of the catalogue, in order.

    Returns:
        `(num_items, dim)` float32.

    Raises:
        InputError: the file is missing or damaged, belongs to other items (or another order), or holds a value that
            is not finite.
    """
    arrays = load_arrays(path)
    if _ARRAY not in arrays:
        raise InputError(
            f"{path} holds no array named '{_ARRAY}', so it is no file of item embeddings; run the stage again."
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
