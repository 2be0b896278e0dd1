"""The identifier table: each item's semantic and collaborative identifier, saved as `identifiers.parquet`."""

import copy
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gensar_hf.errors import InputError, types_checked
from gensar_hf.files import atomic_path, damage_reported, fingerprint
from gensar_hf.identifiers.assignment import JointCodes, UniqueIdentifiers, assign_unique_identifiers, collision_rate

if TYPE_CHECKING:  # reading a table needs neither torch nor transformers
    from gensar_hf.identifiers.modeling_joint_rqvae import Embeddings, JointRQVAE

TABLE_FILE = "identifiers.parquet"
NUM_NEIGHBORS = 5
_KINDS = ("semantic", "collaborative")
_FORMAT_VERSION = 1
_METADATA_KEY = b"gensar_hf.identifiers"
_SELF = "The identifier table"
_COLUMNS = ("semantic_codes", "collaborative_codes", "available", "neighbors", "lenders")
_LEAST_BYTES, _BYTES_PER_BYTE = 64 * 1024**2, 100  # all items differ, so that a file is not much smaller than its table


@dataclass
class IdentifierTable:
    """The two identifiers of every item of the catalogue.

    A table never changes: `add_items`, `remove_items`, `restore_items` and `mark_trained` return new ones.

    Attributes:
        item_ids: one per item, distinct; an item's index is its row.
        semantic_codes: `(num_items, num_levels)` int64, shared levels first; all rows differ.
        collaborative_codes: the same; equal to `semantic_codes` on the shared levels.
        num_shared_levels: how many of the levels are shared.
        codebook_size: codes per level.
        titles: one per item, or None.
        texts: the text of each item, or None.
        build_report: statistics of `build_identifier_table` and `add_items`, merged into `report()`.
        available: `(num_items,)` bool; None means all true. False marks a removed item: it is never generated, but it
            keeps its row and its identifiers, because it may occur in histories.
        neighbors: `(num_added, k)` int64, rows of trained items. The last `num_added` items were added after training.
            The generator gives their identifiers almost no probability, so each is scored by its k trained items with
            the nearest semantic identifiers. An item that has been trained since (`mark_trained`) is its own first
            neighbor; such items come before the other added ones.

    Raises:
        InputError: an item id or an identifier occurs twice, a code is out of range, or sizes do not agree; the message
            names the row (counted from 1).
    """

    item_ids: list[str]
    semantic_codes: np.ndarray
    collaborative_codes: np.ndarray
    num_shared_levels: int
    codebook_size: int
    titles: list[str] | None = None
    texts: list[str] | None = None
    build_report: dict = field(default_factory=dict)
    available: np.ndarray = None  # type: ignore[assignment]  # always an array after __post_init__
    neighbors: np.ndarray = None  # type: ignore[assignment]  # the same

    def __post_init__(self) -> None:
        self.semantic_codes = np.asarray(self.semantic_codes, dtype=np.int64)
        self.collaborative_codes = np.asarray(self.collaborative_codes, dtype=np.int64)
        self.available = np.ones(self.num_items, bool) if self.available is None else np.asarray(self.available)
        no_neighbors = np.zeros((0, 0), dtype=np.int64)
        self.neighbors = no_neighbors if self.neighbors is None else np.asarray(self.neighbors, dtype=np.int64)
        self._rows: dict[str, int] | None = None
        self._check_sizes()
        wrong = next((row for row, each in enumerate(self.item_ids) if not isinstance(each, str)), None)
        if wrong is not None:
            raise InputError(f"{_SELF}, row {wrong + 1}, column item_id: {self.item_ids[wrong]!r} is not a string.")
        if len(set(self.item_ids)) < self.num_items:
            _refuse_repeat("item_id", self.item_ids, "every item may occur only once")
        for column, codes in self._codes().items():
            if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
                row, level = np.argwhere((codes < 0) | (codes >= self.codebook_size))[0]
                raise InputError(
                    f"{_SELF}, row {row + 1}, column {column}: code {codes[row, level]} on level {level + 1} is "
                    f"not between 0 and {self.codebook_size - 1}."
                )
            if collision_rate(codes):
                _refuse_repeat(column, list(map(tuple, codes.tolist())), "identifiers must be unique")
        shared = slice(self.num_shared_levels)
        differs = (self.semantic_codes[:, shared] != self.collaborative_codes[:, shared]).any(axis=1)
        if differs.any():
            raise InputError(
                f"{_SELF}, row {int(differs.argmax()) + 1}: the semantic and the collaborative codes differ on the "
                f"first {self.num_shared_levels} levels, which are shared."
            )

    def _check_sizes(self) -> None:
        shape = (self.num_items, self.semantic_codes.shape[-1])
        if self.num_items == 0 or self.semantic_codes.shape != shape or self.collaborative_codes.shape != shape:
            raise InputError(
                f"{_SELF} must hold one row of codes of each kind per item, for at least one item; got "
                f"{self.num_items} items, semantic codes of shape {self.semantic_codes.shape} and collaborative codes "
                f"of shape {self.collaborative_codes.shape}."
            )
        sizes = {"codebook_size": (1, None), "num_shared_levels": (0, self.num_levels)}
        for name, (least, most) in sizes.items():
            value = getattr(self, name)
            if type(value) is bool or not isinstance(value, int | np.integer) or not least <= value <= (most or value):
                raise InputError(f"{_SELF}: `{name}` must be a whole number from {least} on; got {value!r}.")
        for name, values in (("titles", self.titles), ("texts", self.texts)):
            if values is not None and len(values) != self.num_items:
                raise InputError(f"{_SELF} has {self.num_items} items but {len(values)} {name}; give one per item.")
        if self.available.dtype != bool or self.available.shape != (self.num_items,):
            raise InputError(
                f"{_SELF} has {self.num_items} items, so `available` must hold as many truth values; got an array of "
                f"shape {self.available.shape} and dtype {self.available.dtype}."
            )
        if not self.available.any():
            raise InputError(f"{_SELF} has no available item; a catalogue needs at least one, so restore some.")
        is_valid = self.neighbors.ndim == 2 and len(self.neighbors) < self.num_items
        if is_valid:
            is_trained = (self.neighbors >= 0) & (self.neighbors < self.num_trained)
            is_own = self.neighbors[:, :1] == np.arange(self.num_trained, self.num_items)[:, None]
            is_trained[:, :1] |= is_own
            is_valid = bool(is_trained.all() and (np.diff(is_own.astype(int), axis=0) <= 0).all())  # marked come first
        if not is_valid:
            raise InputError(
                f"{_SELF}: `neighbors` must name, for each of the last items, rows of items that come before them all, "
                f"or first the item's own row if it was trained later; got an array of shape {self.neighbors.shape} "
                f"for {self.num_items} items."
            )

    def _codes(self) -> dict[str, np.ndarray]:
        return {"semantic_codes": self.semantic_codes, "collaborative_codes": self.collaborative_codes}

    @property
    def num_items(self) -> int:
        """Items of the catalogue, removed ones included."""
        return len(self.item_ids)

    @property
    def num_available(self) -> int:
        """Items that may be generated."""
        return int(self.available.sum())

    @property
    def num_trained(self) -> int:
        """Items that the generator was first trained on; the added ones come after them."""
        return self.num_items - len(self.neighbors)

    @property
    def num_marked(self) -> int:
        """Added items that have been trained since (`mark_trained`); they come first among the added ones."""
        return int((self.neighbors[:, :1] >= self.num_trained).sum())

    @property
    def num_levels(self) -> int:
        """Codes per identifier."""
        return self.semantic_codes.shape[1]

    def index_of(self, item_id: str) -> int:
        """Row of an item, available or removed; KeyError if it is not in the catalogue."""
        return self.rows()[item_id]

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows, which are built again when they are needed."""
        return {**self.__dict__, "_rows": None}

    def rows(self) -> dict[str, int]:
        """Row of every item, by its id; read only."""
        if self._rows is None:  # built at the first call: for a million items it takes longer than reading the file
            self._rows = dict(zip(self.item_ids, range(self.num_items), strict=True))
        return self._rows

    def items_frame(self) -> pd.DataFrame:
        """`item_id`, `title`, `text` ("" where the table has none) and `available` of every item, in row order."""
        empty = [""] * self.num_items
        columns = {"item_id": self.item_ids, "title": self.titles or empty, "text": self.texts or empty}
        return pd.DataFrame({**columns, "available": self.available.copy()})

    @property
    def num_code_tokens(self) -> int:
        """Length of `code_tokens()`."""
        return (2 * self.num_levels - self.num_shared_levels) * self.codebook_size

    def code_tokens(self) -> list[str]:
        """All code tokens: `<M1_0>` (shared), `<S1_0>` (semantic), `<R1_0>` (collaborative) and so on."""
        num_specific = self.num_levels - self.num_shared_levels
        letters = [("M", self.num_shared_levels), ("S", num_specific), ("R", num_specific)]
        return [
            f"<{letter}{level}_{code}>"
            for letter, num_levels in letters
            for level in range(1, num_levels + 1)
            for code in range(self.codebook_size)
        ]

    def semantic_tokens(self, index: int) -> list[str]:
        """Semantic identifier of the item in row `index`, e.g. `["<M1_3>", "<M2_7>", "<S1_0>", "<S2_5>"]`."""
        return self._tokens(self.semantic_codes[index], "S")

    def collaborative_tokens(self, index: int) -> list[str]:
        """Collaborative identifier of the item in row `index`, e.g. `["<M1_3>", "<M2_7>", "<R1_9>", "<R2_2>"]`."""
        return self._tokens(self.collaborative_codes[index], "R")

    def _tokens(self, codes: np.ndarray, letter: str) -> list[str]:
        shared = [f"<M{level}_{code}>" for level, code in enumerate(codes[: self.num_shared_levels], start=1)]
        specific = [f"<{letter}{level}_{code}>" for level, code in enumerate(codes[self.num_shared_levels :], start=1)]
        return shared + specific

    def add_items(
        self,
        embeddings: "tuple[Embeddings, Embeddings]",
        item_ids: Sequence[str],
        model: "JointRQVAE",
        titles: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> "IdentifierTable":
        """A new table with further items, quantized with the model that made the present identifiers.

        All identifiers of this table, those of removed items included, stay the same; the new items get free ones.

        The embeddings are semantic `(num_new, semantic_dim)` and collaborative `(num_new, collaborative_dim)`. Titles
        and texts are one per new item; default: empty strings, if this table has any. The new items are the last rows,
        and `build_report["added"]` has one more entry.

        Raises:
            InputError: an id that is not a string, occurs twice or is already in the table; unusable embeddings or not
                one per id; a model that did not make the table; more items than identifiers; titles or texts for a
                table that has none.
        """
        item_ids, rows = _checked_ids(item_ids), self.rows()
        for known in (item_id for item_id in item_ids if item_id in rows):
            remedy = f", as a removed one; bring it back, identifiers and all, with `restore_items([{known!r}])`"
            remedy = "; leave it out of the new items" if self.available[rows[known]] else remedy
            raise InputError(f"The item {known!r} is in the identifier table already{remedy}.")
        all_titles = _extended("titles", self.titles, titles, len(item_ids))
        all_texts = _extended("texts", self.texts, texts, len(item_ids))
        for name in ("codebook_size", "num_shared_levels", "num_levels"):
            if getattr(self, name) != getattr(model.config, name):
                raise InputError(
                    f"The model has `{name}` {getattr(model.config, name)}, but the identifiers of the table were made "
                    f"with {getattr(self, name)}; add items with the joint RQ-VAE that was saved when the table was "
                    "built."
                )
        codes = model.encode(*embeddings)
        if self.build_report.get("codebooks_fingerprint") not in (None, _codebooks_fingerprint(codes)):
            raise InputError(
                "The model's codebooks are not those that the identifiers of the table were made with, so its codes "
                "would mean something else; add items with the joint RQ-VAE that was saved when the table was built."
            )
        _require_one_per_item(codes.num_items, item_ids, titles, texts)
        unique = assign_unique_identifiers(codes, taken=(self.semantic_codes, self.collaborative_codes))
        report = copy.deepcopy(self.build_report)
        record = {"num_items": codes.num_items, **_quantization_report(model, embeddings, codes, unique)}
        report["added"] = [*report.get("added", []), record]
        semantic_codes = np.concatenate([self.semantic_codes, unique.semantic_codes])
        k = self.neighbors.shape[1] if len(self.neighbors) else min(NUM_NEIGHBORS, self.num_trained)
        nearest = _nearest_trained(model, semantic_codes, self.num_items, self.num_trained, k)
        return replace(
            self,
            item_ids=[*self.item_ids, *item_ids],
            semantic_codes=semantic_codes,
            collaborative_codes=np.concatenate([self.collaborative_codes, unique.collaborative_codes]),
            titles=all_titles,
            texts=all_texts,
            build_report=report,
            available=np.concatenate([self.available, np.ones(codes.num_items, dtype=bool)]),
            neighbors=np.concatenate([self.neighbors.reshape(-1, k), nearest]),
        )

    @types_checked
    def remove_items(self, item_ids: Sequence[str]) -> "IdentifierTable":
        """A new table without these items: never generated, still readable in histories, their identifiers taken.

        Raises:
            InputError: an id that is unknown, occurs twice or is removed already, or no item would be left.
        """
        return self._with_availability(item_ids, False)

    @types_checked
    def restore_items(self, item_ids: Sequence[str]) -> "IdentifierTable":
        """A new table in which these removed items are available again, under the identifiers that they had.

        Raises:
            InputError: an id that is unknown, occurs twice or is not removed.
        """
        return self._with_availability(item_ids, True)

    def _with_availability(self, item_ids: Sequence[str], value: bool) -> "IdentifierTable":
        verb, state = ("restored", "it was not removed") if value else ("removed", "it is removed already")
        item_ids, table = _checked_ids(item_ids), copy.copy(self)  # the other fields are the same objects
        table.available = self.available.copy()
        for item_id in item_ids:
            row = self.rows().get(item_id)
            if row is None:
                raise InputError(f"The item {item_id!r} cannot be {verb}, because it is not in the identifier table.")
            if self.available[row] == value:
                raise InputError(f"The item {item_id!r} cannot be {verb}, because {state}.")
            table.available[row] = value
        if not table.available.any():
            raise InputError(
                f"Removing these {len(item_ids)} items would leave no item available; a catalogue needs at least one, "
                "so leave one out, or add other items first."
            )
        return table

    def mark_trained(self, item_ids: Sequence[str]) -> "IdentifierTable":
        """A new table in which these added items count as trained: each becomes its own first neighbor.

        A few clicks teach less than the neighbors provide, so the item keeps all but the farthest of them. The marked
        items move, in their order, in front of the other added ones; rows of trained items stay the same.

        Raises:
            InputError: an item that is not among the added ones, or is marked already.
        """
        num_known = self.num_trained + self.num_marked
        is_added = {item_id: row for row, item_id in enumerate(self.item_ids) if row >= num_known}
        others = [item_id for item_id in item_ids if item_id not in is_added]
        if others:
            raise InputError(
                f"The item '{others[0]}' is not an added item that still has to be trained; mark only items that were "
                "added after training, once each."
            )
        chosen = np.isin(np.arange(self.num_items), [is_added[item_id] for item_id in item_ids])
        order = np.argsort((np.arange(self.num_items) >= num_known) & ~chosen, kind="stable")
        rows = order.tolist()
        neighbors = self.neighbors[order[self.num_trained :] - self.num_trained]
        marked = slice(self.num_marked, self.num_marked + int(chosen.sum()))
        own_rows = np.arange(num_known, num_known + int(chosen.sum()))[:, None]
        neighbors[marked] = np.concatenate([own_rows, neighbors[marked, :-1]], axis=1)
        return replace(
            self,
            item_ids=[self.item_ids[row] for row in rows],
            semantic_codes=self.semantic_codes[order],
            collaborative_codes=self.collaborative_codes[order],
            titles=None if self.titles is None else [self.titles[row] for row in rows],
            texts=None if self.texts is None else [self.texts[row] for row in rows],
            available=self.available[order],
            neighbors=neighbors,
        )

    def report(self) -> dict:
        """Counts, per kind the collision rate and the use and perplexity of every level, and `build_report`.

        Removed items count in all but `num_available`, as their identifiers are taken.
        """
        names = ("num_items", "num_available", "num_levels", "num_shared_levels", "codebook_size")
        report: dict = {name: getattr(self, name) for name in names}
        for kind, codes in zip(_KINDS, self._codes().values(), strict=True):
            report[kind] = {"collision_rate_after": collision_rate(codes), **level_usage(codes, self.codebook_size)}
        for name, noted in self.build_report.items():
            report[name] = {**report[name], **noted} if name in _KINDS else noted
        return report

    @types_checked
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table atomically to a `.parquet` file, or to `identifiers.parquet` in a folder.

        Columns: `item_id`, `semantic_codes`, `collaborative_codes` (lists of int32), `available`; `title` and `text` if
        the table has them; `neighbors` (null for trained items) if items were added. The numbers and the report are in
        the file's metadata.
        """
        target = _table_path(path)
        columns: dict[str, Any] = {"available": pa.array(self.available)}
        for name, codes in self._codes().items():
            lists = pa.FixedSizeListArray.from_arrays(codes.astype(np.int32).ravel(), codes.shape[1])
            columns[name] = lists.cast(pa.list_(pa.int32()))
        for name, values in (("item_id", self.item_ids), ("title", self.titles), ("text", self.texts)):
            if values is not None:
                columns[name] = pa.array(values, pa.string())
        if len(self.neighbors):
            rows = [None] * self.num_trained + self.neighbors.tolist()
            columns["neighbors"] = pa.array(rows, pa.list_(pa.int32()))
        metadata: dict[str, Any] = {"format_version": _FORMAT_VERSION, "build_report": self.build_report}
        metadata |= {"num_shared_levels": self.num_shared_levels, "codebook_size": self.codebook_size}
        table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
        encoded = [f"{name}.list.element" for name in self._codes()]  # ids and texts hardly repeat
        with atomic_path(target) as aside:
            pq.write_table(table, aside, use_dictionary=encoded)
        return target

    @classmethod
    @types_checked
    def load(cls, path: str | os.PathLike[str]) -> "IdentifierTable":
        """Read what `save` wrote, from the file or its folder; files of version 0.1 load as well.

        Raises:
            InputError: the file is missing, damaged or not an identifier table, an item id or an identifier occurs
                twice, or a code is out of range; the message names the file and the row (counted from 1).
        """
        source = _table_path(path)
        if not source.is_file():
            raise InputError(
                f"{source} does not exist; it holds the identifiers that the model's tokens stand for, so copy it from "
                "the folder in which the model was saved, or run the identifier stage again."
            )
        try:
            with damage_reported(source, "delete it and run the identifier stage again", "is damaged"):
                return cls._of_file(source)
        except InputError as error:
            raise InputError(str(error).replace(_SELF, str(source), 1)) from None

    @classmethod
    def _of_file(cls, source: Path) -> "IdentifierTable":
        table, metadata = _read(source)
        names = {"item_id", "title", "text"}.intersection(table.column_names)
        columns = {name: table[name].to_numpy().tolist() for name in names}  # several times faster than `to_pylist`
        return cls(
            item_ids=columns["item_id"],
            semantic_codes=_read_codes(table, "semantic_codes"),
            collaborative_codes=_read_codes(table, "collaborative_codes"),
            num_shared_levels=metadata["num_shared_levels"],
            codebook_size=metadata["codebook_size"],
            titles=columns.get("title"),
            texts=columns.get("text"),
            build_report=metadata.get("build_report", {}),
            available=_read_available(table),
            neighbors=_read_neighbors(table),
        )


