"""Stage 1: raw tables → a validated, chronological log and its split.

python training_scripts/prepare_data.py --items items.parquet --interactions interactions.csv --output_dir runs/mine
python training_scripts/prepare_data.py training_scripts/configs/amazon-electronics.yaml
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from console import main
from sections import Section, dataclass_values
from settings import RunArguments, Settings
from stages import DATA, StageReport, run_stage

from gensar_hf.data import (
    InteractionLog,
    assign_search_clicks,
    chronological_cut,
    events_from_log,
    k_core,
    leave_one_out,
    load_amazon,
    load_log,
    load_movielens_100k,
    part_in_time,
)
from gensar_hf.data.amazon_files import QRELS, QUERY_TEXTS
from gensar_hf.errors import InputError

logger = logging.getLogger("gensar_hf.training_scripts")


@dataclass
class DataArguments:
    """Where the log comes from and how it is cut."""

    dataset: Literal["ml-100k", "amazon", "none"] = field(
        default="none", metadata={"help": "ready-made, instead of --items and --interactions."}
    )
    dataset_dir: str | None = field(default=None, metadata={"help": "folder with the data set's own files."})
    reviews: str | None = field(
        default=None, metadata={"help": "amazon: 5-core reviews of 2014, such as reviews_Electronics_5.json.gz."}
    )
    metadata: str | None = field(default=None, metadata={"help": "amazon: such as meta_Electronics.json.gz."})
    query_dir: str | None = field(
        default=None,
        metadata={"help": "amazon: folder of the published queries; without it they come from the categories."},
    )
    reviews_are: Literal["split", "both"] = field(
        default="split",
        metadata={"help": "amazon: clicks or, as in the paper's data, recommendations and searches at once."},
    )
    repository: str | None = field(
        default=None, metadata={"help": "amazon: data set on the Hub that holds these files."}
    )
    revision: str | None = field(default=None, metadata={"help": "amazon: branch, tag or commit of the repository."})
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "columns that make an item's text; those with usual names."}
    )
    min_interactions: int = field(default=0, metadata={"help": "k of the k-core filter; 0: keep everything."})
    search_fraction: float = field(
        default=0.0,
        metadata={"help": "share of the clicks that become search clicks, for logs without queries."},
    )
    category_column: str = field(default="categories", metadata={"help": "what such queries are made from."})
    split: Literal["leave_one_out", "chronological"] = field(
        default="leave_one_out", metadata={"help": "which clicks are held out."}
    )
    held_out_items: float = field(
        default=0.0,
        metadata={"help": "share of the items that every stage goes without, for evaluate_new_items.py."},
    )
    later_share: float = field(
        default=0.0,
        metadata={
            "help": "share of the interactions, the latest, that every stage goes without, for finetune_lora.py."
        },
    )
    seed: int = field(default=0, metadata={"help": "of the choice of search clicks and of held-out items."})

    def __post_init__(self) -> None:
        if self.min_interactions < 0:
            raise ValueError(f"`min_interactions` must not be negative; got {self.min_interactions}.")
        if not 0 <= self.search_fraction <= 1:
            raise ValueError(f"`search_fraction` must lie between 0 and 1; got {self.search_fraction}.")
        if not 0 <= self.held_out_items < 1:
            raise ValueError(f"`held_out_items` is a share, at least 0 and below 1; got {self.held_out_items}.")
        if not 0 <= self.later_share < 1:
            raise ValueError(f"`later_share` is a share, at least 0 and below 1; got {self.later_share}.")
        self._check_amazon()

    def _check_amazon(self) -> None:
        if self.dataset != "amazon":
            given = [name for name in AMAZON_SETTINGS if getattr(self, name) not in (None, "split")]
            if given:
                raise ValueError(
                    f"`{given[0]}` is a setting of `dataset: amazon`; name that data set, or leave it out."
                )
        elif self.reviews is None or self.metadata is None:
            raise ValueError("`dataset: amazon` needs the files `reviews` and `metadata`; name both.")
        elif self.query_dir is not None and self.reviews_are == "split" and not self.search_fraction:
            raise ValueError(
                "`query_dir` names queries, but no review becomes a search; set `search_fraction` above 0, or "
                "`reviews_are` to both."
            )


AMAZON_SETTINGS = ("reviews", "metadata", "query_dir", "reviews_are", "repository", "revision")
SECTION = Section(DATA, DataArguments)
HELD_OUT_ITEMS, HELD_OUT_INTERACTIONS = "held_out_items.parquet", "held_out_interactions.parquet"
LATER_ITEMS, LATER_INTERACTIONS = "later_items.parquet", "later_interactions.parquet"
SPLITTERS = {"leave_one_out": leave_one_out, "chronological": chronological_cut}


def read_log(arguments: DataArguments, tables: RunArguments) -> InteractionLog:
    """The log that the arguments name."""
    if arguments.dataset == "ml-100k":
        return load_movielens_100k(
            arguments.dataset_dir, search_fraction=arguments.search_fraction, seed=arguments.seed
        )
    if arguments.dataset == "amazon":
        return load_amazon(
            arguments.reviews,
            arguments.metadata,
            arguments.query_dir,
            repo_id=arguments.repository,
            revision=arguments.revision,
            reviews_are=arguments.reviews_are,
            search_fraction=arguments.search_fraction,
            seed=arguments.seed,
            text_columns=arguments.text_columns,
        )
    if tables.items is None or tables.interactions is None:
        raise InputError("Name two tables with --items and --interactions, or a ready-made set with --data.dataset.")
    log = load_log(tables.items, tables.interactions, arguments.text_columns)
    if arguments.search_fraction:
        log = assign_search_clicks(log, arguments.search_fraction, arguments.seed, arguments.category_column)
    return log


def hold_out_items(log: InteractionLog, fraction: float, seed: int) -> tuple[InteractionLog, InteractionLog]:
    """Part a log into one without a random share of its items, and one that holds these items and their rows alone.

    Args:
        log: it is not changed.
        fraction: of the items, rounded to a whole number of them, at least one and never all.
        seed: of the draw.

    Returns:
        what is left, and what is held out; either keeps the order and the times of its rows.
    """
    num_items = len(log.items)
    num_held_out = min(max(1, round(fraction * num_items)), num_items - 1)
    is_held_out = np.zeros(num_items, dtype=bool)
    # A stream of its own: the same seed also draws the search clicks.
    is_held_out[np.random.default_rng([seed, 1]).choice(num_items, num_held_out, replace=False)] = True
    in_row = log.interactions["item_id"].isin(log.items["item_id"][is_held_out]).to_numpy()
    parts = [
        replace(log, items=log.items[items].reset_index(drop=True), interactions=rows.reset_index(drop=True))
        for items, rows in ((~is_held_out, log.interactions[~in_row]), (is_held_out, log.interactions[in_row]))
    ]
    return parts[0], parts[1]


def run(settings: Settings) -> StageReport:
    """Read, filter, keep what is later and what is held out apart, split, save."""
    arguments, _ = settings[DATA]

    def work(folder: Path, checkpoints: Path) -> dict:
        log = read_log(arguments, settings.run)
        if arguments.min_interactions:
            log = k_core(log, arguments.min_interactions)
        later = held_out = None
        if arguments.later_share:
            log, later = part_in_time(log, arguments.later_share)
        if arguments.held_out_items:
            log, held_out = hold_out_items(log, arguments.held_out_items, arguments.seed)
            held_out.items.to_parquet(folder / HELD_OUT_ITEMS, index=False)
            held_out.interactions.to_parquet(folder / HELD_OUT_INTERACTIONS, index=False)
        if later:
            # Items that are held out of the earlier part are new in the later one.
            new_items = [later.items, *([held_out.items] if held_out else [])]
            later = replace(later, items=pd.concat(new_items, ignore_index=True))
            later.items.to_parquet(folder / LATER_ITEMS, index=False)
            later.interactions.to_parquet(folder / LATER_INTERACTIONS, index=False)
        events = events_from_log(log)
        if not events.query_texts:
            logger.warning("The log holds no queries, so there is nothing to learn search from; recommendation works.")
        split = SPLITTERS[arguments.split](events)
        log.save(folder)
        split.save(folder)
        counts = {"held-out items": len(held_out.items)} if held_out else {}
        if later:
            counts |= {"later interactions": len(later.interactions), "later items": len(later.items)}
        return {
            **counts,
            "users": events.num_users,
            "items": events.num_items,
            "events": events.num_events,
            "training events": int((split.train_ends - events.offsets[:-1]).sum()),
            "queries": len(events.query_texts),
            "test requests": {task: len(requests) for task, requests in split.test.items()},
        }

    return run_stage(settings.run_dir, DATA, stage_inputs(arguments, settings.run), work)


def stage_inputs(arguments: DataArguments, tables: RunArguments) -> list[Any]:
    """What the stage's result depends on: the settings that are in force, and the files on this machine."""
    values, files = dataclass_values(arguments), [tables.items, tables.interactions, arguments.dataset_dir]
    if arguments.dataset != "amazon":
        values = {name: value for name, value in values.items() if name not in AMAZON_SETTINGS}
    elif arguments.repository is None:
        files += [arguments.reviews, arguments.metadata]
        if arguments.query_dir is not None:
            files += [str(Path(arguments.query_dir) / name) for name in (QUERY_TEXTS, *QRELS)]
    return [values, *(Path(path) for path in files if path)]


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
