"""New items into a finished run's model, and items out of it; nothing is trained.

python training_scripts/add_items.py --output_dir runs/mine --items new_items.csv
python training_scripts/add_items.py --output_dir runs/mine --catalogue.remove 242 302

The table of new items has the columns that made the items' text when the run was trained. Removed items are never
found again, but may still stand in histories; --catalogue.restore brings them back.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from console import main
from encode_items import EMBEDDINGS_FILE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sections import Section
from settings import Settings
from stages import COLLABORATIVE, DATA, MODEL, RQVAE, SEMANTIC, damage_reported, load_data

from gensar_hf.data import InteractionLog, training_mask
from gensar_hf.data.tables import id_column, read_table, text_column
from gensar_hf.embeddings.cold_items import CollaborativeMap, nearest_items
from gensar_hf.embeddings.item_embeddings import load_item_embeddings
from gensar_hf.embeddings.semantic import encode_texts
from gensar_hf.errors import InputError
from gensar_hf.files import STAGE_FILE, read_json
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.identifier_table import NUM_NEIGHBORS
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

NUM_SHOWN, NUM_NEIGHBOURS = 20, 3


@dataclass
class CatalogueArguments:
    """What else becomes of the catalogue."""

    remove: list[str] | None = field(default=None, metadata={"help": "ids of items that must not be found any more."})
    restore: list[str] | None = field(default=None, metadata={"help": "ids of removed items to bring back."})
    batch_size: int = field(default=64, metadata={"help": "texts per forward pass of the text encoder."})
    seed: int = field(default=0, metadata={"help": "of the sample of warm items that the map is fitted on."})


SECTION = Section("catalogue", CatalogueArguments)


@dataclass(frozen=True)
class WarmItems:
    """The items that a run was trained on.

    Attributes:
        item_ids, titles: `num_items` each.
        semantic: `(num_items, semantic_dim)`.
        collaborative: `(num_items, collaborative_dim)`.
        num_clicks: `(num_items,)`, in training events.
    """

    item_ids: list[str]
    titles: list[str]
    semantic: np.ndarray
    collaborative: np.ndarray
    num_clicks: np.ndarray

    @classmethod
    def of_run(cls, run_dir: Path) -> "WarmItems":
        """Read them from the run's folders."""
        log, events, split = load_data(run_dir)
        clicked = events.items[training_mask(split) & (events.items >= 0)]
        return cls(
            events.item_ids,
            item_titles(log),
            load_item_embeddings(run_dir / SEMANTIC / EMBEDDINGS_FILE, events.item_ids),
            load_item_embeddings(run_dir / COLLABORATIVE / EMBEDDINGS_FILE, events.item_ids),
            np.bincount(clicked, minlength=events.num_items),
        )

    def collaborative_map(self, seed: int) -> CollaborativeMap:
        """The map from text to collaborative embedding, learned on these items."""
        return CollaborativeMap.fit(self.semantic, self.collaborative, seed, self.num_clicks)


def item_titles(log: InteractionLog) -> list[str]:
    """What an item is called: its title, or its text where items have none."""
    return log.items["title"].tolist() if "title" in log.items else log.item_texts()


def require_finished(run_dir: Path) -> None:
    """Refuse a run without a trained model.

    Raises:
        InputError: a stage is missing.
    """
    for stage in (DATA, SEMANTIC, COLLABORATIVE, RQVAE, MODEL):
        if not (run_dir / stage / STAGE_FILE).is_file():
            raise InputError(
                f"{run_dir} is no finished run: its stage {stage} is missing; run training_scripts/run_pipeline.py "
                "with this --output_dir first."
            )


def read_new_items(path: str, run_dir: Path) -> InteractionLog:
    """A table of new items, as a log without interactions.

    Raises:
        InputError: the file, a column, an id or a text is missing, or an id stands there twice.
    """
    table = read_table(path, "items")
    text_columns = tuple(read_json(run_dir / SEMANTIC / "config.json")["text_columns"])
    table.require(["item_id", *text_columns])
    item_ids = id_column(table, "item_id")
    columns = dict.fromkeys([*text_columns, *(["title"] if "title" in table.frame else [])])
    remedy = "turn it into text"
    items = table.frame[[]].assign(item_id=item_ids, **{name: text_column(table, name, remedy) for name in columns})
    repeated = np.flatnonzero(item_ids.duplicated())
    if len(repeated):
        raise table.complain("item_id", repeated, "stands in an earlier row already", "keep one row per item")
    missing = np.flatnonzero(item_ids == "")
    if len(missing):
        raise table.complain("item_id", missing, "is no item id, the value is missing", "give every item an id")
    empty = np.flatnonzero((items[list(text_columns)] == "").all(axis=1))
    if len(empty):
        raise table.complain(
            "item_id", empty, f"has no text in {', '.join(text_columns)}", "a new item is known by its text alone"
        )
    return InteractionLog(items, table.frame[[]], text_columns)


def encode_new_items(log: InteractionLog, run_dir: Path, batch_size: int = 64) -> np.ndarray:
    """Semantic embeddings `(num_new, semantic_dim)`, by the encoder of the run."""
    encoder = read_json(run_dir / SEMANTIC / "config.json")
    return encode_texts(log.item_texts(), encoder["model"], batch_size, encoder.get("max_length"))


