"""Stage 1: raw tables → a validated, chronological log and its split.

python training_scripts/prepare_data.py --items items.parquet --interactions interactions.csv --output_dir runs/mine
"""

from dataclasses import dataclass, field
from pathlib import Path

from stages import DATA, StageReport, main, run_stage, section_arguments

from gensar_hf.artifacts import DataError
from gensar_hf.data import (
    InteractionLog,
    assign_search_clicks,
    chronological_cut,
    events_from_log,
    k_core,
    leave_one_out,
    load_log,
    load_movielens_100k,
)


@dataclass
class DataArguments:
    """Where the log comes from and how it is cut."""

    items: str | None = field(default=None, metadata={"help": "items table: item_id and text columns."})
    interactions: str | None = field(
        default=None, metadata={"help": "interactions table: user_id, item_id, timestamp (or order), query."}
    )
    dataset: str | None = field(default=None, metadata={"help": "ready-made instead of tables: ml-100k."})
    dataset_dir: str | None = field(default=None, metadata={"help": "folder with the data set's own files."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "columns that make an item's text."})
    min_interactions: int = field(default=0, metadata={"help": "k of the k-core filter; 0: keep everything."})
    search_fraction: float = field(
        default=0.0,
        metadata={"help": "share of the clicks that become search clicks, for logs without queries."},
    )
    category_column: str = field(default="categories", metadata={"help": "what such queries are made from."})
    split: str = field(default="leave_one_out", metadata={"help": "leave_one_out or chronological."})
    seed: int = field(default=0, metadata={"help": "of the choice of search clicks."})


def read_log(arguments: DataArguments) -> InteractionLog:
    """The log that the arguments name."""
    if arguments.dataset == "ml-100k":
        return load_movielens_100k(
            arguments.dataset_dir, search_fraction=arguments.search_fraction, seed=arguments.seed
        )
    if arguments.dataset is not None:
        raise DataError(f"Unknown data set '{arguments.dataset}'; ready-made is ml-100k, others come as two tables.")
    if arguments.items is None or arguments.interactions is None:
        raise DataError("Name the two tables with --items and --interactions, or a configuration with a data set.")
    log = load_log(arguments.items, arguments.interactions, arguments.text_columns)
    if arguments.search_fraction:
        log = assign_search_clicks(log, arguments.search_fraction, arguments.seed, arguments.category_column)
    return log


def run(sections: dict[str, dict]) -> StageReport:
    """Read, filter, split, save."""
    arguments = section_arguments({**sections.get(DATA, {}), **_tables(sections)}, DataArguments, DATA)
    splitters = {"leave_one_out": leave_one_out, "chronological": chronological_cut}
    if arguments.split not in splitters:
        raise DataError(f"`split` must be one of {', '.join(splitters)}; got '{arguments.split}'.")

    def work(folder: Path, checkpoints: Path) -> dict:
        log = read_log(arguments)
        if arguments.min_interactions:
            log = k_core(log, arguments.min_interactions)
        events = events_from_log(log)
        split = splitters[arguments.split](events)
        log.save(folder)
        split.save(folder)
        return {
            "users": events.num_users,
            "items": events.num_items,
            "events": events.num_events,
            "training events": int((split.train_ends - events.offsets[:-1]).sum()),
            "queries": len(events.query_texts),
            "test requests": {task: len(requests) for task, requests in split.test.items()},
        }

    inputs = [arguments, *(Path(path) for path in (arguments.items, arguments.interactions) if path)]
    return run_stage(Path(sections[""]["output_dir"]), DATA, inputs, work)


def _tables(sections: dict[str, dict]) -> dict:
    return {name: sections[""][name] for name in ("items", "interactions") if name in sections[""]}


if __name__ == "__main__":
    main(run, __doc__)