def build_identifier_table(
    model: "JointRQVAE",
    semantic: "Embeddings",
    collaborative: "Embeddings",
    item_ids: Sequence[str],
    titles: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
) -> IdentifierTable:
    """Quantize the catalogue with a trained model, make the identifiers unique, and report the cost.

    The tables are `(num_items, semantic_dim)` and `(num_items, collaborative_dim)`, in the order of `item_ids`. Titles
    and texts, one per item, are saved with the identifiers.

    Raises:
        InputError: unusable embeddings, more items than identifiers, or a repeated item id.
    """
    codes = model.encode(semantic, collaborative)
    _require_one_per_item(codes.num_items, item_ids, titles, texts)
    unique = assign_unique_identifiers(codes)
    report = _quantization_report(model, (semantic, collaborative), codes, unique)
    return IdentifierTable(
        item_ids=list(item_ids),
        semantic_codes=unique.semantic_codes,
        collaborative_codes=unique.collaborative_codes,
        num_shared_levels=codes.num_shared_levels,
        codebook_size=codes.codebook_size,
        titles=None if titles is None else list(titles),
        texts=None if texts is None else list(texts),
        build_report={**report, "codebooks_fingerprint": _codebooks_fingerprint(codes)},
    )


def _nearest_trained(
    model: "JointRQVAE", semantic_codes: np.ndarray, num_old: int, num_trained: int, k: int
) -> np.ndarray:
    """For each item after the first `num_old` the k trained ones with the nearest ẑ_s (GenSAR, sec. 3.1)."""
    from sklearn.neighbors import NearestNeighbors  # here, because it takes a second to import

    codebooks = [*model.shared_quantizer.codebooks, *model.semantic_quantizer.codebooks]
    books = [book[:, : model.config.latent_dim].detach().float().cpu().numpy() for book in codebooks]
    latents = np.sum([book[codes] for book, codes in zip(books, semantic_codes.T, strict=True)], axis=0)
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(latents[:num_trained])
    return index.kneighbors(latents[num_old:], return_distance=False)


