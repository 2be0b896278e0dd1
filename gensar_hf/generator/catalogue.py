"""The catalogue: identifiers of the items as token ids, and the trie of the available ones."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from gensar_hf.data import Behavior
from gensar_hf.data.tables import id_of
from gensar_hf.decoding import Trie
from gensar_hf.decoding.logits_process import ValueList
from gensar_hf.errors import InputError, shown
from gensar_hf.files import fingerprint
from gensar_hf.generator.history import History, as_list, warn_of_skipped
from gensar_hf.generator.text_matching import TextIndex
from gensar_hf.identifiers import IdentifierTable

logger = logging.getLogger(__name__)

BEHAVIOR_TOKENS = tuple(behavior.token for behavior in Behavior)


@dataclass(frozen=True)
class Catalogue:
    """An immutable snapshot of the items: a request that holds one is not affected when the catalogue is swapped.

    Attributes:
        identifiers: the table of all items, removed ones included.
        behavior_ids: token id of each behavior.
        item_token_ids: per kind of click, `(num_items, 1 + num_levels)` token ids of each item's behavior-aware
            identifier, int32.
        row_format: layout of the trie's sequences in the rows of `generate`, see `Trie`.
        texts: the items' texts, to be compared with queries; None: the model does not match texts.
    """

    identifiers: IdentifierTable
    behavior_ids: Mapping[Behavior, int]
    item_token_ids: Mapping[Behavior, np.ndarray]
    row_format: Mapping[str, Any] = field(default_factory=dict)
    texts: TextIndex | None = None

    @classmethod
    def of_table(
        cls,
        table: IdentifierTable,
        vocabulary: Mapping[str, int],
        behavior_tokens: bool = True,
        texts: TextIndex | None = None,
        **row_format: Any,
    ) -> "Catalogue":
        """Look up the tokens of an identifier table.

        Args:
            table: the catalogue's identifiers.
            vocabulary: token → id, of the tokenizer.
            behavior_tokens: False is an ablation (GenSAR, table 5): both kinds of identifiers begin with the same
                token, so that only the instruction tells them apart.
            texts: see the class.
            **row_format: see the class.

        Raises:
            InputError: the vocabulary lacks one of the table's tokens.
        """
        # Before a token is written down: a damaged file may name a codebook of billions.
        if (num_codes := table.num_code_tokens) > len(vocabulary):
            raise InputError(
                f"The identifier table has {num_codes:,} code tokens, the tokenizer {len(vocabulary):,} tokens in all; "
                "it belongs to another catalogue. Use the tokenizer and the identifiers.parquet of one model folder."
            )
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
        return cls(table, behavior_ids, item_token_ids, row_format, texts)

    def __getstate__(self) -> dict[str, Any]:
        """Without the trie, as in `GenSARTokenizer`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

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
        """Rows of a history's items; unknown items are ignored."""
        rows = self.identifiers.rows()
        return {rows[item_id] for event in history if (item_id := id_of(event.get("item_id"))) in rows}

    def trained_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows, each added item that is not marked as trained replaced by its nearest trained item."""
        table = self.identifiers
        if len(table.neighbors) == 0:
            return rows
        return np.where(rows < table.num_trained, rows, table.neighbors[np.maximum(rows - table.num_trained, 0), 0])

    def item_rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """`(num_items,)` rows of a data set's items, removed ones included.

        Raises:
            InputError: the table lacks some of them.
        """
        known = self.identifiers.rows()
        rows = np.array([known.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise InputError(
                f"{len(missing)} of the {len(item_ids)} items are not in the model's identifier table, first "
                f"'{item_ids[missing[0]]}'; add them with `pipe.add_items`, or drop them from the data."
            )
        return rows

    def filter(self, items: Any, on_unknown: str = "raise", name: str = "among") -> "ItemFilter":
        """The items that answers may hold.

        Args:
            items: item ids; or a mask of one truth value per item of the table, removed ones included; or a filter,
                which is renewed if it was made for another catalogue.
            on_unknown: `"raise"`, or `"skip"`: leave out unknown ids, with a warning.
            name: of the argument, in messages.

        Raises:
            ValueError: neither a list nor a mask of the right length, or an unknown item.
        """
        if isinstance(items, ItemFilter):
            return items.of(self)
        if isinstance(items, (str, Mapping)) or not isinstance(items, Iterable):
            raise ValueError(f"`{name}` must be a list of item ids, a boolean mask or a filter; got {shown(items)}.")
        items = items.tolist() if hasattr(items, "tolist") else list(items)
        if items and isinstance(items[0], bool | np.bool_):
            mask, num_items = np.asarray(items), self.identifiers.num_items
            if mask.dtype != bool or mask.shape != (num_items,):
                raise ValueError(
                    f"`{name}` must hold one truth value for each of the {num_items} items of the catalogue, removed "
                    f"ones included, in the order of `pipe.items`; got {len(items)} values."
                )
            return ItemFilter(self, np.flatnonzero(mask))
        known = self.identifiers.rows()
        rows = np.fromiter((known.get(str(item_id), -1) for item_id in items), dtype=np.int64, count=len(items))
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            trouble = (
                f"`{name}`: {len(unknown)} of {len(items)} items, first '{str(items[unknown[0]])[:60]}', are not in "
                "the catalogue"
            )
            if on_unknown != "skip":
                raise ValueError(f"{trouble}; leave them out, or pass on_unknown='skip'.")
            logger.warning("%s and were skipped.", trouble)
        return ItemFilter(self, np.unique(rows[rows >= 0]))

    def filters(
        self, items: Any, num_requests: int, on_unknown: str = "raise", name: str = "among"
    ) -> "list[ItemFilter | None]":
        """One filter per request, None for a request without.

        Args:
            items: as for `filter`, for all requests; or a list of one such filter, or None, per request; or None.
            num_requests: in the batch.
            on_unknown: as for `filter`.
            name: as for `filter`.

        Raises:
            ValueError: as for `filter`, or filters for another number of requests.
        """
        first = items[0] if isinstance(items, list | tuple) and len(items) else ""
        is_one = isinstance(first, str) or not (first is None or isinstance(first, ItemFilter | Iterable))
        if is_one:
            return [None if items is None else self.filter(items, on_unknown, name)] * num_requests
        if len(items) != num_requests:
            raise ValueError(
                f"`{name}` has {len(items)} filters for {num_requests} requests; pass one for all or one for each."
            )
        return [None if own is None else self.filter(own, on_unknown, name) for own in items]

    def candidate_rows(self, item_ids: Any, on_unknown: str = "raise") -> np.ndarray:
        """`(num_candidates,)` rows of candidates for ranking.

        Args:
            item_ids: a list of item ids.
            on_unknown: `"raise"`, or `"skip"`: drop unknown and removed items, with a warning.

        Raises:
            ValueError: not a list, or an item that is unknown or removed.
        """
        rows, skipped = [], []
        known, available = self.identifiers.rows(), self.identifiers.available
        for index, item_id in enumerate(as_list(item_ids, "`candidates`", "of item ids such as ['242', '302']")):
            row = known.get(id_of(item_id) or "", -1)
            if row >= 0 and available[row]:
                rows.append(row)
                continue
            trouble = "was removed from the catalogue" if row >= 0 else "is not in the model's catalogue"
            skipped.append(f"candidates[{index}]: item {shown(item_id)} {trouble}")
            if on_unknown != "skip":
                raise ValueError(f"{skipped[0]}; leave it out, or pass on_unknown='skip'.")
        warn_of_skipped(skipped)
        return np.array(rows, dtype=np.int64)


class ItemFilter:
    """The items that answers may hold, prepared once for many requests: what `pipe.filter` returns.

    A filter stands for item ids, so it survives a change of the catalogue: it is prepared again at the first request
    after it. Added items are not in it, removed ones are no longer answers, and restored ones are again.

    Args:
        catalogue: that the rows belong to.
        rows: `(num_allowed,)` of its identifier table, ascending, removed items included.
    """

    def __init__(self, catalogue: Catalogue, rows: np.ndarray) -> None:
        self.catalogue, self.rows = catalogue, rows
        self._renewed: ItemFilter | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, catalogue: Catalogue) -> "ItemFilter":
        """The same items as rows of another catalogue.

        Raises:
            ValueError: the catalogue lacks one of them.
        """
        if catalogue is self.catalogue:
            return self
        renewed = self._renewed
        if renewed is None or renewed.catalogue is not catalogue:
            item_ids = self.catalogue.identifiers.item_ids
            renewed = self._renewed = catalogue.filter([item_ids[row] for row in self.rows.tolist()])
        return renewed

    @cached_property
    def is_open(self) -> np.ndarray:
        """`(num_items,)` bool: the items that may be answers, which removed ones may not."""
        is_open = np.zeros(self.catalogue.identifiers.num_items, dtype=bool)
        is_open[self.rows] = self.catalogue.identifiers.available[self.rows]
        return is_open

    @cached_property
    def values(self) -> ValueList:
        """What a beam search may generate: the trained items, and those that the added ones borrow from."""
        table = self.catalogue.identifiers
        rows = np.flatnonzero(self.is_open)
        borrowed = table.neighbors[rows[rows >= table.num_trained] - table.num_trained]
        rows = rows[rows < table.num_trained + table.num_marked]
        return ValueList(self.catalogue.trie, np.concatenate([rows, borrowed.ravel()]))


def table_fingerprint(table: IdentifierTable, num_items: int | None = None) -> str:
    """Number of items, and a hash of the ids and identifiers of the first `num_items` items (default: of all)."""
    num_items = table.num_items if num_items is None else num_items
    item_ids = "\n".join(table.item_ids[:num_items])  # one string: a million of them take a second to hash one by one
    codes = (table.semantic_codes[:num_items], table.collaborative_codes[:num_items])
    return f"{num_items}:{fingerprint(item_ids, *codes, table.num_shared_levels, table.codebook_size)}"


def check_fingerprint(table: IdentifierTable, expected: str | None, where: str) -> None:
    """Check that a table is the expected one, possibly with items appended.

    Args:
        table: as read from a file; the availability of its items does not matter.
        expected: `table_fingerprint` when the tokenizer was saved; None: not recorded.
        where: the folder, for the message.

    Raises:
        InputError: another table, in which the model's codes stand for other items.
    """
    if expected is None:
        return
    num_items = int(expected.partition(":")[0])
    if table.num_items < num_items or table_fingerprint(table, num_items) != expected:
        raise InputError(
            f"The identifiers in {where} ({table.num_items} items) are not those that the tokenizer in the folder was "
            f"saved with ({num_items} items): the codes stand for other items. Copy tokenizer and identifiers from one "
            "model folder; to change the catalogue on purpose, call `attach_identifiers` and `save_pretrained`."
        )
