"""Train on the earlier interactions, continue with LoRA on newer ones and new items, and compare before and after.

    python training_scripts/finetune.py --config training_scripts/configs/ml-100k-finetune.yaml
    python training_scripts/finetune.py --items items.csv --interactions clicks.csv --output_dir runs/mine

The model before and after answers the newest clicks, which are not trained on. OUTPUT_DIR/adapter loads as a model.
"""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from gensar_hf import GenSARPipeline, GenSARTrainer, GenSARTrainingArguments, InteractionDataset, train
from gensar_hf.cli import dataset_and_arguments, exit_status, read_settings, set_up_logging, training_parser
from gensar_hf.evaluation import GeneratorScorer
from gensar_hf.evaluation.cold_start import evaluate_groups
from gensar_hf.evaluation.report import group_tables, terminal, write_markdown
from gensar_hf.files import write_json
from gensar_hf.folders import refuse_foreign, saving
from gensar_hf.training.stages import MODEL

RESULT_FILES = ("finetune.json", "finetune.md")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "identifiers.parquet")
LORA = {"max_steps": 300, "lora_rank": 8, "learning_rate": 2e-3, "warmup_steps": 20, "weight_decay": 0.0}


def split(dataset: InteractionDataset, later_share: float, newest_share: float, held_out_items: float) -> Any:
    """The earlier interactions, without a random share of the items; newer ones to train on; the newest ones."""
    earlier, _ = dataset.split_by_time(later_share)
    is_newer = dataset.interactions["timestamp"] > earlier.interactions["timestamp"].max()
    rows = dataset.interactions[is_newer].reset_index(drop=True)
    if held_out_items:
        earlier, _ = earlier.hold_out_items(held_out_items)
    later = InteractionDataset.from_checked(dataset.items, rows, dataset.text_columns, split="none", history=earlier)
    newer, newest = later.split_by_time(newest_share)
    return earlier, newer, newest.with_split("held_out")


def main() -> None:
    """Train, continue, evaluate, save."""
    set_up_logging()
    parser = training_parser("finetune.py", "Train on earlier interactions, continue on newer ones.")
    parser.add_argument("--later_share", type=float, default=0.2, help="share of the rows, the later ones.")
    parser.add_argument("--newest_share", type=float, default=0.5, help="share of these that is not trained on.")
    parser.add_argument("--held_out_items", type=float, default=0.0, help="share of the items that enter later.")
    parser.add_argument("--max_requests", type=int, default=1000, help="of a task and a group of items, a sample.")
    parser.add_argument("--finetune", type=dict, default={}, help="settings of the second training.")
    settings = read_settings(parser, sys.argv[1:]).as_dict()
    shares = [settings.pop(name) for name in ("later_share", "newest_share", "held_out_items")]
    max_requests, tuned = settings.pop("max_requests"), {**LORA, **settings.pop("finetune")}
    dataset, args = dataset_and_arguments(settings)
    earlier, newer, newest = split(dataset, *shares)
    folder = Path(args.output_dir) / "adapter"
    refuse_foreign(folder, [*RESULT_FILES, *ADAPTER_FILES])
    train(earlier, args)

    is_new = ~newest.items["item_id"].isin(earlier.item_ids).to_numpy()
    before, after = (GenSARPipeline.from_pretrained(Path(args.output_dir) / MODEL) for _ in range(2))
    for pipe in (before, after):
        pipe.add_items(newest.items[is_new])
    trainer = GenSARTrainer(after, GenSARTrainingArguments(str(folder), seed=args.seed, **tuned), newer)
    trainer.train()
    trainer.save_model()

    is_clicked = newest.items["item_id"].isin(newer.interactions["item_id"]).to_numpy()
    groups = {"known items": ~is_new, "new items": is_new & is_clicked}
    groups["new items without clicks"] = is_new & ~is_clicked
    systems = [GeneratorScorer(before, "before"), GeneratorScorer(GenSARPipeline.from_pretrained(folder), "after")]
    sizes = args.num_negatives, max_requests, args.seed
    result = evaluate_groups(systems, newest.split.test, groups, newest.item_texts(), *sizes)
    with saving(folder) as aside:
        write_json(aside / RESULT_FILES[0], result)
        write_markdown(aside / RESULT_FILES[1], group_tables(result))
    Console(width=120).print(terminal(group_tables(result)), f"The adapter and its results are in {folder}.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