def level_usage(codes: np.ndarray, codebook_size: int) -> dict[str, list[float]]:
    """How evenly the codes of each level of `(num_items, num_levels)` codes are used; one number per level each.

    `codebook_use`: the share of codes with at least one item. `perplexity`: exp of the entropy of the codes' shares
    (`codebook_size` if all are used equally, 1 if only one is used).
    """
    counts = [np.bincount(level_codes, minlength=codebook_size) for level_codes in codes.T]
    use = [float((level > 0).mean()) for level in counts]
    shares = [level[level > 0] / len(codes) for level in counts]
    perplexity = [float(np.exp(-(share * np.log(share)).sum())) for share in shares]
    return {"codebook_use": use, "perplexity": perplexity}


def _quantization_report(
    model: "JointRQVAE", embeddings: "tuple[Embeddings, Embeddings]", codes: JointCodes, unique: UniqueIdentifiers
) -> dict:
    """The assignment's report, with usage before it and reconstruction errors before and after it."""
    report = copy.deepcopy(unique.report)
    raw = (codes.semantic_codes, codes.collaborative_codes)
    for kind, raw_codes in zip(_KINDS, raw, strict=True):
        usage = level_usage(raw_codes, codes.codebook_size)
        report[kind] |= {f"{name}_before": values for name, values in usage.items()}
    for moment, both_codes in (("before", raw), ("after", (unique.semantic_codes, unique.collaborative_codes))):
        for kind, error in model.reconstruction_error(*embeddings, codes.quantized(*both_codes)).items():
            report[kind][f"reconstruction_error_{moment}"] = error
    return report


