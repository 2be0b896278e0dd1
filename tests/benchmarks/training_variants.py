"""The variants of `training_throughput.py`: where their batches come from, and one training step of each."""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from gensar_hf.data import Behavior, Requests, Split, UserEvents, training_mask
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.examples import (
    Example,
    ExampleCollator,
    ExampleRows,
    ExampleSampler,
    Row,
    Target,
    TrainingExamples,
    batches_per_step,
)
from gensar_hf.generator.history import EventArrays
from gensar_hf.generator.initialization import generator_from_scratch
from gensar_hf.generator.modeling_gensar import IGNORED_LABEL, GenSARForConditionalGeneration
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.training_defaults import bf16_is_faster

TOKENS, TOKENS_PACKAGE = "tokens, common way", "tokens, package"
EVENTS, EVENTS_PACKAGE, EVENTS_PACKED = "events, common way", "events, package", "events, packed only"
VARIANTS = (TOKENS, TOKENS_PACKAGE, EVENTS, EVENTS_PACKED, EVENTS_PACKAGE)
# The package's defaults (`GenSARConfig`).
SIZES = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
MAX_TARGET_TOKENS, TEXT_VOCAB_SIZE = 120, 1000
OPTIMIZER = {"weight_decay": 0.01, "betas": (0.9, 0.98), "fused": True}
EVALUATION_BATCH_SIZE = 64

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TextExample:
    """A line of a file of formatted examples: the instruction and the events, and the response, as text."""

    pieces: list[str]
    response: str


@dataclass(frozen=True)
class Step:
    """What one optimizer step took and did. `positions`: encoder used, encoder all, decoder used, decoder all."""

    block: int
    collate_seconds: float
    compute_seconds: float
    examples: int
    target_tokens: int
    loss: float
    positions: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """From the first example to the new weights."""
        return self.collate_seconds + self.compute_seconds