def extended_table(
    table: IdentifierTable,
    log: InteractionLog,
    semantic: np.ndarray,
    collaborative: np.ndarray,
    run_dir: Path,
    num_neighbors: int = NUM_NEIGHBORS,
) -> IdentifierTable:
    """The catalogue with the new items behind the old ones, quantized by the run's joint RQ-VAE."""
    with damage_reported(run_dir / RQVAE):
        model = JointRQVAE.from_pretrained(run_dir / RQVAE).eval()
    titles = item_titles(log) if table.titles is not None else None
    texts = log.item_texts() if table.texts is not None else None
    item_ids = log.items["item_id"].tolist()
    return table.add_items((semantic, collaborative), item_ids, model, titles, texts, num_neighbors)


def changed_table(settings: Settings, table: IdentifierTable) -> tuple[IdentifierTable, Table | None]:
    """The catalogue after everything that was asked for, and what was added, to be printed."""
    run_dir, (arguments, _) = settings.run_dir, settings[SECTION.name]
    shown = None
    table = table.restore_items(arguments.restore) if arguments.restore else table
    if settings.run.items:
        log = read_new_items(settings.run.items, run_dir)
        refuse_known_items(log, table)
        warm = WarmItems.of_run(run_dir)
        semantic = encode_new_items(log, run_dir, arguments.batch_size)
        collaborative = warm.collaborative_map(arguments.seed).predict(semantic)
        num_before = table.num_items
        table = extended_table(table, log, semantic, collaborative, run_dir)
        shown = added_items(table, num_before, semantic, collaborative, warm)
    return (table.remove_items(arguments.remove) if arguments.remove else table), shown


def refuse_known_items(log: InteractionLog, table: IdentifierTable) -> None:
    """Refuse new items that the model has.

    Raises:
        InputError: one of them is in the catalogue, or has been removed from it.
    """
    known = [item_id for item_id in log.items["item_id"] if item_id in table.rows()]
    if known:
        is_available = table.available[table.index_of(known[0])]
        remedy = "leave it out" if is_available else f"bring it back with --catalogue.restore {known[0]}"
        state = "is in the model's catalogue already" if is_available else "was removed from the model's catalogue"
        more = f" (and {len(known) - 1} more)" if len(known) > 1 else ""
        raise InputError(f"The new item '{known[0]}'{more} {state}; {remedy}.")


def added_items(
    table: IdentifierTable, num_before: int, semantic: np.ndarray, collaborative: np.ndarray, warm: WarmItems
) -> Table:
    """New items with their identifiers and the known items that are nearest in either embedding."""
    shown = Table(title=f"{len(semantic):,} new items", title_justify="left", show_lines=True)
    for column in ("Item", "Identifiers: search, recommendation", "Nearest by text", "Nearest by predicted clicks"):
        shown.add_column(column)
    new = slice(0, NUM_SHOWN)
    k = min(NUM_NEIGHBOURS, len(warm.item_ids))
    neighbours = zip(
        nearest_items(semantic[new], warm.semantic, k),
        nearest_items(collaborative[new], warm.collaborative, k),
        strict=True,
    )
    for row, (by_text, by_clicks) in enumerate(neighbours, start=num_before):
        identifiers = (table.semantic_tokens(row), table.collaborative_tokens(row))
        title = f"{table.item_ids[row]}\n{table.titles[row]}" if table.titles else table.item_ids[row]
        cells = [title, "\n".join("".join(tokens) for tokens in identifiers)]
        cells += ["\n".join(warm.titles[item] for item in items) for items in (by_text, by_clicks)]
        shown.add_row(*map(escape, cells))
    if len(semantic) > NUM_SHOWN:
        shown.caption = f"The first {NUM_SHOWN} of them."
    return shown


def run(settings: Settings) -> None:
    """Change the catalogue of the run's model: one file is written, aside, and renamed."""
    arguments, _ = settings[SECTION.name]
    if not (settings.run.items or arguments.remove or arguments.restore):
        raise InputError(
            "Nothing was asked for: name a table of new items with --items, or ids with --catalogue.remove or "
            "--catalogue.restore."
        )
    require_finished(settings.run_dir)
    model_dir = settings.run_dir / MODEL
    table, shown = changed_table(settings, IdentifierTable.load(model_dir))
    table.save(model_dir)
    console = Console(width=min(120, Console().width) if Console().is_terminal else 120)
    if shown is not None:
        console.print(shown)
    for what, item_ids in (("restored", arguments.restore), ("removed", arguments.remove)):
        if item_ids:
            console.print(f"{what.capitalize()}: {', '.join(item_ids)}", markup=False)
    console.print(
        f"{model_dir} now has {table.num_available:,} items that can be found. Nothing was trained: when the new items "
        "have clicks of their own, put both into your two tables and run run_pipeline.py again, which makes a new "
        "catalogue of these tables alone. A pipeline that is running takes the change up with",
        markup=False,
    )
    console.print(f'    pipe.set_catalogue(IdentifierTable.load("{model_dir}"))', markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
