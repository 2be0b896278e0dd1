"""Item id ↔ its two identifiers: the table that goes with the model, as `identifiers.parquet`."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gensar_hf.errors import InputError
from gensar_hf.files import fingerprint
from gensar_hf.identifiers.assignment import UniqueIdentifiers, assign_unique_identifiers, collision_rate
from gensar_hf.identifiers.joint_codes import JointCodes
from gensar_hf.identifiers.nearest_identifiers import nearest_identifiers
from gensar_hf.identifiers.table_checks import (
    check_fields,
    check_model,
    extended_texts,
    new_item_ids,
    require_one_per_item,
    rows_to_change,
)
from gensar_hf.identifiers.table_file import read_fields, table_path, write_fields

if TYPE_CHECKING:  # torch and transformers are not needed to read a table
    from gensar_hf.identifiers.embedding_checks import Embeddings
    from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

_KINDS = ("semantic", "collaborative")
NUM_NEIGHBORS = 5


@dataclass
class IdentifierTable:
    """The two identifiers of every item of the catalogue.

    A table is not changed once it is made: `add_items`, `remove_items` and `restore_items` return new ones, so that one
    table can answer requests while the next is prepared.

    Attributes:
        item_ids: one per item, distinct; an item's index is its row.
        semantic_codes: `(num_items, num_levels)` int64, shared levels first; all rows differ.
        collaborative_codes: the same; equal to `semantic_codes` on the shared levels.
        num_shared_levels: how many of the levels are shared.
        codebook_size: codes per level.
        titles: one per item, or None.
        texts: the text of each item, or None.
        build_report: how the identifiers came about (`build_identifier_table`), merged into `report()`.
        available: `(num_items,)` bool, all true if None is given. False is a removed item: it is never generated, but
            it keeps its row and its identifiers, because it may stand in histories.
        neighbors: `(num_added, k)` int64. The last `num_added` items were added after training. A generator has learned
            which combinations of codes exist, and gives the others next to no probability; so an added item borrows
            those of the k trained items with the nearest semantic identifiers, whose rows these are. One that has been
            learned since (`mark_trained`) is its own first lender; such items stand before the other added ones.

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
    available: np.ndarray = None  # type: ignore[assignment]  # always an array once the table is made
    neighbors: np.ndarray = None  # type: ignore[assignment]  # the same

    def __post_init__(self) -> None:
        self.semantic_codes = np.asarray(self.semantic_codes, dtype=np.int64)
        self.collaborative_codes = np.asarray(self.collaborative_codes, dtype=np.int64)
        self.available = np.ones(self.num_items, bool) if self.available is None else np.asarray(self.available)
        no_neighbors = np.zeros((0, 0), dtype=np.int64)
        self.neighbors = no_neighbors if self.neighbors is None else np.asarray(self.neighbors, dtype=np.int64)
        self._rows: dict[str, int] | None = None
        check_fields("The identifier table", self)

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
        """Items that were there when the generator was trained; the added ones stand behind them."""
        return self.num_items - len(self.neighbors)

    @property
    def num_marked(self) -> int:
        """Added items that have been learned since, and lend to themselves; they stand behind the trained ones."""
        return int((self.neighbors[:, :1] >= self.num_trained).sum())

    @property
    def num_levels(self) -> int:
        """Codes per identifier."""
        return self.semantic_codes.shape[1]

    def index_of(self, item_id: str) -> int:
        """Row of an item, available or removed.

        Raises:
            KeyError: the item is not in the catalogue.
        """
        return self.rows()[item_id]

    def rows(self) -> dict[str, int]:
        """Row of every item, by its id; read only."""
        if self._rows is None:  # made when first asked for: for a million items it takes longer than reading the file
            self._rows = dict(zip(self.item_ids, range(self.num_items), strict=True))
        return self._rows

    def code_tokens(self) -> list[str]:
        """All code tokens that may occur, `<M1_0>` (shared), `<S1_0>` (semantic), `<R1_0>` (collaborative) and so on.

        Levels are numbered from 1 within their letter, as in the paper; codes from 0.
        """
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
        num_neighbors: int = NUM_NEIGHBORS,
    ) -> "IdentifierTable":
        """A new table with further items, quantized with the model that the identifiers were made with.

        All identifiers of this table, those of removed items included, stay what they are; the new items get free ones
        at the least distortion, by the rules of `assign_unique_identifiers`.

        Args:
            embeddings: semantic `(num_new, semantic_dim)` and collaborative `(num_new, collaborative_dim)`.
            item_ids: one per new item, none of them in this table.
            model: the joint RQ-VAE that made this table, unchanged.
            titles: one per new item; if left out although this table has titles, the texts, else empty strings.
            texts: one per new item; if left out although this table has texts, the titles, else empty strings.
            num_neighbors: see `neighbors`; fewer where there are fewer trained items; 0: the new items rely on their
                own identifiers.

        Returns:
            the rows of this table, then the new items, available; `build_report["added"]` has one more entry, with
            what `build_identifier_table` notes about a catalogue for the new items alone: a collision is one with any
            item, and distortions and errors are means over the new items.

        Raises:
            InputError: an id that is no string, given twice or already in the table; unusable embeddings or not one per
                id; a model that is not the table's; more items than identifiers; titles or texts for a table that has
                none.
        """
        item_ids = new_item_ids(item_ids, self)
        all_titles = extended_texts("titles", self.titles, titles, texts, len(item_ids))
        all_texts = extended_texts("texts", self.texts, texts, titles, len(item_ids))
        check_model(model, self)
        semantic, collaborative = embeddings
        codes = model.encode(semantic, collaborative)
        _check_codebooks(codes, self.build_report)
        require_one_per_item(codes.num_items, item_ids=item_ids, titles=titles, texts=texts)
        unique = assign_unique_identifiers(codes, taken=(self.semantic_codes, self.collaborative_codes))
        report = copy.deepcopy(self.build_report)
        record = {"num_items": codes.num_items, **_quantization_report(model, semantic, collaborative, codes, unique)}
        report["added"] = [*report.get("added", []), record]
        semantic_codes = np.concatenate([self.semantic_codes, unique.semantic_codes])
        return IdentifierTable(
            item_ids=[*self.item_ids, *item_ids],
            semantic_codes=semantic_codes,
            collaborative_codes=np.concatenate([self.collaborative_codes, unique.collaborative_codes]),
            num_shared_levels=self.num_shared_levels,
            codebook_size=self.codebook_size,
            titles=all_titles,
            texts=all_texts,
            build_report=report,
            available=np.concatenate([self.available, np.ones(codes.num_items, dtype=bool)]),
            neighbors=self._with_neighbors(semantic_codes, model, num_neighbors),
        )

    def _with_neighbors(self, semantic_codes: np.ndarray, model: "JointRQVAE", num_neighbors: int) -> np.ndarray:
        """Neighbors of all added items, the newest of which stand at the end of `(num_items, num_levels)` codes."""
        new_rows = np.arange(self.num_items, len(semantic_codes))
        num_neighbors = self.neighbors.shape[1] if len(self.neighbors) else min(num_neighbors, self.num_trained)
        if num_neighbors == 0:
            return self.neighbors
        nearest = nearest_identifiers(semantic_codes, model, new_rows, np.arange(self.num_trained), num_neighbors)
        return np.concatenate([self.neighbors.reshape(-1, num_neighbors), nearest])

    def remove_items(self, item_ids: Sequence[str]) -> "IdentifierTable":
        """A new table in which these items are not available: never generated, but still readable in histories.

        Their identifiers stay taken, so that a model does not mistake a later item for them.

        Raises:
            InputError: an id that is unknown, given twice or removed already, or no item would be left.
        """
        rows = rows_to_change(item_ids, self, available=False)
        if len(rows) == self.num_available:
            raise InputError(
                f"Removing these {len(rows)} items would leave no item available; a catalogue needs at least one, so "
                "leave one out, or add other items first."
            )
        return self._with_availability(rows, False)

    def restore_items(self, item_ids: Sequence[str]) -> "IdentifierTable":
        """A new table in which these removed items are available again, under the identifiers that they had.

        Raises:
            InputError: an id that is unknown, given twice or not removed.
        """
        return self._with_availability(rows_to_change(item_ids, self, available=True), True)

    def mark_trained(self, item_ids: Sequence[str]) -> "IdentifierTable":
        """A new table in which these added items lend to themselves, too, as a model has learned them since.

        A few clicks teach less than is borrowed, and what they teach is lost where an item borrows only. So each gets
        the place of the first of its neighbors, and the farthest is left out. The items stand, in their order, in front
        of the other added ones; rows of trained items stay what they are.

        Raises:
            InputError: an item that is not among the added ones, or has been learned before.
        """
        num_known = self.num_trained + self.num_marked
        is_added = {item_id: row for row, item_id in enumerate(self.item_ids) if row >= num_known}
        others = [item_id for item_id in item_ids if item_id not in is_added]
        if others:
            raise InputError(
                f"The item '{others[0]}' is none that was added after training and still has to be learned."
            )
        chosen = np.isin(np.arange(self.num_items), [is_added[item_id] for item_id in item_ids])
        order = np.argsort((np.arange(self.num_items) >= num_known) & ~chosen, kind="stable")
        rows = order.tolist()
        neighbors = self.neighbors[order[self.num_trained :] - self.num_trained]
        learned = slice(self.num_marked, self.num_marked + int(chosen.sum()))
        own_rows = np.arange(num_known, num_known + int(chosen.sum()))[:, None]
        neighbors[learned] = np.concatenate([own_rows, neighbors[learned, :-1]], axis=1)
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

    def _with_availability(self, rows: np.ndarray, value: bool) -> "IdentifierTable":
        table = copy.copy(self)  # the other fields are the same objects, and need no second check
        table.available = self.available.copy()
        table.available[rows] = value
        return table

    def report(self) -> dict:
        """Counts, and per kind the collision rate and the use and perplexity of every level.

        Removed items count in all but `num_available`, as their identifiers are taken. What `build_identifier_table`
        and `add_items` noted (collision rate before, items moved, reconstruction error, …) is merged in.
        """
        report: dict = {
            "num_items": self.num_items,
            "num_available": self.num_available,
            "num_levels": self.num_levels,
            "num_shared_levels": self.num_shared_levels,
            "codebook_size": self.codebook_size,
        }
        for kind, codes in zip(_KINDS, (self.semantic_codes, self.collaborative_codes), strict=True):
            report[kind] = {"collision_rate_after": collision_rate(codes), **level_usage(codes, self.codebook_size)}
        for name, noted in self.build_report.items():
            report[name] = {**report[name], **noted} if name in _KINDS else noted
        return report

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table, aside first, to a `.parquet` file, or to `identifiers.parquet` in a folder."""
        target = table_path(path)
        write_fields(target, {each.name: getattr(self, each.name) for each in fields(self)})
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "IdentifierTable":
        """Read what `save` wrote, from the file or its folder.

        Raises:
            InputError: the file is missing, damaged or not an identifier table, an item id or an identifier occurs
                twice, or a code is out of range; the message names the file and the row (counted from 1).
        """
        source = table_path(path)
        values = read_fields(source)
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(str(error).replace("The identifier table", str(source), 1)) from None


def level_usage(codes: np.ndarray, codebook_size: int) -> dict[str, list[float]]:
    """How evenly the codes of each level are used.

    Args:
        codes: `(num_items, num_levels)`.
        codebook_size: K.

    Returns:
        `codebook_use`, the share of codes with at least one item, and `perplexity`, exp of the entropy of the codes'
        shares (K if all are used equally, 1 if one is used alone); one number per level each.

    >>> level_usage(np.array([[0, 1], [0, 1], [2, 1], [2, 1]]), codebook_size=4)
    {'codebook_use': [0.5, 0.25], 'perplexity': [2.0, 1.0]}
    """
    use, perplexity = [], []
    for level_codes in codes.T:
        counts = np.bincount(level_codes, minlength=codebook_size)
        shares = counts[counts > 0] / len(codes)
        use.append(float((counts > 0).mean()))
        perplexity.append(float(np.exp(-(shares * np.log(shares)).sum())))
    return {"codebook_use": use, "perplexity": perplexity}


def build_identifier_table(
    model: "JointRQVAE",
    semantic: "Embeddings",
    collaborative: "Embeddings",
    item_ids: Sequence[str],
    titles: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
) -> IdentifierTable:
    """Quantize the catalogue with a trained model, make the identifiers unique, and note what that cost.

    Args:
        model: trained by `train_joint_rqvae`.
        semantic: `(num_items, semantic_dim)`, in the order of `item_ids`.
        collaborative: `(num_items, collaborative_dim)`.
        item_ids: one per item.
        titles: one per item, kept with the identifiers.
        texts: one per item, kept with the identifiers.

    Raises:
        InputError: unusable embeddings, more items than identifiers, or a repeated item id.
    """
    codes = model.encode(semantic, collaborative)
    require_one_per_item(codes.num_items, item_ids=item_ids, titles=titles, texts=texts)
    unique = assign_unique_identifiers(codes)
    return IdentifierTable(
        item_ids=list(item_ids),
        semantic_codes=unique.semantic_codes,
        collaborative_codes=unique.collaborative_codes,
        num_shared_levels=codes.num_shared_levels,
        codebook_size=codes.codebook_size,
        titles=None if titles is None else list(titles),
        texts=None if texts is None else list(texts),
        build_report={
            **_quantization_report(model, semantic, collaborative, codes, unique),
            "codebooks_fingerprint": _codebooks_fingerprint(codes),
        },
    )


def _quantization_report(
    model: "JointRQVAE",
    semantic: "Embeddings",
    collaborative: "Embeddings",
    codes: JointCodes,
    unique: UniqueIdentifiers,
) -> dict:
    """The report of the assignment, with use and perplexity before it and reconstruction errors before and after it."""
    report = {**unique.report}
    raw = (codes.semantic_codes, codes.collaborative_codes)
    for kind, raw_codes in zip(_KINDS, raw, strict=True):
        usage = {f"{name}_before": values for name, values in level_usage(raw_codes, codes.codebook_size).items()}
        report[kind] = {**report[kind], **usage}
    for moment, both_codes in (("before", raw), ("after", (unique.semantic_codes, unique.collaborative_codes))):
        quantized = codes.quantized(*both_codes)
        for kind, error in model.reconstruction_error(semantic, collaborative, quantized).items():
            report[kind] = {**report[kind], f"reconstruction_error_{moment}": error}
    return report


def _codebooks_fingerprint(codes: JointCodes) -> str:
    return fingerprint(codes.shared_codebooks, codes.semantic_codebooks, codes.collaborative_codebooks)


def _check_codebooks(codes: JointCodes, build_report: dict) -> None:
    """Refuse codes of another model of the same sizes: they would mean something else than the table's."""
    noted = build_report.get("codebooks_fingerprint")
    if noted is not None and noted != _codebooks_fingerprint(codes):
        raise InputError(
            "The model's codebooks are not those that the identifiers of the table were made with, so its codes would "
            "mean something else; add items with the joint RQ-VAE that was saved when the table was built."
        )
