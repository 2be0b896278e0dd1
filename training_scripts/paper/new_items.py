"""Cold-start evaluation: hold items out of all training, add them without training, and rank the clicks on them.

    python training_scripts/paper/new_items.py --config training_scripts/configs/ml-100k-new-items.yaml

Writes new_items.json and new_items.md to OUTPUT_DIR/results.
"""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from gensar_hf import GenSARPipeline, InteractionDataset, train
from gensar_hf.baselines.bm25 import BM25
from gensar_hf.cli import dataset_and_arguments, exit_status, read_settings, set_up_logging, training_parser
from gensar_hf.data.splits import SEARCH
from gensar_hf.evaluation import GeneratorScorer, evaluate_pipeline
from gensar_hf.evaluation.cold_start import catalogue_reach, cold_start_requests, evaluate_groups
from gensar_hf.evaluation.report import cold_start_tables, terminal, write_markdown
from gensar_hf.files import write_json
from gensar_hf.folders import saving


def main() -> None:
    """Train without the held-out items, add them, evaluate, and save the tables."""
    set_up_logging()
    parser = training_parser("new_items.py", "Hold items out of all training, add them, and rank the clicks on them.")
    parser.add_argument("--held_out_items", type=float, default=0.05, help="share of the items.")
    parser.add_argument("--max_requests", type=int, default=1000, help="sample of the requests of each task.")
    parser.add_argument("--max_beam_requests", type=int, default=300, help="sample for the search among all items.")
    settings = read_settings(parser, sys.argv[1:]).as_dict()
    fraction, *samples = (settings.pop(name) for name in ("held_out_items", "max_requests", "max_beam_requests"))
    dataset, args = dataset_and_arguments(settings)
    kept, held_out = dataset.hold_out_items(fraction, seed=args.seed)
    pipe = train(kept, args)
    known = evaluate_pipeline(pipe, kept, num_negatives=args.num_negatives).metrics()["tasks"]
    pipe.add_items(held_out.items)

    is_new = np.isin(dataset.item_ids, held_out.item_ids)
    tasks = {}
    for task, requests in cold_start_requests(dataset, kept).items():
        if not len(requests):
            continue
        systems = [GeneratorScorer(pipe), *([BM25(dataset.item_texts())] if task == SEARCH else [])]
        sizes = args.num_negatives, samples[0]
        groups = evaluate_groups(
            systems, {task: requests}, {"new": is_new}, dataset.item_texts(), *sizes, seed=args.seed, by_item=True
        )
        if "new" not in groups["tasks"][task]:  # nobody has an item left for a negative
            continue
        sample = np.random.default_rng(args.seed).permutation(len(requests))[: samples[1]]
        tasks[task] = {
            **groups["tasks"][task]["new"],
            "known_items": known[task]["systems"]["GenSAR"] if task in known else None,
            "whole_catalogue": {"New items": catalogue_reach(pipe, requests.subset(sample), held_out.item_ids)},
        }
    sizes = {"num_known_items": len(kept.items), "num_new_items": len(held_out.items)}
    result = {**sizes, "titles": found_by_title(pipe, held_out), "tasks": tasks}
    folder = Path(args.output_dir) / "results"
    with saving(folder) as aside:
        write_json(aside / "new_items.json", result)
        write_markdown(aside / "new_items.md", cold_start_tables(result))
    Console(width=120).print(terminal(cold_start_tables(result)))


def found_by_title(pipe: GenSARPipeline, new: InteractionDataset) -> dict[str, float]:
    """How often a new item is the first, or among the first ten, when its title is searched for."""
    titles = pipe.items.set_index("item_id").loc[new.item_ids, "title"].tolist()
    answers = pipe.search(titles, top_k=10)
    found = [[answer["item_id"] for answer in own] for own in answers]
    pairs = list(zip(found, new.item_ids, strict=True))
    return {f"HR@{k}": float(np.mean([item_id in own[:k] for own, item_id in pairs])) for k in (1, 10)}


if __name__ == "__main__":
    sys.exit(exit_status(main))
