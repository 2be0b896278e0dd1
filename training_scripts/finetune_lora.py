"""A finished run's model on newer interactions: LoRA and the rows of the tokens and of new items are trained, no more.

    python training_scripts/finetune_lora.py --output_dir runs/mine --interactions newer.csv --items new_items.csv
    python training_scripts/finetune_lora.py training_scripts/configs/ml-100k-finetune.yaml

New items get identifiers as add_items.py gives them, and what is learned of them counts beside what they borrow. The
newest of the newer interactions are not trained on: the model is asked for their clicks before and after. Without the
two tables those are taken that prepare_data.py kept apart (data.later_share). Writes runs/mine/adapter: the adapter,
which GenSARPipeline.from_pretrained loads, and the figures, finetune.json and finetune.md. The model stays as it is.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from add_items import WarmItems, encode_new_items, extended_table, read_new_items, refuse_known_items, require_finished
from console import main, metrics_unprinted, show_training_bar
from encode_items import EMBEDDINGS_FILE
from finetune_report import markdown_tables, terminal_tables
from prepare_data import LATER_INTERACTIONS, LATER_ITEMS
from rich.console import Console
from sections import Section
from settings import Settings
from stages import (
    COLLABORATIVE,
    DATA,
    FINETUNE,
    MODEL,
    RQVAE,
    SEMANTIC,
    StageReport,
    damage_reported,
    process_rank,
    run_stage,
)
from train_generator import TUNED as TUNED_GENERATOR
from train_generator import example_rows, suit_processor
from transformers import Trainer, set_seed

from gensar_hf.data import InteractionLog
from gensar_hf.errors import InputError
from gensar_hf.evaluation.generator_scorer import GeneratorScorer
from gensar_hf.evaluation.item_groups import evaluate_groups
from gensar_hf.files import atomic_path, last_checkpoint, read_json, write_json
from gensar_hf.generator.adapters import save_adapter
from gensar_hf.generator.newer_data import NewerData
from gensar_hf.generator.packing import ExampleCollator
from gensar_hf.generator.tasks import ExampleSampler
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.pipeline import GenSARPipeline

TUNED = {**TUNED_GENERATOR, "learning_rate": 2e-3, "warmup_steps": 20, "weight_decay": 0.0, "max_steps": 300}
FIGURES = "finetune"


@dataclass
class FinetuneArguments:
    """What is trained on newer interactions, and how the model is asked before and after."""

    name: str = field(default="adapter", metadata={"help": "of the folder in the run's folder."})
    rank: int = field(default=8, metadata={"help": "of the LoRA matrices."})
    alpha: float = field(default=16.0, metadata={"help": "their product counts alpha / rank times."})
    lora_dropout: float = field(default=0.0, metadata={"help": "before the LoRA matrices."})
    test_share: float = field(
        default=0.5, metadata={"help": "share of the newer interactions, the newest, that are asked for instead."}
    )
    part: Literal["test", "validation"] = field(
        default="test",
        metadata={"help": "test, or validation: to choose settings without looking at the newest interactions."},
    )
    max_target_tokens: int = field(default=120, metadata={"help": "response tokens packed into one row (events only)."})
    recent_share: float = field(
        default=0.5, metadata={"help": "share of the training histories that end at the user's last target."}
    )
    num_negatives: int = field(default=99, metadata={"help": "candidates beside the target."})
    max_requests: int = field(default=2000, metadata={"help": "of a task and a group of items; a sample of more."})
    batch_size: int = field(default=64, metadata={"help": "texts per forward pass of the text encoder."})

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise ValueError(f"`test_share` must lie between 0 and 1; got {self.test_share}.")
        if min(self.rank, self.num_negatives, self.max_requests) < 1:
            raise ValueError("`rank`, `num_negatives` and `max_requests` must be at least 1.")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"`name` is the name of a folder; got {self.name!r}.")


SECTION = Section(FINETUNE, FinetuneArguments, lambda: TUNED)


def with_new_items(
    known: IdentifierTable, items_path: Path, run_dir: Path, batch_size: int, seed: int
) -> IdentifierTable:
    """The catalogue with the items of a table, as add_items.py adds them."""
    log = read_new_items(str(items_path), run_dir)
    refuse_known_items(log, known)
    semantic = encode_new_items(log, run_dir, batch_size)
    collaborative = WarmItems.of_run(run_dir).collaborative_map(seed).predict(semantic)
    return extended_table(known, log, semantic, collaborative, run_dir)


def newer_tables(settings: Settings) -> tuple[Path, Path | None]:
    """The tables of newer interactions and of new items.

    Raises:
        InputError: none is named, and the run keeps none.
    """
    if settings.run.interactions:
        return Path(settings.run.interactions), Path(settings.run.items) if settings.run.items else None
    interactions, items = (settings.run_dir / DATA / name for name in (LATER_INTERACTIONS, LATER_ITEMS))
    if not interactions.is_file():
        raise InputError(
            "Name the table of newer interactions with --interactions, and of new items with --items; or make the run "
            "with a share of later interactions, such as --data.later_share 0.2."
        )
    return interactions, items if len(pd.read_parquet(items)) else None


def train(data: NewerData, settings: Settings, folder: Path, checkpoints: Path) -> dict[str, int | float]:
    """Train an adapter and save it with its tokenizer; returns what is noted of it."""
    arguments, training = settings[FINETUNE]
    base_dir = settings.run_dir / MODEL
    tokenizer = GenSARTokenizer.from_pretrained(base_dir)
    tokenizer.attach_identifiers(data.after)
    with damage_reported(base_dir):
        model = GenSARPipeline.from_pretrained(base_dir).model
    suit_processor(training, model, tokenizer.history_encoding)
    set_seed(training.seed)
    num_parameters = model.num_parameters()
    sizes = arguments.rank, arguments.alpha, arguments.lora_dropout
    # From the adapter's folder, so that a run may be moved as a whole.
    with_adapter, base = data.with_adapter(model, os.path.relpath(base_dir, folder), tokenizer, *sizes)
    is_packed = tokenizer.history_encoding == "events"
    sampler = ExampleSampler(
        data.training_log(tokenizer),
        window=tokenizer.max_history_events,
        max_target_tokens=arguments.max_target_tokens if is_packed else 0,
        recent_share=arguments.recent_share,
        seed=training.seed,
        recommend_searched=True,
        item_vectors=getattr(model.config, "num_items", 0) > 0,
    )
    training.output_dir = str(checkpoints)
    rows = example_rows(sampler, training, 1 + tokenizer.max_history_events if is_packed else 0)
    trainer = Trainer(model=with_adapter, args=training, train_dataset=rows, data_collator=ExampleCollator(tokenizer))
    show_training_bar(trainer)
    with metrics_unprinted():
        output = trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    save_adapter(with_adapter, folder, base)
    tokenizer.save_pretrained(folder)
    trained = sum(parameter.numel() for parameter in with_adapter.parameters() if parameter.requires_grad)
    return {
        "parameters": num_parameters,
        "trained_parameters": trained,
        "steps": output.global_step,
        "loss": output.training_loss,
        "known_items": data.num_known,
        "new_items": data.num_marked,
    }


def figures(data: NewerData, run_dir: Path, folder: Path, arguments: FinetuneArguments, seed: int) -> dict[str, Any]:
    """What the model and the model with its adapter answer to the clicks that neither was trained on."""
    before = GenSARPipeline.from_pretrained(run_dir / MODEL)
    before.set_catalogue(data.before)
    scorers = [GeneratorScorer(before, "before"), GeneratorScorer(GenSARPipeline.from_pretrained(folder), "after")]
    numbers = arguments.num_negatives, arguments.max_requests
    result = evaluate_groups(scorers, data.requests, data.item_groups(), data.item_texts, *numbers, seed=seed)
    return {**result, "part": arguments.part}


def run(settings: Settings) -> StageReport:
    """Train the adapter, ask before and after, save and print the figures."""
    run_dir, (arguments, training) = settings.run_dir, settings[FINETUNE]
    require_finished(run_dir)
    if training.max_steps < 1:
        raise InputError(f"`finetune.max_steps` must be at least 1; got {training.max_steps}.")
    tables = newer_tables(settings)

    def work(folder: Path, checkpoints: Path) -> dict:
        interactions_path, items_path = tables
        catalogue = IdentifierTable.load(run_dir / MODEL)
        if items_path is not None:
            catalogue = with_new_items(catalogue, items_path, run_dir, arguments.batch_size, training.seed)
        older = InteractionLog.load(run_dir / DATA).interactions
        is_validation = arguments.part == "validation"
        data = NewerData.of_tables(catalogue, older, interactions_path, arguments.test_share, is_validation)
        details = train(data, settings, folder, checkpoints)
        if process_rank() == 0:
            result = {**figures(data, run_dir, folder, arguments, training.seed), **details}
            write_json(folder / f"{FIGURES}.json", result)
            with atomic_path(folder / f"{FIGURES}.md") as aside:
                aside.write_text(markdown_tables(result), encoding="utf-8")
        return details

    inputs = [arguments, training, *(path for path in tables if path), run_dir / DATA, run_dir / RQVAE, run_dir / MODEL]
    inputs += [run_dir / stage / EMBEDDINGS_FILE for stage in (SEMANTIC, COLLABORATIVE)]
    report = run_stage(run_dir, arguments.name, inputs, work, is_distributed=True)
    console = Console(width=min(120, Console().width) if Console().is_terminal else 120, quiet=process_rank() != 0)
    for table in terminal_tables(read_json(run_dir / arguments.name / f"{FIGURES}.json")):
        console.print(table)
    console.print(f"{run_dir / arguments.name} answers as a model does:", markup=False)
    console.print(f'    GenSARPipeline.from_pretrained("{run_dir / arguments.name}")', markup=False, soft_wrap=True)
    return report


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
