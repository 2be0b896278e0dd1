"""What an identifier table must satisfy, and what may be added to it or removed from it."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gensar_hf.errors import InputError
from gensar_hf.identifiers.joint_codes import num_distinct

if TYPE_CHECKING:
    from gensar_hf.identifiers.identifier_table import IdentifierTable
    from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE


def check_fields(where: str, table: "IdentifierTable") -> None:
    """Refuse a table in which something does not fit.

    Args:
        where: begins the message.
        table: its codes and `available` are arrays already.

    Raises:
        InputError: sizes that do not agree, an item id that is no string or occurs twice, a code out of range, an
            identifier that occurs twice, kinds that differ on a shared level, or no available item.
    """
    codes = {"semantic_codes": table.semantic_codes, "collaborative_codes": table.collaborative_codes}
    _check_sizes(where, table)
    _check_item_ids(where, table.item_ids)
    for column, kind_codes in codes.items():
        _check_codes(where, column, kind_codes, table.codebook_size)
    num_shared = table.num_shared_levels
    differs = (table.semantic_codes[:, :num_shared] != table.collaborative_codes[:, :num_shared]).any(axis=1)
    if differs.any():
        raise InputError(
            f"{where}, row {int(differs.argmax()) + 1}: the semantic and the collaborative codes differ on the "
            f"first {num_shared} levels, which are shared."
        )


def _check_sizes(where: str, table: "IdentifierTable") -> None:
    shape = (table.num_items, table.semantic_codes.shape[-1])
    if table.num_items == 0 or table.semantic_codes.shape != shape or table.collaborative_codes.shape != shape:
        raise InputError(
            f"{where} must hold one row of codes of each kind per item, for at least one item; got "
            f"{table.num_items} items, semantic codes of shape {table.semantic_codes.shape} and collaborative codes "
            f"of shape {table.collaborative_codes.shape}."
        )
    for name, values in (("titles", table.titles), ("texts", table.texts)):
        if values is not None and len(values) != table.num_items:
            raise InputError(f"{where} has {table.num_items} items but {len(values)} {name}; give one per item.")
    if table.available.dtype != bool or table.available.shape != (table.num_items,):
        raise InputError(
            f"{where} has {table.num_items} items, so `available` must hold as many truth values; got an array of "
            f"shape {table.available.shape} and dtype {table.available.dtype}."
        )
    neighbors = table.neighbors
    if neighbors.ndim != 2 or len(neighbors) >= table.num_items or not _may_lend(neighbors, table.num_trained):
        raise InputError(
            f"{where}: `neighbors` must name, for each of the last items, rows of items that come before them all, or "
            f"first the item's own where it has been learned; got an array of shape {neighbors.shape} for "
            f"{table.num_items} items."
        )
    if not table.available.any():
        raise InputError(f"{where} has no available item; a catalogue needs at least one, so restore some.")


def _may_lend(neighbors: np.ndarray, num_trained: int) -> bool:
    """Whether all neighbors are trained items, or an item itself, first, where none before it lacks that."""
    is_own = neighbors[:, :1] == num_trained + np.arange(len(neighbors))[:, None]
    is_trained = (neighbors >= 0) & (neighbors < num_trained)
    is_trained[:, :1] |= is_own
    return bool(is_trained.all()) and bool((np.diff(is_own[:, :1].astype(int), axis=0) <= 0).all())


def _check_item_ids(where: str, item_ids: Sequence[str]) -> None:
    if not all(issubclass(kind, str) for kind in set(map(type, item_ids))):
        row, item_id = next((row, each) for row, each in enumerate(item_ids, start=1) if not isinstance(each, str))
        raise InputError(f"{where}, row {row}, column item_id: {item_id!r} is not a string.")
    if len(set(item_ids)) < len(item_ids):
        _refuse_repeats(where, "item_id", item_ids, "every item may occur only once")


def _check_codes(where: str, column: str, codes: np.ndarray, codebook_size: int) -> None:
    if codes.size and (codes.min() < 0 or codes.max() >= codebook_size):
        row, level = np.argwhere((codes < 0) | (codes >= codebook_size))[0]
        raise InputError(
            f"{where}, row {row + 1}, column {column}: code {codes[row, level]} on level {level + 1} is "
            f"not between 0 and {codebook_size - 1}."
        )
    if num_distinct(codes) < len(codes):
        _refuse_repeats(where, column, list(map(tuple, codes.tolist())), "identifiers must be unique")


def _refuse_repeats(where: str, column: str, values: Sequence, rule: str) -> None:
    first_rows: dict = {}
    for row, value in enumerate(values, start=1):
        first = first_rows.setdefault(value, row)
        if first != row:
            raise InputError(f"{where}, row {row}, column {column}: {value!r} is that of row {first}, too; {rule}.")


def new_item_ids(item_ids: Sequence[str], table: "IdentifierTable") -> list[str]:
    """The ids as a list, none of which is in the table.

    Raises:
        InputError: an id that is no string, is given twice, or is in the table, available or removed.
    """
    checked = _checked_ids(item_ids)
    rows = table.rows()
    known = next((item_id for item_id in checked if item_id in rows), None)
    if known is None:
        return checked
    if table.available[rows[known]]:
        raise InputError(f"The item {known!r} is in the identifier table already; leave it out of the new items.")
    raise InputError(
        f"The item {known!r} is in the identifier table already, as a removed one; bring it back with "
        f"`restore_items([{known!r}])`, which gives it the identifiers that it had."
    )


def rows_to_change(item_ids: Sequence[str], table: "IdentifierTable", available: bool) -> np.ndarray:
    """Rows `(num_changed,)` of items that are to become available (True) or removed (False).

    Raises:
        InputError: an id that is no string, is given twice, is unknown, or belongs to an item that is so already.
    """
    verb = "restored" if available else "removed"
    index = table.rows()
    rows = []
    for item_id in _checked_ids(item_ids):
        if item_id not in index:
            raise InputError(f"The item {item_id!r} cannot be {verb}, because it is not in the identifier table.")
        if table.available[index[item_id]] == available:
            state = "it was not removed" if available else "it is removed already"
            raise InputError(f"The item {item_id!r} cannot be {verb}, because {state}.")
        rows.append(index[item_id])
    return np.array(rows, dtype=np.int64)


def _checked_ids(item_ids: Sequence[str]) -> list[str]:
    if isinstance(item_ids, str):
        raise InputError(f"`item_ids` must be a list of item ids; got the string {item_ids!r}, so give [{item_ids!r}].")
    item_ids = list(item_ids)
    wrong = [item_id for item_id in item_ids if not isinstance(item_id, str)]
    if wrong:
        raise InputError(f"Item ids must be strings; got {wrong[0]!r}, which is of type {type(wrong[0]).__name__}.")
    item_id, occurrences = Counter(item_ids).most_common(1)[0] if item_ids else ("", 0)
    if occurrences > 1:
        raise InputError(f"The item {item_id!r} was given {occurrences} times; give every item once.")
    return item_ids


def check_model(model: "JointRQVAE", table: "IdentifierTable") -> None:
    """Refuse a model whose identifiers have another shape than the table's.

    Raises:
        InputError: `codebook_size`, `num_shared_levels` or `num_levels` differ.
    """
    for name in ("codebook_size", "num_shared_levels", "num_levels"):
        ours, theirs = getattr(table, name), getattr(model.config, name)
        if ours != theirs:
            raise InputError(
                f"The model has `{name}` {theirs}, but the identifiers of the table were made with {ours}; add items "
                "with the joint RQ-VAE that was saved when the table was built."
            )


def require_one_per_item(num_items: int, item_ids: Sequence[str], **texts: Sequence[str] | None) -> None:
    """Refuse ids, titles or texts that are not as many as the embeddings.

    Raises:
        InputError: the numbers differ.
    """
    for name, values in {"item ids": item_ids, **texts}.items():
        if values is not None and len(values) != num_items:
            raise InputError(f"There are {num_items} embeddings but {len(values)} {name}; give one of each per item.")


def extended_texts(
    name: str, present: list[str] | None, new: Sequence[str] | None, instead: Sequence[str] | None, num_new: int
) -> list[str] | None:
    """A table's titles or texts with those of new items behind them.

    Args:
        name: `"titles"` or `"texts"`, for the message.
        present: of the table, or None.
        new: of the new items, or None.
        instead: what stands for them if they were left out, or None for empty strings.
        num_new: number of new items.

    Raises:
        InputError: the table has none, but the new items do.
    """
    if present is None:
        if new is not None:
            raise InputError(
                f"The identifier table has no {name}, so the {num_new} new items can have none; leave `{name}` out."
            )
        return None
    if new is None:
        new = [""] * num_new if instead is None else instead
    return [*present, *new]