@dataclass
class Trainee:
    """One variant: where its batches come from, and the model that trains on them.

    Attributes:
        prepare: step → what the collator gets, with the clock standing still.
        collate: that → the step's batches.
        held_out: the batches whose loss is measured.
        learning_rate: constant, after a linear warm-up over the first `num_warmup` steps.
        num_warmup: steps that do not count for the rates.
    """

    prepare: Callable[[int], Any]
    collate: Callable[[Any], list[Batch]]
    model: GenSARForConditionalGeneration
    held_out: list[Batch]
    learning_rate: float
    num_warmup: int
    steps: list[Step] = field(default_factory=list)
    held_out_losses: list[tuple[float, float]] = field(default_factory=list)  # seconds of training, nats per token

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **OPTIMIZER)

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def train_step(self, block: int) -> None:
        """One optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(1, (len(self.steps) + 1) / (self.num_warmup + 1))
        prepared = self.prepare(len(self.steps))
        start = time.perf_counter()
        batches = self.collate(prepared)
        collated = time.perf_counter()
        num_labels = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches)
        loss = 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_faster()):
                part = self.model(**batch, num_items_in_batch=num_labels).loss
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = (collated - start, time.perf_counter() - collated)
        used = np.sum([positions(batch) for batch in batches], axis=0).tolist()
        self.steps.append(Step(block, *seconds, sum(map(num_targets, batches)), num_labels, loss, tuple(used)))

    def evaluate(self) -> None:
        """Note the held-out loss."""
        num_labels = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in self.held_out)
        with torch.no_grad():
            loss = sum(self.model(**batch, num_items_in_batch=num_labels).loss.item() for batch in self.held_out)
        self.held_out_losses.append((self.seconds, loss))

    def timed(self, block: int | None = None) -> list[Step]:
        """The steps after the warm-up, of one block or all."""
        return [step for step in self.steps[self.num_warmup :] if block in (None, step.block)]

    def rate(self, name: str, block: int | None = None) -> float:
        """Examples or target tokens per second."""
        steps = self.timed(block)
        return sum(getattr(step, name) for step in steps) / sum(step.seconds for step in steps)


def num_targets(batch: Batch) -> int:
    """Responses in a batch, packed or one a row."""
    if "decoder_target_ids" in batch:
        return int((batch["decoder_target_ids"].amax(dim=1) + 1).sum())
    return len(batch["labels"])


def positions(batch: Batch) -> tuple[int, int, int, int]:
    """Encoder positions that hold something and all of them, and the same of the decoder."""
    labels = batch["labels"]
    decoder = int((labels != IGNORED_LABEL).sum()), labels.numel()
    if "event_ids" not in batch:
        return int(batch["attention_mask"].sum()), batch["attention_mask"].numel(), *decoder
    num_events = batch["event_ids"].amax(dim=1) + 1
    return int(num_events.sum()), int(num_events.max()) * len(num_events), *decoder


# ---- the common way


def alone(row: Row) -> list[Example]:
    """Every target of a row as an example of its own."""
    return [Example(one.task, one.events[: target.end], [target]) for one in row for target in one.targets]


def as_texts(examples: Sequence[Example], tokenizer: GenSARTokenizer) -> list[TextExample]:
    """Token ids back to the text they came from."""

    def text(ids: np.ndarray) -> str:
        return "".join(tokenizer.convert_ids_to_tokens(ids.tolist())).replace("▁", " ")

    return [TextExample([text(event) for event in one.events], text(one.targets[0].response)) for one in examples]


def collate_texts(examples: Sequence[TextExample], tokenizer: GenSARTokenizer) -> list[Batch]:
    """One batch, padded to the longest input and the longest response."""
    if tokenizer.history_encoding == "tokens":
        inputs = tokenizer(["".join(one.pieces) for one in examples], padding=True, return_tensors="pt")
    else:
        inputs = tokenizer(
            [one.pieces for one in examples], is_split_into_words=True, add_special_tokens=False, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        words = [[-1 if word is None else word for word in inputs.word_ids(row)] for row in range(len(examples))]
        inputs["event_ids"] = torch.tensor(words)
    responses = tokenizer(
        [one.response for one in examples], add_special_tokens=False, padding=True, return_tensors="pt"
    )
    labels = responses["input_ids"].masked_fill(responses["attention_mask"] == 0, IGNORED_LABEL)
    return [{**inputs, "labels": labels}]


# ---- what all variants share


@dataclass(frozen=True)
class Source:
    """The data, the identifiers and the item texts of all variants."""

    events: UserEvents
    split: Split
    identifiers: IdentifierTable
    item_texts: Sequence[str]

    @classmethod
    def read(cls, run_dir: Path) -> "Source":
        """Of a finished run."""
        from gensar_hf.data import InteractionDataset

        data = InteractionDataset.load(run_dir / "data")
        return cls(data.events, data.split, IdentifierTable.load(run_dir / "rqvae"), data.item_texts())

    def tokenizer(self, history_encoding: str, max_history_events: int) -> GenSARTokenizer:
        """As `train_generator.py` makes it: the encodings share one vocabulary."""
        used = np.unique(self.events.queries[training_mask(self.split)])
        queries = [self.events.query_texts[query] for query in used if query >= 0]
        return GenSARTokenizer.train_from_texts(
            [*self.item_texts, *queries], self.identifiers, TEXT_VOCAB_SIZE, history_encoding, max_history_events
        )

    def held_out(self, tokenizer: GenSARTokenizer, num_requests: int) -> list[Batch]:
        """The first validation requests of each task, in batches."""
        collate = ExampleCollator(tokenizer)
        requests = [(task, row) for task in self.split.validation.values() for row in range(len(task))[:num_requests]]
        rows = [[self._example(*request, tokenizer)] for request in requests]
        return [collate(rows[i : i + EVALUATION_BATCH_SIZE]) for i in range(0, len(rows), EVALUATION_BATCH_SIZE)]

    def _example(self, requests: Requests, row: int, tokenizer: GenSARTokenizer) -> Example:
        events, target = self.events, int(requests.targets[row])
        behavior = Behavior(int(events.behaviors[target]))
        item_rows = tokenizer.catalogue.item_rows(events.item_ids)
        history = EventArrays.of_user_events(events, requests.history(row), item_rows)
        queries = [*history.queries, requests.query_texts[row]]
        query_tokens = {query: tokenizer.query_tokens(query) for query in queries if query}
        tokens = tokenizer.event_tokens(history, query_tokens)
        if behavior is Behavior.SEARCHED_ITEM:
            tokens.append(query_tokens[queries[-1]])
        tokens = tokens[-tokenizer.max_history_events :]
        task = HISTORY_TASKS[behavior]
        response = tokenizer.item_token_ids[behavior][item_rows[events.items[target]]]
        return Example(
            task, [tokenizer.text_ids(PROMPTS[task].instruction()), *tokens], [Target(len(tokens) + 1, response)]
        )


def make_trainees(source: Source, arguments: argparse.Namespace) -> dict[str, Trainee]:
    """All variants; those with one encoding start from the same weights."""
    trainees = {}
    for encoding, max_events in (("tokens", arguments.token_events), ("events", arguments.max_history_events)):
        tokenizer = source.tokenizer(encoding, max_events)
        examples = TrainingExamples(tokenizer, source.events, source.split.train_ends)
        is_packed = encoding == "events"
        sampler = ExampleSampler(examples, max_target_tokens=MAX_TARGET_TOKENS, seed=arguments.seed, item_vectors=False)
        set_seed(arguments.seed)
        model = generator_from_scratch(GenSARConfig(**SIZES, dropout_rate=0.0), tokenizer).train()
        held_out = source.held_out(tokenizer, arguments.requests)
        batch_size = arguments.batch_size if is_packed else arguments.token_batch_size
        for name in (name for name in VARIANTS if name.startswith(encoding)):
            own = copy.deepcopy(model)
            if name in (TOKENS_PACKAGE, EVENTS_PACKAGE):
                own.set_attn_implementation("eager")
            prepare, collate = make_batches(name, sampler, batch_size, 1 + max_events if is_packed else 0)
            trainees[name] = Trainee(prepare, collate, own, held_out, arguments.learning_rate, arguments.warmup_steps)
    return {name: trainees[name] for name in VARIANTS}


def make_batches(
    name: str, sampler: ExampleSampler, batch_size: int, max_positions: int
) -> tuple[Callable[[int], Any], Callable[[Any], list[Batch]]]:
    """A variant's `prepare` and `collate`; all variants of an encoding see the same examples in the same step."""
    tokenizer = sampler.examples.tokenizer
    is_sorted = name in (TOKENS_PACKAGE, EVENTS_PACKAGE)
    rows = ExampleRows(sampler, 10**9, max_positions, rows_per_step=batch_size if is_sorted else 1)

    def strings(step: int) -> list[TextExample]:
        drawn = [rows[index] for index in range(step * batch_size, (step + 1) * batch_size)]
        return as_texts([one for row in drawn for one in alone(row)], tokenizer)

    if name in (TOKENS, EVENTS):
        return strings, lambda examples: collate_texts(examples, tokenizer)
    per_batch = batch_size // (batches_per_step(batch_size, tokenizer.history_encoding) if is_sorted else 1)
    collator = ExampleCollator(tokenizer)

    def batches(step: int) -> list[Batch]:
        starts = range(step * batch_size, (step + 1) * batch_size, per_batch)
        return [collator([rows[index] for index in range(start, start + per_batch)]) for start in starts]

    return lambda step: step, batches