def _codebooks_fingerprint(codes: JointCodes) -> str:
    return fingerprint(codes.shared_codebooks, codes.semantic_codebooks, codes.collaborative_codebooks)


def _require_one_per_item(
    num_items: int, item_ids: Sequence[str], titles: Sequence[str] | None, texts: Sequence[str] | None
) -> None:
    for name, values in {"item ids": item_ids, "titles": titles, "texts": texts}.items():
        if values is not None and len(values) != num_items:
            raise InputError(f"There are {num_items} embeddings but {len(values)} {name}; give one of each per item.")


def _extended(name: str, present: list[str] | None, new: Sequence[str] | None, num_new: int) -> list[str] | None:
    """A table's titles or texts, followed by those of new items."""
    if present is None and new is not None:
        raise InputError(
            f"The identifier table has no {name}, so the {num_new} new items can have none; leave `{name}` out."
        )
    return None if present is None else [*present, *([""] * num_new if new is None else new)]


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


def _refuse_repeat(column: str, values: Sequence, rule: str) -> None:
    first_rows: dict = {}
    for row, value in enumerate(values, start=1):
        first = first_rows.setdefault(value, row)
        if first != row:
            raise InputError(f"{_SELF}, row {row}, column {column}: {value!r} is that of row {first}; {rule}.")


