"""From token sequences to the sorted prefixes of a trie, without a Python loop over sequences."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

PADDING = -1
_MAX_KEY_BITS = 63
_BLOCK_ROWS = 1 << 14  # a table is turned from rows into columns in blocks that stay in the cache

TokenSequences = np.ndarray | torch.Tensor | Sequence[Any]


class TrieLevel(NamedTuple):
    """The distinct prefixes of one length, in the order of the sorted sequences."""

    first_sequences: Any  # (num_nodes,) the first sequence that begins with the prefix; None: each has its own
    codes: np.ndarray  # (num_nodes,) the prefix's last token, less `first_token`
    first_token: int  # no token of the level is smaller


class SortedSequences(NamedTuple):
    """Sequences in ascending order, as the levels of their trie."""

    levels: list[TrieLevel]
    order: np.ndarray | None  # (num_sequences,) the caller's row of each sequence; None: the rows came sorted
    lengths: np.ndarray | None  # (num_sequences,) tokens of each sequence; None: all have the same number


def padded_table(sequences: TokenSequences) -> np.ndarray:
    """The sequences as one `(num_sequences, max_length)` table of integers, padded with negative numbers.

    Raises:
        ValueError: no sequence, or no integers.
    """
    if isinstance(sequences, torch.Tensor):
        sequences = sequences.cpu().numpy()
    if not isinstance(sequences, np.ndarray) or sequences.ndim != 2:
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        table = np.full((len(lengths), lengths.max(initial=0)), PADDING, dtype=np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate([*sequences, []])
        sequences = table
    if sequences.size == 0 or not np.issubdtype(sequences.dtype, np.integer):
        raise ValueError(
            "A trie needs at least one sequence of integer tokens; got an array of shape "
            f"{sequences.shape} and dtype {sequences.dtype}."
        )
    return sequences


def sort_sequences(table: np.ndarray) -> SortedSequences:
    """Sort the sequences of a padded table and find their prefixes.

    One integer of at most 63 bits stands for a whole sequence where the ranges of the columns allow it, as those of
    four levels of 256 codes do: to sort, and to tell where two neighbours part, is then one operation each.

    Raises:
        ValueError: two sequences are the same, one is empty, or one has a negative token before its end.
    """
    lows, highs = _column_ranges(table)
    if min(lows) < 0:
        table = _checked_padding(table)
        lows, highs = _column_ranges(table)
    bits = [(high - low).bit_length() for low, high in zip(lows, highs, strict=True)]
    if sum(bits) <= _MAX_KEY_BITS and len(bits) < 256:
        keys = _packed_keys(table, lows, bits)
        order = None if _is_ascending(keys) else np.argsort(keys)
        keys = keys if order is None else keys[order]
        num_shared = _shared_columns_of_keys(keys, bits)
        _refuse_repeats(num_shared, table, order)
        levels = [_level_of_keys(keys, num_shared, column, lows, bits) for column in range(len(bits))]
    else:
        order = np.lexsort(table.T[::-1])
        rows = table[order]
        num_shared = np.logical_and.accumulate(rows[1:] == rows[:-1], axis=1).sum(axis=1)
        _refuse_repeats(num_shared, table, order)
        levels = [_level_of_rows(rows, num_shared, column) for column in range(table.shape[1])]
    if min(lows) >= 0:
        return SortedSequences(levels, order, None)
    lengths = (table >= 0).sum(axis=1)
    levels = [_without_padding(level, len(table)) for level in levels]
    return SortedSequences(levels, order, lengths if order is None else lengths[order])


def _checked_padding(table: np.ndarray) -> np.ndarray:
    """The table padded with -1 alone, without columns that hold nothing else."""
    is_padding = table < 0
    holed = is_padding[:, 0] | (is_padding[:, :-1] & ~is_padding[:, 1:]).any(axis=1)
    if holed.any():
        row = int(holed.argmax())
        raise ValueError(
            f"Sequence {row} of the trie is empty or has a negative token before its end: {table[row].tolist()}; "
            "-1 may only pad it on the right."
        )
    return np.maximum(table, PADDING)[:, ~is_padding.all(axis=0)]


def smallest_dtype(limit: int) -> type[np.integer]:
    """The smallest dtype, of those that torch computes with, that holds 0 … limit - 1."""
    if limit <= 1 << 8:
        return np.uint8
    return np.int16 if limit <= 1 << 15 else np.int32 if limit <= 1 << 31 else np.int64


def _column_blocks(table: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows, each with its `(length, num_rows)` columns, contiguous."""
    for start in range(0, len(table), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        yield rows, np.ascontiguousarray(table[rows].T)


def _column_ranges(table: np.ndarray) -> tuple[list[int], list[int]]:
    ranges = [(columns.min(axis=1), columns.max(axis=1)) for _, columns in _column_blocks(table)]
    lows, highs = zip(*ranges, strict=True)
    return np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()


def _packed_keys(table: np.ndarray, lows: list[int], bits: list[int]) -> np.ndarray:
    """`(num_sequences,)` int64: the columns' tokens, each less its column's smallest, behind one another in bits."""
    keys = np.zeros(len(table), dtype=np.int64)
    for rows, columns in _column_blocks(table):
        block = keys[rows]  # a view
        for column, low, width in zip(columns, lows, bits, strict=True):
            block <<= width
            block |= column.astype(np.int64) - low
    return keys


def _is_ascending(keys: np.ndarray) -> bool:
    return all((keys[rows][1:] >= keys[rows][:-1]).all() for rows in _overlapping_blocks(len(keys)))


def _shared_columns_of_keys(keys: np.ndarray, bits: list[int]) -> np.ndarray:
    """`(num_sequences - 1,)` uint8: how many leading columns each sorted sequence has in common with the next."""
    limits = [1 << shift for shift in _shifts(bits)]
    num_shared = np.empty(len(keys) - 1, dtype=np.uint8)
    for rows in _overlapping_blocks(len(keys)):
        parting = keys[rows][1:] ^ keys[rows][:-1]  # its highest bit lies in the column in which two neighbours part
        num_shared[rows.start : rows.stop - 1] = sum((parting < limit).astype(np.uint8) for limit in limits)
    return num_shared


def _level_of_keys(
    keys: np.ndarray, num_shared: np.ndarray, column: int, lows: list[int], bits: list[int]
) -> TrieLevel:
    shift, mask = _shifts(bits)[column], (1 << bits[column]) - 1
    firsts = _first_of_each(num_shared <= column)
    level_keys = keys if firsts is None else keys[firsts]
    codes = np.empty(len(level_keys), dtype=smallest_dtype(mask + 1))
    for rows in _overlapping_blocks(len(codes), overlap=0):
        codes[rows] = (level_keys[rows] >> shift) & mask
    return TrieLevel(firsts, codes, lows[column])


def _level_of_rows(rows: np.ndarray, num_shared: np.ndarray, column: int) -> TrieLevel:
    firsts = _first_of_each(num_shared <= column)
    tokens = rows[:, column] if firsts is None else rows[firsts, column]
    low, high = int(tokens.min()), int(tokens.max())
    return TrieLevel(firsts, (tokens - low).astype(smallest_dtype(high - low + 1)), low)


def _without_padding(level: TrieLevel, num_sequences: int) -> TrieLevel:
    """Prefixes that end in padding, the smallest token of all, are none."""
    firsts = np.arange(num_sequences) if level.first_sequences is None else level.first_sequences
    if level.first_token >= 0:
        return level._replace(first_sequences=firsts)
    is_prefix = level.codes > 0
    codes = level.codes[is_prefix]
    return TrieLevel(firsts[is_prefix], codes - codes.min(), level.first_token + int(codes.min()))


def _first_of_each(parts: np.ndarray) -> np.ndarray | None:
    """The first sequence of each prefix, from `(num_sequences - 1,)` bool: does the next sequence leave the prefix?

    None: every sequence has a prefix of its own.
    """
    if parts.all():
        return None
    dtype = smallest_dtype(max(len(parts) + 1, 1 << 16))
    return np.concatenate([np.zeros(1, dtype), np.flatnonzero(parts).astype(dtype) + dtype(1)])


def _shifts(bits: list[int]) -> list[int]:
    """How many bits of a key lie to the right of each column."""
    return [sum(bits[column + 1 :]) for column in range(len(bits))]


def _overlapping_blocks(num_rows: int, overlap: int = 1) -> Iterator[slice]:
    """Slices that stay in the cache; neighbours at the border of two are seen by the first of them."""
    for start in range(0, num_rows - overlap, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS + overlap, num_rows))


def _refuse_repeats(num_shared: np.ndarray, table: np.ndarray, order: np.ndarray | None) -> None:
    """`num_shared`: `(num_sequences - 1,)` leading columns that each sorted sequence has in common with the next."""
    is_repeat = num_shared == table.shape[1]
    if not is_repeat.any():
        return
    place = int(is_repeat.argmax())
    one, other = (place, place + 1) if order is None else sorted(order[place : place + 2].tolist())
    raise ValueError(
        f"The sequences {one} and {other} of the trie are the same, {table[one].tolist()}; each identifier must belong "
        "to one item, so make the identifiers unique first."
    )
