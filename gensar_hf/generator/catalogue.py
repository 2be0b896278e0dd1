"""Everything that a request needs to know about the catalogue, as one object."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gensar_hf.data import Behavior
from gensar_hf.decoding import Trie
from gensar_hf.errors import InputError
from gensar_hf.files import fingerprint
from gensar_hf.generator.history import History
from gensar_hf.identifiers import IdentifierTable

logger = logging.getLogger(__name__)

BEHAVIOR_TOKENS = tuple(behavior.token for behavior in Behavior)


@dataclass(frozen=True)
class Catalogue:
    """The items of one moment: their ids, their identifiers as token ids, and the trie of those that may be found.

    Nothing in it changes, so that a request that holds on to one sees no part of the next.

    Attributes:
        identifiers: the table of all items, removed ones included.
        behavior_ids: token id of each behavior.
        item_token_ids: per kind of click, `(num_items, 1 + num_levels)` token ids of each item's behavior-aware
            identifier, int32.
        row_format: how the trie's sequences stand in the rows of `generate`, see `Trie`.
    """

    identifiers: IdentifierTable
    behavior_ids: Mapping[Behavior, int]
    item_token_ids: Mapping[Behavior, np.ndarray]
    row_format: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_table(
        cls, table: IdentifierTable, vocabulary: Mapping[str, int], behavior_tokens: bool = True, **row_format: Any
    ) -> "Catalogue":
        """Look the tokens of a table up.

        Args:
            table: the catalogue's identifiers.
            vocabulary: token → id, of the tokenizer.
            behavior_tokens: False, an ablation (GenSAR, table 5): one token stands before both kinds of identifiers, so
                that the instruction alone says which one is wanted.
            **row_format: see the class.

        Raises:
            InputError: the vocabulary lacks one of the table's tokens.
        """
        code_tokens = table.code_tokens()
        missing = [token for token in (*BEHAVIOR_TOKENS, *code_tokens) if token not in vocabulary]
        if missing:
            raise InputError(
                f"The tokenizer lacks {len(missing)} tokens of the identifier table, first '{missing[0]}'; it belongs "
                "to another catalogue. Use the tokenizer and the identifiers.parquet of one model folder."
            )
        behavior_ids = {behavior: vocabulary[behavior.token] for behavior in Behavior}
        if not behavior_tokens:
            behavior_ids[Behavior.SEARCHED_ITEM] = behavior_ids[Behavior.RECOMMENDED_ITEM]
        ids = np.array([vocabulary[token] for token in code_tokens], dtype=np.int32).reshape(-1, table.codebook_size)
        shared, num_levels = table.num_shared_levels, table.num_levels
        kinds = {
            Behavior.RECOMMENDED_ITEM: (table.collaborative_codes, np.concatenate([ids[:shared], ids[num_levels:]])),
            Behavior.SEARCHED_ITEM: (table.semantic_codes, ids[:num_levels]),
        }
        levels = np.arange(num_levels)
        item_token_ids = {
            behavior: np.insert(level_ids[levels, codes], 0, behavior_ids[behavior], axis=1)
            for behavior, (codes, level_ids) in kinds.items()
        }
        return cls(table, behavior_ids, item_token_ids, row_format)

    @cached_property
    def trie(self) -> Trie:
        """All `[behavior token, code 1 … code L]` of the available items; values are rows of the table."""
        rows = np.flatnonzero(self.identifiers.available)
        kinds = (Behavior.RECOMMENDED_ITEM, Behavior.SEARCHED_ITEM)
        return Trie(
            np.concatenate([self.item_token_ids[kind][rows] for kind in kinds]),
            values=np.concatenate([rows, rows]),
            free_text_token_id=self.behavior_ids[Behavior.SEARCH_QUERY],
            **self.row_format,
        )

    def rows_in(self, history: History) -> set[int]:
        """Rows of a history's items; unknown ones are passed over."""
        rows = self.identifiers.rows()
        item_ids = {str(event["item_id"]) for event in history if event.get("item_id") is not None}
        return {rows[item_id] for item_id in item_ids if item_id in rows}

    def trained_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows, in place of each added item that was not learned since that of the nearest trained one."""
        table = self.identifiers
        if len(table.neighbors) == 0:
            return rows
        return np.where(rows < table.num_trained, rows, table.neighbors[np.maximum(rows - table.num_trained, 0), 0])

    def candidate_rows(self, item_ids: Any, on_unknown: str = "raise") -> np.ndarray:
        """`(num_candidates,)` rows of items that are to be ranked.

        Args:
            item_ids: a list of item ids.
            on_unknown: `"raise"`, or `"skip"`: leave unknown and removed items out, with a warning.

        Raises:
            ValueError: no list, or an item that is unknown or removed.
        """
        if isinstance(item_ids, (str, Mapping)) or not isinstance(item_ids, Iterable):
            raise ValueError(f"`candidates` must be a list of item ids such as ['242', '302']; got {item_ids!r}.")
        rows = []
        for place, item_id in enumerate(item_ids):
            row = self.identifiers.rows().get(str(item_id), -1)
            if row >= 0 and self.identifiers.available[row]:
                rows.append(row)
                continue
            trouble = "was removed from the catalogue" if row >= 0 else "is not in the model's catalogue"
            if on_unknown != "skip":
                raise ValueError(
                    f"candidates[{place}]: item '{item_id}' {trouble}; leave it out, or pass on_unknown='skip'."
                )
            logger.warning("candidates[%d]: item '%s' %s and was skipped.", place, item_id, trouble)
        return np.array(rows, dtype=np.int64)


def table_fingerprint(table: IdentifierTable) -> str:
    """What tells a table from others: the number of its items, and a hash of their ids and identifiers."""
    return _fingerprint_of_first(table, table.num_items)


def check_fingerprint(table: IdentifierTable, expected: str | None, where: str) -> None:
    """Refuse a table that is neither the expected one nor that one with further items behind its own.

    Args:
        table: as read from a file; which of its items are available does not matter.
        expected: what `table_fingerprint` said when the tokenizer was saved; None: it did not say.
        where: the folder, for the message.

    Raises:
        InputError: it is another table, in which the codes that the model has learned stand for other items.
    """
    if expected is None:
        return
    num_items = int(expected.partition(":")[0])
    if table.num_items < num_items or _fingerprint_of_first(table, num_items) != expected:
        raise InputError(
            f"The identifiers in {where} ({table.num_items} items) are not those that the tokenizer beside them was "
            f"saved with ({num_items} items): the codes stand for other items. Copy tokenizer and identifiers from one "
            "model folder; to change the catalogue on purpose, call `attach_identifiers` and `save_pretrained`."
        )


def _fingerprint_of_first(table: IdentifierTable, num_items: int) -> str:
    item_ids = "\n".join(table.item_ids[:num_items])  # one string: a million of them take a second to hash one by one
    digest = fingerprint(
        item_ids,
        table.semantic_codes[:num_items],
        table.collaborative_codes[:num_items],
        table.num_shared_levels,
        table.codebook_size,
    )
    return f"{num_items}:{digest}"