def _table_path(path: str | os.PathLike[str]) -> Path:
    return Path(path) if Path(path).suffix == ".parquet" else Path(path) / TABLE_FILE


def _read(source: Path) -> tuple[pa.Table, dict]:
    texts = sorted({"item_id", "title", "text"}.intersection(pq.read_schema(source).names))
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        schema = file.schema_arrow
        missing = {"item_id", "semantic_codes", "collaborative_codes"} - set(schema.names)
        raw = (schema.metadata or {}).get(_METADATA_KEY)
        if missing or raw is None:
            what = f"the column {min(missing)}" if missing else "the metadata that `IdentifierTable.save` writes"
            raise InputError(f"{source} is not an identifier table: {what} is missing.")
        chunks = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        num_bytes = sum(8 * group.column(place).num_values for group in chunks for place in range(group.num_columns))
        _refuse_bloated(source, num_bytes)
        columns = [name for name in (*texts, *_COLUMNS) if name in schema.names]
        table = file.read(columns=columns)
    # Texts that repeat are small in the file, and read once each as long as they are a dictionary.
    for name in texts:
        for chunk in table[name].chunks:
            if isinstance(chunk, pa.DictionaryArray):
                lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
                num_bytes += pc.sum(lengths, min_count=0).as_py()
    _refuse_bloated(source, num_bytes)
    for name in texts:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
        if name != "item_id":
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise InputError(f"{source}, column {name}: it holds {column.type} instead of text.")
            column = column.fill_null("")
        table = table.set_column(table.column_names.index(name), name, column)
    metadata = json.loads(raw)
    if not isinstance(metadata, dict):
        raise InputError(f"{source} is not an identifier table: its metadata is no JSON object.")
    if metadata.get("format_version") != _FORMAT_VERSION:
        raise InputError(
            f"{source} has format version {metadata.get('format_version')}, but this version of gensar-hf reads "
            f"{_FORMAT_VERSION}; run the identifier stage again."
        )
    return table, metadata


