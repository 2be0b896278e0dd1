"""What a training step costs by the number of items: `python tests/benchmarks/catalogue_scale.py --output_dir DIR`.

    python tests/benchmarks/catalogue_scale.py --models sasrec --sizes 12000 63000
    python tests/benchmarks/catalogue_scale.py --sizes 62883 --users 192403 --clicks 2348837
    python tests/benchmarks/catalogue_scale.py --items items.parquet --interactions clicks.parquet

SASRec and the generator train for some steps with the default settings, each size in a process of its own, one thread.
Printed are the CPU seconds of the start (of the model and its trainer, without the log), the median CPU seconds of a
step, its ratio to the smallest catalogue, and the peak resident memory of the process. The log is made up: by default
40,000 users with 400,000 clicks, a half of them after a query, in catalogues of different sizes. Embeddings and
identifiers are random, since only the costs are measured.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SIZES, MODELS = (12_000, 20_000, 63_000, 250_000, 1_000_000), ("sasrec", "generator")
COLUMNS = {"start_s": 1, "first_step_s": 1, "step_s": 3, "peak_gib": 2}  # and their digits
NUM_USERS, NUM_CLICKS, NUM_WORDS, NUM_CATEGORIES, DIM = 40_000, 400_000, 20_000, 500, 384


def make_log(
    num_items: int, num_users: int = NUM_USERS, num_clicks: int = NUM_CLICKS, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items of a Zipf popularity with titles of a Zipf vocabulary, and interactions."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(NUM_WORDS)], dtype=object)
    words = vocabulary[zipf(rng, NUM_WORDS, num_items * 6)].reshape(num_items, 6)
    category = rng.integers(0, NUM_CATEGORIES, num_items)
    names = np.array([f"{vocabulary[-1 - n]} {vocabulary[n + 50]}" for n in range(NUM_CATEGORIES)], dtype=object)
    item_ids = np.array([f"item{number:07d}" for number in range(num_items)], dtype=object)
    titles = [" ".join(row) for row in words]
    items = pd.DataFrame({"item_id": item_ids, "title": titles, "categories": names[category]})
    clicked = zipf(rng, num_items, num_clicks)
    interactions = pd.DataFrame(
        {
            "user_id": np.char.add("user", (rng.integers(0, num_users, num_clicks)).astype(str)),
            "item_id": item_ids[clicked],
            "timestamp": np.arange(num_clicks),
            "query": np.where(rng.random(num_clicks) < 0.5, names[category[clicked]], None),
        }
    )
    return items, interactions


def zipf(rng: np.random.Generator, number: int, size: int) -> np.ndarray:
    """Ranks from 0 to `number - 1`, each with a probability of about 1 / rank."""
    return np.minimum(number ** rng.random(size), number).astype(np.int64) - 1


def measure(model: str, items: Path, interactions: Path, num_steps: int) -> dict[str, float]:
    """Train in this process."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
            times.append(time.process_time())

        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            times.append(time.process_time())

    from gensar_hf import InteractionDataset

    dataset = InteractionDataset(items, interactions)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = (sasrec_trainer if model == "sasrec" else generator_trainer)(dataset, folder, num_steps)
        trainer.add_callback(Clock())
        trainer.train()
    steps = np.diff(times[1:])  # the first one makes the caches
    return {
        "items": len(dataset.item_ids),
        "start_s": times[0] - start,
        "first_step_s": times[1] - times[0],
        "step_s": float(np.median(steps)),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def sasrec_trainer(dataset: Any, folder: str, num_steps: int) -> Any:
    """As the stage `collaborative` trains."""
    from transformers import set_seed

    from gensar_hf.embeddings.modeling_sasrec import SASRecModel
    from gensar_hf.embeddings.sasrec_training import next_item_trainer, sasrec_training_arguments
    from gensar_hf.training_defaults import machine_defaults

    events, split = dataset.events, dataset.split
    windows = zip(events.offsets[:-1], split.train_ends, strict=True)
    histories = [items[items >= 0] for items in (events.items[start:end] for start, end in windows)]
    set_seed(0)
    model = SASRecModel(settings(folder).sasrec(events.num_items))
    training = sasrec_training_arguments(
        folder, max_steps=num_steps, logging_strategy="no", disable_tqdm=True, **machine_defaults()
    )
    return next_item_trainer(model, histories, training)


def generator_trainer(dataset: Any, folder: str, num_steps: int) -> Any:
    """As the stage `model` trains."""
    from transformers import set_seed

    from gensar_hf.embeddings.text_encoder import TextEncoder
    from gensar_hf.generator.initialization import start_item_vectors
    from gensar_hf.identifiers import IdentifierTable
    from gensar_hf.pipeline import GenSARPipeline
    from gensar_hf.training.stages import new_generator
    from gensar_hf.training.trainer import GenSARTrainer

    class RandomEncoder(TextEncoder):
        def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
            return random_embeddings(len(texts), DIM)

    set_seed(0)
    args, num_items = settings(folder, num_steps), len(dataset.item_ids)
    codes = np.random.default_rng(0).choice(256**4, num_items, replace=False)
    codes = np.stack([codes // 256**level % 256 for level in range(4)], axis=1)
    table = IdentifierTable(dataset.item_ids, codes, codes, 2, 256, titles=dataset.titles, texts=dataset.item_texts())
    embeddings = [random_embeddings(num_items, DIM), random_embeddings(num_items, 64)]
    tokenizer, model = new_generator(dataset, args, table, embeddings[0], RandomEncoder(None))
    clicked = dataset.events.items[dataset.events.items >= 0]
    start_item_vectors(model, embeddings, np.bincount(clicked, minlength=num_items))
    return GenSARTrainer(GenSARPipeline(model, tokenizer), args, dataset)


def random_embeddings(num_rows: int, dim: int) -> np.ndarray:
    """`(num_rows, dim)` float32 rows of length 1."""
    rows = np.random.default_rng(num_rows).standard_normal((num_rows, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def settings(folder: str, num_steps: int = -1) -> Any:
    """The default settings."""
    from gensar_hf import GenSARTrainingArguments

    return GenSARTrainingArguments(
        folder, text_encoder=None, max_steps=num_steps, save_strategy="no", logging_strategy="no", disable_tqdm=True
    )


def in_own_process(model: str, items: Path, interactions: Path, num_steps: int) -> dict[str, float] | None:
    """`measure` in another process; None if it died."""
    command = [sys.executable, __file__, "--child", model, "--items", str(items), "--interactions", str(interactions)]
    process = subprocess.run(
        [*command, "--steps", str(num_steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return json.loads(process.stdout.splitlines()[-1]) if process.returncode == 0 else None


def main() -> None:
    """One line a model and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="items of the made-up catalogues")
    parser.add_argument("--users", type=int, default=NUM_USERS)
    parser.add_argument("--clicks", type=int, default=NUM_CLICKS)
    parser.add_argument("--items", type=Path, help="a table of items, in place of the made-up ones")
    parser.add_argument("--interactions", type=Path, help="their interactions")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output_dir", type=Path, help="for catalogue_scale.json and catalogue_scale.md")
    parser.add_argument("--child", choices=MODELS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given.items, given.interactions, given.steps)))
        return
    results: dict[str, list[Any]] = {model: [] for model in given.models}
    with tempfile.TemporaryDirectory() as folder:
        for size in [0] if given.items else given.sizes:
            paths = given.items, given.interactions
            if not given.items:
                paths = tuple(Path(folder) / f"{name}.parquet" for name in ("items", "interactions"))
                for frame, path in zip(make_log(size, given.users, given.clicks), paths, strict=True):
                    frame.to_parquet(path, index=False)
            for model, lines in results.items():
                line = in_own_process(model, *paths, given.steps)
                lines.append(line)
                print(f"{model:9} {'died at ' + str(size) if line is None else summary(line, lines[0])}", flush=True)
    if given.output_dir:
        from decoding_setup import markdown_table, write_report

        header = ["trained", "items", "start s", "first step s", "step s", "peak GiB"]
        rows = [
            [model, f"{line['items']:,}", *(f"{line[name]:.{digits}f}" for name, digits in COLUMNS.items())]
            for model, lines in results.items()
            for line in filter(None, lines)
        ]
        write_report(given.output_dir, "catalogue_scale", results, markdown_table(header, rows))


def summary(line: dict[str, float], first: dict[str, float] | None) -> str:
    """A line of the printed table."""
    ratio = "" if first is None else f" ({line['step_s'] / first['step_s']:.2f} of the first)"
    return (
        f"{line['items']:>9,} items: start {line['start_s']:6.1f} s, first step {line['first_step_s']:6.2f} s, "
        f"step {line['step_s']:.3f} s{ratio}, peak {line['peak_gib']:.2f} GiB"
    )


if __name__ == "__main__":
    main()
