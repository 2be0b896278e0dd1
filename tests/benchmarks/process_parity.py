"""Whether a training is the same in one process, in two, and with accumulated gradients: the loss of every step.

    python tests/benchmarks/process_parity.py --output_dir results/process_parity

Each way makes steps of the same number of rows from a seeded log: one batch, one batch in each of two processes
(`torchrun`, gloo), or two batches one after another. Dropout is off, because its draws differ. What is left is the
rounding of sums in another order. Sinkhorn's balance and moving averages are of one batch over all processes, so they
are not the same for two batches one after another, and are compared over processes alone.

The control is one process again, with a learning rate that is a millionth larger: how far a training goes from its way
when its weights differ in their last digits from the first step on.
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from gensar_hf.data import Behavior, UserEvents
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import next_item_trainer
from gensar_hf.epoch_rows import rows_per_step
from gensar_hf.files import read_json, write_json
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.initialization import generator_from_scratch
from gensar_hf.generator.packing import ExampleCollator, ExampleRows
from gensar_hf.generator.tasks import DEFAULT_TASK_WEIGHTS, ExampleSampler, TrainingExamples
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

ONE, TWO, ACCUMULATED, CONTROL = "one process", "two processes", "accumulated", "control"
NUM_USERS, NUM_ITEMS, NUM_CLICKS, NUM_QUERIES = 50, 200, 24, 20
NUM_PROCESSES = 2
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(NUM_PROCESSES))


@dataclass(frozen=True)
class Way:
    """How a step's rows are divided: in how many processes, and in how many batches of each."""

    num_processes: int = 1
    num_batches: int = 1
    learning_rate_factor: float = 1.0


WAYS = {
    ONE: Way(),
    TWO: Way(num_processes=NUM_PROCESSES),
    ACCUMULATED: Way(num_batches=2),
    CONTROL: Way(learning_rate_factor=1 + 1e-6),
}


