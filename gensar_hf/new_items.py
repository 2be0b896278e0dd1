"""New items: from their texts to identifiers, without any training."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gensar_hf.data.dataset import distinct_ids
from gensar_hf.data.tables import TableSource, read_table, text_column
from gensar_hf.embeddings.cold_start import CollaborativeMap
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path, read_json, write_json
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

_CONFIG_FILE, _MAP_FILE, _RQVAE_DIR = "item_encoder.json", "collaborative_map.safetensors", "rqvae"


class ItemEncoder:
    """What a model needs to take up new items: text encoder, map to collaborative embeddings, joint RQ-VAE.

    It lies in the model's folder, so that `GenSARPipeline.add_items` needs nothing else; the text encoder lies next to
    it, because it reads queries as well.

    Args:
        text_encoder: the one that read the items in training.
        text_columns: columns of an items table that make an item's text, in order.
        collaborative_map: from a text embedding to a collaborative embedding.
        rqvae: quantizes both.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        text_columns: tuple[str, ...],
        collaborative_map: CollaborativeMap,
        rqvae: JointRQVAE,
    ) -> None:
        self.text_encoder, self.text_columns = text_encoder, tuple(text_columns)
        self.collaborative_map, self.rqvae = collaborative_map, rqvae.eval()

    def embed(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts → semantic embeddings `(num_texts, semantic_dim)` and collaborative ones `(num_texts, dim)`."""
        semantic = self.text_encoder.encode(texts)
        return semantic, self.collaborative_map.predict(semantic)

    def extend(self, table: IdentifierTable, items: pd.DataFrame) -> IdentifierTable:
        """The table with new items behind the others; no other identifier changes.

        Args:
            table: the catalogue.
            items: `item_id`, `text` and, where the table has titles, `title`, as `read_new_items` returns them.
        """
        titles = items["title"].tolist() if table.titles is not None else None
        texts = items["text"].tolist() if table.texts is not None else None
        embeddings = self.embed(items["text"].tolist())
        return table.add_items(embeddings, items["item_id"].tolist(), self.rqvae, titles, texts)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder, aside and renamed, without the text encoder."""
        with atomic_path(folder) as aside:
            aside.mkdir()
            self.rqvae.save_pretrained(aside / _RQVAE_DIR)
            self.collaborative_map.save(aside / _MAP_FILE)
            write_json(aside / _CONFIG_FILE, {"format_version": 1, "text_columns": list(self.text_columns)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], text_encoder: TextEncoder) -> "ItemEncoder":
        """Read what `save` wrote; `text_encoder` is the one that it was made with.

        Raises:
            InputError: a file is missing or damaged.
        """
        folder = Path(folder)
        record: Any = read_json(folder / _CONFIG_FILE)
        columns = record.get("text_columns") if isinstance(record, dict) else None
        if not isinstance(columns, list) or not columns or not all(isinstance(column, str) for column in columns):
            raise InputError(f"{folder / _CONFIG_FILE} names no text columns; train the model again.")
        collaborative_map = CollaborativeMap.load(folder / _MAP_FILE)
        rqvae = JointRQVAE.from_pretrained(folder / _RQVAE_DIR)
        widths = collaborative_map.semantic.shape[1], len(collaborative_map.mean)
        if widths != (rqvae.config.semantic_dim, rqvae.config.collaborative_dim):
            raise InputError(
                f"{folder / _MAP_FILE} and {_RQVAE_DIR} are of different models, with embeddings of {widths} and "
                f"{(rqvae.config.semantic_dim, rqvae.config.collaborative_dim)} numbers; copy both from one folder."
            )
        return cls(text_encoder, tuple(columns), collaborative_map, rqvae)


def read_new_items(items: TableSource, table: IdentifierTable, text_columns: tuple[str, ...]) -> pd.DataFrame:
    """Check a table of new items.

    Args:
        items: path, DataFrame or `datasets.Dataset` with `item_id`, the text columns and, if there is one, `title`.
        table: the catalogue that they are added to.
        text_columns: that make an item's text.

    Returns:
        `item_id`, `title`, `text`, one row an item.

    Raises:
        InputError: a column, an id or a text is missing, an id occurs twice or is in the catalogue.
    """
    source = read_table(items, "items")
    source.require(["item_id", *text_columns])
    item_ids = distinct_ids(source)
    names = dict.fromkeys([*text_columns, *(["title"] if "title" in source.frame else [])])
    columns = {name: text_column(source, name, "turn it into text") for name in names}
    rows = zip(*(columns[name] for name in text_columns), strict=True)
    texts = [". ".join(part for part in row if part) for row in rows]
    empty = np.flatnonzero([not text for text in texts])
    if len(empty):
        remedy = "fill one of them, since a new item is found by its text alone"
        raise source.complain("item_id", empty, f"has no text in {', '.join(text_columns)}", remedy)
    known = [item_id for item_id in item_ids if item_id in table.rows()]
    if known:
        is_available = table.available[table.index_of(known[0])]
        remedy = "leave it out" if is_available else f"bring it back with `restore_items(['{known[0]}'])`"
        state = "is in the model's catalogue" if is_available else "was removed from the model's catalogue"
        more = f" (and {len(known) - 1} more)" if len(known) > 1 else ""
        raise InputError(f"The new item '{known[0]}'{more} {state}; {remedy}.")
    titles = columns["title"].tolist() if "title" in columns else texts
    return pd.DataFrame({"item_id": item_ids.tolist(), "title": titles, "text": texts})
