"""Item id ↔ its two identifiers: the table that goes with the model, as `identifiers.parquet`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gensar_hf.artifacts import DataError, written_aside
from gensar_hf.identifiers.assignment import assign_unique_identifiers, collision_rate

if TYPE_CHECKING:  # torch and transformers are not needed to read a table
    from gensar_hf.identifiers.embedding_checks import Embeddings
    from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

TABLE_FILE = "identifiers.parquet"
FORMAT_VERSION = 1
_METADATA_KEY = b"gensar_hf.identifiers"
_KINDS = ("semantic", "collaborative")


@dataclass
class IdentifierTable:
    """The two identifiers of every item of the catalogue.

    Attributes:
        item_ids: one per item, distinct; an item's index is its row.
        semantic_codes: `(num_items, num_levels)` int64, shared levels first; all rows differ.
        collaborative_codes: the same; equal to `semantic_codes` on the shared levels.
        num_shared_levels: how many of the levels are shared.
        codebook_size: codes per level.
        titles: one per item, or None.
        texts: the text of each item, or None.
        build_report: how the identifiers came about (`build_identifier_table`), merged into `report()`.
    """

    item_ids: list[str]
    semantic_codes: np.ndarray
    collaborative_codes: np.ndarray
    num_shared_levels: int
    codebook_size: int
    titles: list[str] | None = None
    texts: list[str] | None = None
    build_report: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.semantic_codes = np.asarray(self.semantic_codes, dtype=np.int64)
        self.collaborative_codes = np.asarray(self.collaborative_codes, dtype=np.int64)
        self._validate("The identifier table")
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Codes per identifier."""
        return self.semantic_codes.shape[1]

    def index_of(self, item_id: str) -> int:
        """Row of an item.

        Raises:
            KeyError: the item is not in the catalogue.
        """
        return self._index[item_id]

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

    def report(self) -> dict:
        """Counts, and per kind the collision rate and the use and perplexity of every level.

        What `build_identifier_table` noted (collision rate before, items moved, reconstruction error, …) is merged in.
        """
        report: dict = {
            "num_items": self.num_items,
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
        columns: dict[str, pa.Array] = {"item_id": pa.array(self.item_ids, pa.string())}
        for kind, codes in zip(_KINDS, (self.semantic_codes, self.collaborative_codes), strict=True):
            columns[f"{kind}_codes"] = pa.array(codes.tolist(), pa.list_(pa.int32()))
        for name, values in (("title", self.titles), ("text", self.texts)):
            if values is not None:
                columns[name] = pa.array(values, pa.string())
        metadata = {
            "format_version": FORMAT_VERSION,
            "num_shared_levels": self.num_shared_levels,
            "codebook_size": self.codebook_size,
            "build_report": self.build_report,
        }
        table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
        target = table_path(path)
        with written_aside(target) as aside:
            pq.write_table(table, aside)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "IdentifierTable":
        """Read what `save` wrote, from the file or its folder.

        Raises:
            DataError: the file is missing, damaged or not an identifier table, an item id or an identifier occurs
                twice, or a code is out of range; the message names the file and the row (counted from 1).
        """
        source = table_path(path)
        table, metadata = _read(source)
        try:
            return cls(
                item_ids=table["item_id"].to_pylist(),
                semantic_codes=_codes(table, "semantic_codes", source),
                collaborative_codes=_codes(table, "collaborative_codes", source),
                num_shared_levels=metadata["num_shared_levels"],
                codebook_size=metadata["codebook_size"],
                titles=table["title"].to_pylist() if "title" in table.column_names else None,
                texts=table["text"].to_pylist() if "text" in table.column_names else None,
                build_report=metadata.get("build_report", {}),
            )
        except DataError as error:
            raise DataError(str(error).replace("The identifier table", str(source), 1)) from None

    def _validate(self, where: str) -> None:
        shape = (self.num_items, self.semantic_codes.shape[-1])
        if self.num_items == 0 or self.semantic_codes.shape != shape or self.collaborative_codes.shape != shape:
            raise DataError(
                f"{where} must hold one row of codes of each kind per item, for at least one item; got "
                f"{self.num_items} items, semantic codes of shape {self.semantic_codes.shape} and collaborative codes "
                f"of shape {self.collaborative_codes.shape}."
            )
        for name, values in (("titles", self.titles), ("texts", self.texts)):
            if values is not None and len(values) != self.num_items:
                raise DataError(f"{where} has {self.num_items} items but {len(values)} {name}; give one per item.")
        for row, item_id in enumerate(self.item_ids, start=1):
            if not isinstance(item_id, str):
                raise DataError(f"{where}, row {row}, column item_id: {item_id!r} is not a string.")
        _refuse_repeats(where, "item_id", self.item_ids, "every item may occur only once")
        for kind, codes in zip(_KINDS, (self.semantic_codes, self.collaborative_codes), strict=True):
            outside = np.argwhere((codes < 0) | (codes >= self.codebook_size))
            if len(outside):
                row, level = outside[0]
                raise DataError(
                    f"{where}, row {row + 1}, column {kind}_codes: code {codes[row, level]} on level {level + 1} is "
                    f"not between 0 and {self.codebook_size - 1}."
                )
            _refuse_repeats(where, f"{kind}_codes", list(map(tuple, codes.tolist())), "identifiers must be unique")
        differs = (self.semantic_codes != self.collaborative_codes)[:, : self.num_shared_levels].any(axis=1)
        if differs.any():
            raise DataError(
                f"{where}, row {int(differs.argmax()) + 1}: the semantic and the collaborative codes differ on the "
                f"first {self.num_shared_levels} levels, which are shared."
            )


def table_path(path: str | os.PathLike[str]) -> Path:
    """The path itself if it ends in `.parquet`, otherwise `identifiers.parquet` inside it."""
    path = Path(path)
    return path if path.suffix == ".parquet" else path / TABLE_FILE


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
        DataError: unusable embeddings, more items than identifiers, or a repeated item id.
    """
    codes = model.encode(semantic, collaborative)
    if len(item_ids) != codes.num_items:
        raise DataError(
            f"There are {codes.num_items} embeddings but {len(item_ids)} item ids; give one of each per item."
        )
    unique = assign_unique_identifiers(codes)
    report = {**unique.report}
    for moment, semantic_codes, collaborative_codes in (
        ("before", codes.semantic_codes, codes.collaborative_codes),
        ("after", unique.semantic_codes, unique.collaborative_codes),
    ):
        quantized = codes.quantized(semantic_codes, collaborative_codes)
        for kind, error in model.reconstruction_error(semantic, collaborative, quantized).items():
            report[kind] = {**report[kind], f"reconstruction_error_{moment}": error}
    return IdentifierTable(
        item_ids=list(item_ids),
        semantic_codes=unique.semantic_codes,
        collaborative_codes=unique.collaborative_codes,
        num_shared_levels=codes.num_shared_levels,
        codebook_size=codes.codebook_size,
        titles=None if titles is None else list(titles),
        texts=None if texts is None else list(texts),
        build_report=report,
    )


def _read(source: Path) -> tuple[pa.Table, dict]:
    if not source.is_file():
        raise DataError(
            f"{source} does not exist; it holds the identifiers that the model's tokens stand for, so copy it from the "
            "folder in which the model was saved, or run the identifier stage again."
        )
    try:
        table = pq.read_table(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} is damaged ({error}); delete it and run the identifier stage again.") from None
    missing = {"item_id", "semantic_codes", "collaborative_codes"} - set(table.column_names)
    raw = (table.schema.metadata or {}).get(_METADATA_KEY)
    if missing or raw is None:
        what = f"the column {min(missing)}" if missing else "the metadata that `IdentifierTable.save` writes"
        raise DataError(f"{source} is not an identifier table: {what} is missing.")
    metadata = json.loads(raw)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{source} has format version {metadata.get('format_version')}, but this version of gensar-hf reads "
            f"{FORMAT_VERSION}; run the identifier stage again."
        )
    return table, metadata


def _codes(table: pa.Table, column: str, source: Path) -> np.ndarray:
    """`(num_items, num_levels)` int64 of a column of lists."""
    rows = table[column].to_pylist()
    for row, codes in enumerate(rows, start=1):
        is_list = isinstance(codes, list) and all(isinstance(code, int) for code in codes)
        if not is_list or len(codes) != len(rows[0]):
            raise DataError(
                f"{source}, row {row}, column {column}: {codes!r} is not a list of {len(rows[0] or [])} codes."
            )
    return np.array(rows, dtype=np.int64).reshape(len(rows), -1)


def _refuse_repeats(where: str, column: str, values: Sequence, rule: str) -> None:
    first_rows: dict = {}
    for row, value in enumerate(values, start=1):
        first = first_rows.setdefault(value, row)
        if first != row:
            raise DataError(f"{where}, row {row}, column {column}: {value!r} is that of row {first}, too; {rule}.")
