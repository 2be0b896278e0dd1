"""`Trainer` on the generator: accumulation is exact, the loss falls, and a resumed training continues."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainingArguments

from gensar_hf import catalogue_loss
from gensar_hf.data import Split, UserEvents
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.generator.examples import ExampleCollator, ExampleRows, ExampleSampler, Row, TrainingExamples
from gensar_hf.generator.initialization import share_item_features
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer, titles_and_texts
from gensar_hf.pipeline import GenSARPipeline


@pytest.fixture
def tokenizer(pipelines: dict[str, GenSARPipeline], kind: str) -> GenSARTokenizer:
    return pipelines[kind].tokenizer


@pytest.fixture
def model(pipelines: dict[str, GenSARPipeline], kind: str) -> GenSARForConditionalGeneration:
    """A copy without dropout, which would differ between the parts of a batch."""
    model = copy.deepcopy(pipelines[kind].model)
    if kind in ("vectors", "texts"):
        model.encoder.items.dropout.p = 0.0
    if kind == "texts":
        model.encoder.text.dropout.p = 0.0
    return model


@pytest.fixture
def rows(tokenizer: GenSARTokenizer, tiny_events: UserEvents, tiny_split: Split, kind: str) -> ExampleRows:
    titles, _ = titles_and_texts(tokenizer.identifiers)
    text_queries = TextQueries(titles, {}) if kind == "texts" else None
    examples = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends, text_queries=text_queries)
    sampler = ExampleSampler(examples, max_target_tokens=20, seed=5, item_vectors=kind in ("vectors", "texts"))
    return ExampleRows(sampler, num_rows=80)


def train(
    model: GenSARForConditionalGeneration, rows: Dataset, tokenizer: GenSARTokenizer, folder: Path, **options: object
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", **options,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=ExampleCollator(tokenizer))
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["vectors", "texts", "causal"])
def test_accumulated_steps_equal_one_large_step(
    rows: ExampleRows, model: GenSARForConditionalGeneration, tokenizer: GenSARTokenizer, tmp_path: Path
) -> None:
    """The rows have different numbers of labels, so that a mean of means would not do."""
    collate, before = ExampleCollator(tokenizer), copy.deepcopy(model.state_dict())
    num_labels = [int((collate([rows[row]])["labels"] != -100).sum()) for row in range(80)]
    order = sorted(range(80), key=num_labels.__getitem__)
    four_rows = Subset(rows, [*order[:2], *order[-2:]])
    assert num_labels[order[1]] < num_labels[order[-2]]
    weights, norms = [], []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trained = copy.deepcopy(model)
        trainer = train(
            trained, four_rows, tokenizer, tmp_path, max_steps=1, optim="sgd", learning_rate=0.1,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, logging_steps=1,
            lr_scheduler_type="constant", max_grad_norm=1e9,
        )  # fmt: skip
        weights.append(trained.state_dict())
        norms.append(trainer.state.log_history[0]["grad_norm"])
    moved = max((weights[0][name] - before[name]).abs().max() for name in weights[0])
    assert moved > 1e-3
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(("kind", "exact_items"), [("vectors", 100), ("texts", 100), ("texts", 0), ("causal", 100)])
def test_training_lowers_the_loss(
    rows: ExampleRows,
    model: GenSARForConditionalGeneration,
    tokenizer: GenSARTokenizer,
    tmp_path: Path,
    exact_items: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over all items, and over a sample of them."""
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", exact_items)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 6)
    trainer = train(
        model, rows, tokenizer, tmp_path, max_steps=20, learning_rate=1e-2, per_device_train_batch_size=8,
        logging_steps=5,
    )  # fmt: skip
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("kind", "exact_items"), [("vectors", 100), ("texts", 0)])
def test_a_resumed_training_reads_the_rows_of_an_uninterrupted_one(
    rows: ExampleRows,
    model: GenSARForConditionalGeneration,
    tokenizer: GenSARTokenizer,
    tmp_path: Path,
    exact_items: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And ends with the same weights, although a checkpoint holds plain item vectors, and items may be sampled."""
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", exact_items)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 6)
    embeddings = [np.random.default_rng(0).normal(size=(12, 6))]
    share_item_features(model, embeddings)
    read = []

    class Recorded(ExampleRows):
        def __getitem__(self, index: int) -> Row:
            read.append(index)
            return super().__getitem__(index)

    def run(resume: bool) -> dict[str, torch.Tensor]:
        read.clear()
        trained = copy.deepcopy(model)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, remove_unused_columns=False, disable_tqdm=True, max_steps=4,
            save_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, train_sampling_strategy="sequential",
            report_to="none",
        )  # fmt: skip
        data = Recorded(rows.sampler, num_rows=8)
        trainer = Trainer(trained, arguments, train_dataset=data, data_collator=ExampleCollator(tokenizer))
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        return trained.state_dict()

    expected = run(resume=False)
    assert read == list(range(8))
    resumed = run(resume=True)
    assert read[-4:] == [4, 5, 6, 7]
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-5, rtol=0, msg=name)
