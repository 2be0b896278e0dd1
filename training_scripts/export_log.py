"""A run's log as a dataset folder, or as a dataset repository on the Hub, with its card.

    python training_scripts/export_log.py --output_dir runs/mine --export.folder exported
    python training_scripts/export_log.py --output_dir runs/mine --export.repo_id me/log --export.private true

`datasets.load_dataset("exported", "items")` reads it; `load_log` makes the same log of the two tables again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import prepare_data
from console import main
from sections import Section
from settings import Settings
from stages import DATA, load_data
from write_cards import TEMPLATES, data_set_facts

from gensar_hf.data import Behavior, export_log, push_log
from gensar_hf.errors import InputError
from gensar_hf.model_card import TAGS, filled_card, log_card_data

EXPORT = "export"


@dataclass
class ExportArguments:
    """Where the log goes."""

    folder: str | None = field(default=None, metadata={"help": "to write; it must not be there yet."})
    repo_id: str | None = field(default=None, metadata={"help": "dataset repository on the Hub, such as me/log."})
    private: bool = field(default=True, metadata={"help": "whether a new repository is private."})

    def __post_init__(self) -> None:
        if not self.folder and not self.repo_id:
            raise ValueError("name a `folder` to write, a `repo_id` to push to, or both.")


SECTION = Section(EXPORT, ExportArguments)


def run(settings: Settings) -> None:
    """Write and push what is asked for."""
    arguments, _ = settings[EXPORT]
    if arguments.folder and Path(arguments.folder).exists():
        raise InputError(f"{arguments.folder} is there already; name another --export.folder, or remove it.")
    log, events, _ = load_data(settings.run_dir)
    facts = data_set_facts(settings[DATA][0].dataset)
    title = f"Searches and recommendations: {facts['data_name']}"
    card = filled_card(
        TEMPLATES / "log.md",
        log_card_data(title, TAGS[:2]),
        title=title,
        **facts,
        num_users=f"{events.num_users:,}",
        num_items=f"{events.num_items:,}",
        num_events=f"{events.num_events:,}",
        num_queries=f"{len(events.query_texts):,}",
        num_recommended=f"{(events.behaviors == Behavior.RECOMMENDED_ITEM).sum():,}",
        num_searched=f"{(events.behaviors == Behavior.SEARCHED_ITEM).sum():,}",
        text_columns=", ".join(f"`{name}`" for name in log.text_columns),
        text_columns_python=json.dumps(list(log.text_columns)),
    )
    if arguments.folder:
        export_log(log, arguments.folder, card)
        print(f"Written: {arguments.folder}")
    if arguments.repo_id:
        print(f"Pushed: {push_log(log, arguments.repo_id, card, private=arguments.private)}")


if __name__ == "__main__":
    main(run, __doc__, [prepare_data.SECTION, SECTION])
