"""Cold-start evaluation: hold items out of all training, add them without training, and rank the clicks on them.

    python training_scripts/paper/new_items.py --items items.csv --interactions interactions.csv \
        --held_out_items 0.05 --output_dir runs/new-items

Writes new_items.json and new_items.md to the output folder.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from transformers import HfArgumentParser

from gensar_hf.baselines.bm25 import BM25
from gensar_hf.data import InteractionDataset
from gensar_hf.data.splits import SEARCH
from gensar_hf.evaluation import GeneratorScorer, evaluate_pipeline
from gensar_hf.evaluation.cold_start import catalogue_reach, cold_start_requests, evaluate_groups
from gensar_hf.evaluation.report import cold_start_tables, markdown, terminal
from gensar_hf.files import atomic_path, write_json
from gensar_hf.training import GenSARTrainingArguments, train


@dataclass
class NewItemsArguments:
    """Data and sizes of the samples."""

    items: str = field(metadata={"help": "items table."})
    interactions: str = field(metadata={"help": "interactions table."})
    search_fraction: float = field(default=0.0, metadata={"help": "share of clicks that become search clicks."})
    held_out_items: float = field(default=0.05, metadata={"help": "share of the items that are held out."})
    max_requests: int = field(default=1000, metadata={"help": "sample of the requests of each task."})
    max_beam_requests: int = field(default=300, metadata={"help": "sample for the search in the whole catalogue."})
    num_negatives: int = field(default=99, metadata={"help": "candidates per request, without the target."})


def main() -> None:
    """Train without the held-out items, add them, evaluate, and save the tables."""
    arguments, training = HfArgumentParser((NewItemsArguments, GenSARTrainingArguments)).parse_args_into_dataclasses()
    dataset = InteractionDataset(
        arguments.items, arguments.interactions, search_fraction=arguments.search_fraction, seed=training.seed
    )
    kept, held_out = dataset.hold_out_items(arguments.held_out_items, seed=training.seed)
    pipe = train(kept, training)
    known = evaluate_pipeline(pipe, kept, num_negatives=arguments.num_negatives).metrics()["tasks"]
    pipe.add_items(held_out.items)

    is_new = np.isin(dataset.item_ids, held_out.item_ids)
    tasks = {}
    for task, requests in cold_start_requests(dataset, kept).items():
        if not len(requests):
            continue
        systems = [GeneratorScorer(pipe), *([BM25(dataset.item_texts())] if task == SEARCH else [])]
        sizes = arguments.num_negatives, arguments.max_requests
        groups = evaluate_groups(
            systems, {task: requests}, {"new": is_new}, dataset.item_texts(), *sizes, seed=training.seed, by_item=True
        )
        sample = np.random.default_rng(training.seed).permutation(len(requests))[: arguments.max_beam_requests]
        tasks[task] = {
            **groups["tasks"][task]["new"],
            "known_items": known[task]["systems"]["GenSAR"] if task in known else None,
            "whole_catalogue": {"New items": catalogue_reach(pipe, requests.subset(sample), held_out.item_ids)},
        }
    result = {"num_known_items": len(kept.items), "num_new_items": len(held_out.items), "tasks": tasks}
    folder = Path(training.output_dir)
    write_json(folder / "new_items.json", result)
    with atomic_path(folder / "new_items.md") as aside:
        aside.write_text(markdown(cold_start_tables(result)), encoding="utf-8")
    Console().print(terminal(cold_start_tables(result)))


if __name__ == "__main__":
    main()