class StepLosses(TrainerCallback):
    """Notes what a `Trainer` logs after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Note the loss, the mean over all processes."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def make_events(seed: int) -> UserEvents:
    """Users who mostly click the next item, every fifth click after a search, histories of different lengths."""
    rng = np.random.default_rng(seed)
    behaviors, items, queries, offsets = [], [], [], [0]
    for _ in range(NUM_USERS):
        item = int(rng.integers(NUM_ITEMS))
        for _ in range(int(rng.integers(3, NUM_CLICKS))):
            item = (item + 1) % NUM_ITEMS if rng.random() < 0.8 else int(rng.integers(NUM_ITEMS))
            query = item % NUM_QUERIES if rng.random() < 0.2 else -1
            if query >= 0:
                behaviors.append(Behavior.SEARCH_QUERY)
                items.append(-1)
                queries.append(query)
            behaviors.append(Behavior.RECOMMENDED_ITEM if query < 0 else Behavior.SEARCHED_ITEM)
            items.append(item)
            queries.append(query)
        offsets.append(len(items))
    return UserEvents(
        user_ids=[f"user {row}" for row in range(NUM_USERS)],
        item_ids=[f"item {row}" for row in range(NUM_ITEMS)],
        query_texts=[f"kind {row}" for row in range(NUM_QUERIES)],
        offsets=np.array(offsets),
        behaviors=np.array(behaviors, dtype=np.int8),
        items=np.array(items),
        queries=np.array(queries),
        timestamps=np.arange(len(items), dtype=np.float64),
    )


def make_identifiers() -> IdentifierTable:
    """Two shared and two specific levels of eight codes; texts of different lengths."""
    rows = np.arange(NUM_ITEMS)
    shared = np.stack([rows // 32, rows // 4 % 8], axis=1)
    semantic = np.column_stack([shared, rows % 4, rows % 8])
    collaborative = np.column_stack([shared, 7 - rows % 4, rows % 8])
    texts = [f"kind {row % NUM_QUERIES} " + "very " * (row % 5) + f"good {row}" for row in rows]
    return IdentifierTable([f"item {row}" for row in rows], semantic, collaborative, 2, 8, texts, texts)


def train_generator(training: TrainingArguments, losses: StepLosses, history_encoding: str) -> None:
    """GenSAR, with item vectors where an event is a position."""
    events, identifiers = make_events(training.seed), make_identifiers()
    tokenizer = GenSARTokenizer.train_from_texts(
        [*(identifiers.texts or []), *events.query_texts],
        identifiers,
        vocab_size=120,
        history_encoding=history_encoding,
    )
    is_packed = history_encoding == "events"
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    items = {"num_items": NUM_ITEMS * is_packed, "item_dropout": 0.0, "dropout_rate": 0.0}
    model = generator_from_scratch(GenSARConfig(**sizes, **items), tokenizer)
    log = TrainingExamples(tokenizer, events, events.offsets[1:], identifiers.texts)
    sampler = ExampleSampler(
        log, DEFAULT_TASK_WEIGHTS, 20, max_target_tokens=60 * is_packed, seed=training.seed, item_vectors=is_packed
    )
    step_size = rows_per_step(training)
    rows = ExampleRows(sampler, training.max_steps * step_size, 20 * is_packed, step_size)
    training.remove_unused_columns, training.train_sampling_strategy = False, "sequential"
    collator = ExampleCollator(tokenizer)
    Trainer(model, training, train_dataset=rows, data_collator=collator, callbacks=[losses]).train()


def train_sasrec(training: TrainingArguments, losses: StepLosses) -> None:
    """SASRec, on windows of different lengths."""
    events = make_events(training.seed)
    clicks = [events.items[start:end] for start, end in zip(events.offsets[:-1], events.offsets[1:], strict=True)]
    model = SASRecModel(SASRecConfig(num_items=NUM_ITEMS, hidden_size=32, max_length=8, dropout=0.0))
    training.train_sampling_strategy = "group_by_length"
    next_item_trainer(model, [items[items >= 0] for items in clicks], training, [losses]).train()


def train_rqvae(training: TrainingArguments, losses: StepLosses, **settings: Any) -> None:
    """The joint RQ-VAE, with dead codes that are reset, on epochs whose last step is not a whole one.

    With fewer rows than codes Sinkhorn's plan would be all but tied between codes, and rounding would decide.
    """
    rng = np.random.default_rng(training.seed)
    latents = rng.standard_normal((NUM_ITEMS, 4))
    tables = [np.tanh(latents @ rng.standard_normal((4, dim))).astype(np.float32) for dim in (24, 16)]
    sizes = {"semantic_dim": 24, "collaborative_dim": 16, "latent_dim": 8, "hidden_sizes": (32,), "codebook_size": 8}
    model = JointRQVAE(JointRQVAEConfig(**{**sizes, "dead_code_threshold": 2, **settings}))
    train_joint_rqvae(model, *tables, training, callbacks=[losses])


TRAININGS: dict[str, tuple[Callable[[TrainingArguments, StepLosses], None], tuple[str, ...]]] = {
    "GenSAR": (lambda *given: train_generator(*given, "events"), (TWO, ACCUMULATED)),
    "GenSAR, a token a position": (lambda *given: train_generator(*given, "tokens"), (TWO, ACCUMULATED)),
    "SASRec": (train_sasrec, (TWO, ACCUMULATED)),
    "joint RQ-VAE": (lambda *given: train_rqvae(*given, sinkhorn_epsilon=0.0, codebook_size=32), (TWO, ACCUMULATED)),
    "joint RQ-VAE, Sinkhorn": (train_rqvae, (TWO,)),
    "joint RQ-VAE, moving averages": (lambda *given: train_rqvae(*given, sinkhorn_epsilon=0.0, ema_decay=0.9), (TWO,)),
}
"""Name → what trains it, and the ways that must do what one process does."""


def step_losses(name: str, way: str, arguments: argparse.Namespace) -> list[float]:
    """Train in this process, one of the way's processes; the loss of every step."""
    division = WAYS[way]
    training = TrainingArguments(
        output_dir=str(arguments.output_dir / "trainer"),
        per_device_train_batch_size=arguments.rows // (division.num_processes * division.num_batches),
        gradient_accumulation_steps=division.num_batches,
        max_steps=arguments.steps,
        learning_rate=arguments.learning_rate * division.learning_rate_factor,
        optim=arguments.optim,
        seed=arguments.seed,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    if training.world_size != division.num_processes:
        raise RuntimeError(f"'{way}' needs {division.num_processes} processes, but there are {training.world_size}.")
    set_seed(training.seed)
    losses = StepLosses()
    with contextlib.redirect_stdout(io.StringIO()):  # what Trainer prints at each log
        TRAININGS[name][0](training, losses)
    return losses.losses


def train_here(way: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """All trainings that are compared this way, in this process; name → losses."""
    names = [name for name, (_, ways) in TRAININGS.items() if way in (ONE, CONTROL, *ways)]
    return {name: step_losses(name, way, arguments) for name in names}


def train_apart(way: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The same in processes of their own, the first of which writes the losses."""
    options = [text for name, value in vars(arguments).items() if name != "way" for text in (f"--{name}", str(value))]
    launcher = TORCHRUN if WAYS[way].num_processes > 1 else ()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, __file__, *options, "--way", way], check=True, env=environment)
    path = arguments.output_dir / f"{way}.json"
    losses = read_json(path)
    path.unlink()
    return losses


def measure(
    arguments: argparse.Namespace,
    train: Callable[[str, argparse.Namespace], dict[str, list[float]]] = train_apart,
    ways: Sequence[str] = tuple(WAYS),
) -> dict[str, dict[str, list[float]]]:
    """Training → way → the loss of every step."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in TRAININGS}
    for way in tqdm(ways, desc="ways"):
        for name, losses in train(way, arguments).items():
            results[name][way] = losses
    return results


def largest_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Of two curves, in any step.

    >>> largest_difference([3.0, 2.0, 1.0], [3.0, 2.5, 0.75])
    0.5
    """
    if len(losses) != len(others):
        raise ValueError(f"One training logged {len(losses)} steps, the other {len(others)}.")
    return max(abs(one - other) for one, other in zip(losses, others, strict=True))


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown."""
    others = [way for way in WAYS if way != ONE]
    lines = [
        "| largest difference to one process | steps | loss, first → last | " + " | ".join(others) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(others),
    ]
    for name, by_way in results.items():
        whole = by_way[ONE]
        cells = [f"{largest_difference(whole, by_way[way]):.1e}" if way in by_way else "" for way in others]
        lines.append(f"| {name} | {len(whole)} | {whole[0]:.3f} → {whole[-1]:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel a training: the curves of all ways, one over the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    for axis, (name, by_way) in zip(figure.subplots(2, 3).flat, results.items(), strict=True):
        for (way, losses), style in zip(by_way.items(), ("-", "--", ":", "-."), strict=False):
            axis.plot(range(1, len(losses) + 1), losses, style, linewidth=2, label=way)
        axis.set(title=name, xlabel="step", ylabel="loss")
        axis.legend()
    figure.savefig(path, dpi=110)


def report(arguments: argparse.Namespace, results: dict[str, dict[str, list[float]]]) -> None:
    """JSON, table and figure."""
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output_dir", "way")}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.output_dir / "process_parity.json",
        {"settings": settings | {"torch": torch.__version__}, "losses": results},
    )
    (arguments.output_dir / "process_parity.md").write_text(table(results), encoding="utf-8")
    draw(results, arguments.output_dir / "process_parity.png")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=32, help="rows of a step, over all batches and processes")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--optim", default="adamw_torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=list(WAYS), help="one way alone, whose processes are running already")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, save, print; or be one of a way's processes."""
    arguments = parse_arguments(argv)
    if arguments.way:
        losses = train_here(arguments.way, arguments)
        if os.environ.get("RANK", "0") == "0":
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(arguments.output_dir / f"{arguments.way}.json", losses)
        return
    results = measure(arguments)
    shutil.rmtree(arguments.output_dir / "trainer")
    report(arguments, results)
    print(table(results))


if __name__ == "__main__":
    main()