def _refuse_bloated(source: Path, num_bytes: int) -> None:
    """Refuse a file whose content is many times as large as a table of so many bytes could be."""
    if num_bytes > (limit := max(_LEAST_BYTES, _BYTES_PER_BYTE * source.stat().st_size)):
        raise InputError(
            f"{source} holds {num_bytes:,} bytes of values, more than an identifier table of its size can "
            f"({limit:,}); copy the file again, or run the identifier stage again."
        )


def _read_codes(table: pa.Table, column: str) -> np.ndarray:
    """`(num_items, num_levels)` int64 of a column of lists of one length."""
    lists = table[column].combine_chunks()
    if pa.types.is_list(lists.type) and pa.types.is_integer(lists.type.value_type) and lists.null_count == 0:
        codes, offsets = lists.flatten(), lists.offsets.to_numpy()
        if len(lists) and codes.null_count == 0 and len(np.unique(np.diff(offsets))) == 1:
            return codes.to_numpy().astype(np.int64).reshape(len(lists), -1)
    rows = lists.to_pylist()
    for row, codes in enumerate(rows, start=1):
        is_codes = isinstance(codes, list) and all(isinstance(code, int) for code in codes)
        if not is_codes or len(codes) != len(rows[0]):
            raise InputError(
                f"{_SELF}, row {row}, column {column}: {codes!r} is not a list of {len(rows[0] or [])} codes."
            )
    return np.array(rows, dtype=np.int64).reshape(len(rows), -1 if rows else 0)


def _read_neighbors(table: pa.Table) -> np.ndarray:
    """`(num_added, k)` int64 of the rows after the last null."""
    column = "lenders" if "lenders" in table.column_names else "neighbors"  # files of version 0.1 have lenders
    if column not in table.column_names:
        return np.zeros((0, 0), dtype=np.int64)
    has_neighbors = table[column].is_valid().to_numpy()
    num_added = int(has_neighbors.sum())
    if not has_neighbors[len(has_neighbors) - num_added :].all():
        raise InputError(
            f"{_SELF}, row {int(has_neighbors.argmax()) + 1}, column {column}: only the last rows, of added items, may "
            "have neighbors."
        )
    return _read_codes(table.slice(len(table) - num_added), column)


def _read_available(table: pa.Table) -> np.ndarray:
    values = table["available"].to_pylist() if "available" in table.column_names else [True] * len(table)
    row = next((row for row, value in enumerate(values, start=1) if not isinstance(value, bool)), None)
    if row is not None:
        raise InputError(f"{_SELF}, row {row}, column available: {values[row - 1]!r} is not true or false.")
    return np.array(values, dtype=bool)
