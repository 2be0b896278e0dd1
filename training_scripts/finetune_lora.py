"""A finished run's model on newer interactions: LoRA and the rows of the tokens and of new items are trained, no more.

    python training_scripts/finetune_lora.py --output_dir runs/mine --interactions newer.csv --items new_items.csv
    python training_scripts/finetune_lora.py training_scripts/configs/ml-100k-finetune.yaml

New items get identifiers as add_items.py gives them. The newest of the newer interactions are not trained on: the model
is asked for their clicks before and after. Without the two tables those are taken that prepare_data.py kept apart
(data.later_share). Writes runs/mine/adapter: the adapter, which GenSARPipeline.from_pretrained loads, and the figures,
finetune.json and finetune.md. The model stays as it is.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
from train_generator import suit_processor
from transformers import AutoModelForSeq2SeqLM, Trainer, TrainingArguments, set_seed

from gensar_hf.artifacts import DataError, last_checkpoint, read_json, write_json, written_aside
from gensar_hf.data import (
    EventLog,
    InteractionLog,
    Requests,
    append_log,
    cut_in_time,
    events_from_log,
    load_log,
    newer_starts,
)
from gensar_hf.evaluation.generator_scorer import GeneratorScorer
from gensar_hf.evaluation.item_groups import evaluate_groups
from gensar_hf.generator.adapters import AdapterBase, add_adapter, grow_to, lora_config, save_adapter
from gensar_hf.generator.packing import ExampleCollator, ExampleRows
from gensar_hf.generator.tasks import ExampleSampler, TrainingLog
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


@dataclass(frozen=True)
class NewerData:
    """A run's log gone on, over the catalogue with its new items.

    Attributes:
        log, events: older and newer interactions.
        starts: `(num_users,)`, where each user's newer events begin.
        train_ends: `(num_users,)`, where those begin that are not trained on.
        requests: task → their clicks.
        before: the catalogue with new items that borrow.
        after: the same, in which those new items that training sees clicked count as trained.
    """

    log: InteractionLog
    events: EventLog
    starts: np.ndarray
    train_ends: np.ndarray
    requests: dict[str, Requests]
    before: IdentifierTable
    after: IdentifierTable

    @classmethod
    def of_run(cls, run_dir: Path, tables: tuple[Path, Path | None], arguments: FinetuneArguments, seed: int) -> Any:
        """Read the newer tables, add the new items, and cut the newer interactions in time."""
        interactions_path, items_path = tables
        known = IdentifierTable.load(run_dir / MODEL)
        before = known if items_path is None else with_new_items(known, items_path, run_dir, arguments, seed)
        newer = load_log(items_frame(before), interactions_path, ["text"])
        times = newer.interactions["timestamp"]
        cuts = [latest_share(times, arguments.test_share)] * 2
        if arguments.part == "validation":
            cuts[0] = latest_share(times[times < cuts[1]], arguments.test_share)
        borrowing = before.item_ids[before.num_trained :]
        after = before.mark_trained(sorted(set(borrowing) & set(newer.interactions["item_id"][times < cuts[0]])))
        rows = InteractionLog.load(run_dir / DATA).interactions
        older = InteractionLog(items_frame(after), rows, ("text",))
        log = append_log(older, replace(newer, items=older.items[:0]))
        events = events_from_log(log)
        starts = newer_starts(older, newer, events)
        split = cut_in_time(events, *cuts)
        held_out = getattr(split, arguments.part)
        requests = {task: part.subset(part.targets >= starts[part.users]) for task, part in held_out.items()}
        return cls(log, events, starts, split.train_ends, requests, before, after)

    def groups(self) -> dict[str, tuple[int, int]]:
        """Kinds of items and their rows of the catalogue."""
        bounds = [0, self.before.num_trained, self.after.num_trained, self.after.num_items]
        names = ("known items", "new items", "new items without clicks")
        return dict(zip(names, pairwise(bounds), strict=True))


def latest_share(times: pd.Series, share: float) -> float:
    """The moment at which the latest share of some times begins."""
    in_order = np.sort(times.to_numpy())
    if len(in_order) < 2:
        raise DataError("There are too few newer interactions to train on some and ask for others; give more of them.")
    return float(in_order[min(max(round((1 - share) * len(in_order)), 1), len(in_order) - 1)])


def items_frame(table: IdentifierTable) -> pd.DataFrame:
    """Ids and texts of a catalogue.

    Raises:
        DataError: it holds no texts.
    """
    texts = table.texts or table.titles
    if texts is None:
        raise DataError("The model's identifiers.parquet holds no texts of the items; train the run again.")
    return pd.DataFrame({"item_id": table.item_ids, "text": texts})


def with_new_items(
    known: IdentifierTable, items_path: Path, run_dir: Path, arguments: FinetuneArguments, seed: int
) -> IdentifierTable:
    """The catalogue with the items of a table, as add_items.py adds them."""
    log = read_new_items(str(items_path), run_dir)
    refuse_known_items(log, known)
    semantic = encode_new_items(log, run_dir, arguments.batch_size)
    collaborative = WarmItems.of_run(run_dir).collaborative_map(seed).predict(semantic)
    return extended_table(known, log, semantic, collaborative, run_dir)


def newer_tables(settings: Settings) -> tuple[Path, Path | None]:
    """The tables of newer interactions and of new items.

    Raises:
        DataError: none is named, and the run keeps none.
    """
    if settings.run.interactions:
        return Path(settings.run.interactions), Path(settings.run.items) if settings.run.items else None
    interactions, items = (settings.run_dir / DATA / name for name in (LATER_INTERACTIONS, LATER_ITEMS))
    if not interactions.is_file():
        raise DataError(
            "Name the table of newer interactions with --interactions, and of new items with --items; or make the run "
            "with a share of later interactions, such as --data.later_share 0.2."
        )
    return interactions, items if len(pd.read_parquet(items)) else None


def train(data: NewerData, settings: Settings, folder: Path, checkpoints: Path) -> dict[str, int | float]:
    """Train an adapter and save it with its tokenizer; returns what `stage.json` notes of it."""
    arguments, training = settings[FINETUNE]
    base_dir = settings.run_dir / MODEL
    tokenizer = GenSARTokenizer.from_pretrained(base_dir)
    tokenizer.attach_identifiers(data.after)
    with damage_reported(base_dir):
        model = AutoModelForSeq2SeqLM.from_pretrained(base_dir)
    learned = data.after.item_ids[data.before.num_trained : data.after.num_trained]
    has_vectors = model.config.num_items > 0
    places = np.array([data.before.index_of(item_id) for item_id in learned], dtype=np.int64) - data.before.num_trained
    lenders = data.before.lenders[places] if has_vectors and len(learned) else None
    base = AdapterBase.of(model, str(base_dir), lenders=lenders)
    suit_processor(training, model, tokenizer.history_encoding)
    set_seed(training.seed)
    grow_to(model, base)
    item_rows = range(data.before.num_trained, data.after.num_trained) if has_vectors else ()
    config = lora_config(
        model, tokenizer.code_token_ids, arguments.rank, arguments.alpha, arguments.lora_dropout, item_rows=item_rows
    )
    with_adapter = add_adapter(model, config)
    rows = example_rows(data, tokenizer, arguments, training, has_vectors)
    training.output_dir = str(checkpoints)
    trainer = Trainer(model=with_adapter, args=training, train_dataset=rows, data_collator=ExampleCollator(tokenizer))
    show_training_bar(trainer)
    with metrics_unprinted():
        output = trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    save_adapter(with_adapter, folder, base)
    tokenizer.save_pretrained(folder)
    trained = sum(parameter.numel() for parameter in with_adapter.parameters() if parameter.requires_grad)
    return {"trained parameters": trained, "steps": output.global_step, "loss": output.training_loss}


def example_rows(
    data: NewerData,
    tokenizer: GenSARTokenizer,
    arguments: FinetuneArguments,
    training: TrainingArguments,
    vectors: bool,
) -> ExampleRows:
    """Examples whose targets are newer events; older ones are read."""
    is_packed = tokenizer.history_encoding == "events"
    log = TrainingLog(tokenizer, data.events, data.train_ends, data.log.item_texts(), data.starts)
    sampler = ExampleSampler(
        log,
        window=tokenizer.max_history_events,
        max_target_tokens=arguments.max_target_tokens if is_packed else 0,
        recent_share=arguments.recent_share,
        seed=training.seed,
        recommend_searched=True,
        item_vectors=vectors,
    )
    rows_per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    is_sorted = training.gradient_accumulation_steps > 1 and training.train_sampling_strategy == "sequential"
    max_positions = 1 + tokenizer.max_history_events if is_packed else 0
    return ExampleRows(sampler, training.max_steps * rows_per_step, max_positions, rows_per_step if is_sorted else 1)


def figures(data: NewerData, run_dir: Path, folder: Path, arguments: FinetuneArguments, seed: int) -> dict[str, Any]:
    """What the model and the model with its adapter answer to the clicks that neither was trained on."""
    before = GenSARPipeline.from_pretrained(run_dir / MODEL)
    before.set_catalogue(data.before)
    scorers = [GeneratorScorer(before, "before"), GeneratorScorer(GenSARPipeline.from_pretrained(folder), "after")]
    texts, numbers = data.log.item_texts(), (arguments.num_negatives, arguments.max_requests)
    result = evaluate_groups(scorers, data.requests, data.groups(), texts, *numbers, seed=seed)
    return {**result, "part": arguments.part}


def run(settings: Settings) -> StageReport:
    """Train the adapter, ask before and after, save and print the figures."""
    run_dir, (arguments, training) = settings.run_dir, settings[FINETUNE]
    require_finished(run_dir)
    tables = newer_tables(settings)

    def work(folder: Path, checkpoints: Path) -> dict:
        data = NewerData.of_run(run_dir, tables, arguments, training.seed)
        details = train(data, settings, folder, checkpoints)
        if process_rank() == 0:
            result = figures(data, run_dir, folder, arguments, training.seed)
            write_json(folder / f"{FIGURES}.json", result)
            with written_aside(folder / f"{FIGURES}.md") as aside:
                aside.write_text(markdown_tables(result), encoding="utf-8")
        num_new = data.after.num_trained - data.before.num_trained
        return {**details, "new items": num_new}

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
