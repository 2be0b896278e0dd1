"""The benchmark script at sizes that take no time: its variants train on the same, and it reports what happened."""

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gensar_hf.data import Split, UserEvents
from gensar_hf.generator.examples import ExampleCollator, ExampleRows, ExampleSampler, TrainingExamples
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

SMALL = {
    "blocks": 2, "steps": 2, "steps_alone": 1, "warmup_steps": 1, "batch_size": 8, "token_batch_size": 12,
    "max_history_events": 6, "token_events": 4, "requests": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setattr(torch.cpu, "get_capabilities", dict)  # the same steps to float32's precision, on every machine
        yield importlib.import_module("training_throughput")
        for name in ("training_throughput", "training_variants"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def variants(script: ModuleType) -> ModuleType:
    return importlib.import_module("training_variants")


@pytest.fixture(scope="module")
def arguments(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    folder = str(tmp_path_factory.mktemp("throughput"))
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return script.parse_arguments(["--run_dir", folder, "--output_dir", folder, *options])


@pytest.fixture(scope="module")
def trained(
    script: ModuleType,
    variants: ModuleType,
    arguments: argparse.Namespace,
    tiny_events: UserEvents,
    tiny_split: Split,
    identifiers: IdentifierTable,
) -> dict:
    split = dataclasses.replace(tiny_split, validation=tiny_split.test)
    trainees = script.make_trainees(variants.Source(tiny_events, split, identifiers, identifiers.texts), arguments)
    script.train_in_turns(trainees, arguments)
    return trainees


def test_the_common_way_reads_the_same_examples(
    variants: ModuleType,
    tokenizers: dict[str, GenSARTokenizer],
    encoding: str,
    tiny_events: UserEvents,
    tiny_split: Split,
    identifiers: IdentifierTable,
) -> None:
    """Text and back: the same tensors as the package's, where a packed row has its targets side by side."""
    tokenizer = tokenizers[encoding]
    log = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends)
    is_packed = encoding == "events"
    sampler = ExampleSampler(log, window=6, max_target_tokens=25, item_vectors=False)
    rows = ExampleRows(sampler, 40, 12 if is_packed else 0)
    examples = [one for index in range(40) for one in variants.alone(rows[index])]
    (common,) = variants.collate_texts(variants.as_texts(examples, tokenizer), tokenizer)
    package = ExampleCollator(tokenizer)([[one] for one in examples])
    assert (len(examples) > 40) == is_packed
    assert set(common) == {"input_ids", "attention_mask", "labels", *(["event_ids"] if is_packed else [])}
    for name, tensor in common.items():
        assert torch.equal(tensor, package[name]), name


@pytest.mark.slow
def test_variants_of_one_encoding_do_the_same_steps(script: ModuleType, trained: dict) -> None:
    for new, old in ((script.TOKENS_PACKAGE, script.TOKENS), (script.EVENTS_PACKAGE, script.EVENTS)):
        pairs = list(zip(trained[new].steps, trained[old].steps, strict=False))
        assert len(pairs) >= 3
        for one, other in pairs:
            assert (one.examples, one.target_tokens) == (other.examples, other.target_tokens)
            assert one.positions[1] + one.positions[3] < other.positions[1] + other.positions[3]
        first, second = ([step.loss for step in trained[name].steps[: len(pairs)]] for name in (new, old))
        assert first == pytest.approx(second, abs=1e-4)
        assert abs(first[-1] - first[0]) > 0.01
    assert trained[script.EVENTS_PACKAGE].seconds >= trained[script.TOKENS].seconds


@pytest.mark.slow
def test_the_report(script: ModuleType, variants: ModuleType, trained: dict, arguments: argparse.Namespace) -> None:
    results = script.summarize(trained)
    script.report(arguments, results)
    written = json.loads((arguments.output_dir / "training_throughput.json").read_text())
    assert set(written["variants"]) == set(variants.VARIANTS)
    for name, row in written["variants"].items():
        assert len(row["steps"]) == len(trained[name].steps)
        assert len(row["training_loss"]) == len(row["held_out_loss"]) - 1 == SMALL["blocks"]
        assert 0 <= row["encoder_padding"] < 1
    text = (arguments.output_dir / "training_throughput.md").read_text()
    assert all(f"| {name} |" in text for name in variants.VARIANTS)
    assert (arguments.output_dir / "training_throughput.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_figures_by_hand(script: ModuleType, variants: ModuleType, trained: dict) -> None:
    def steps(*rows: tuple) -> list:
        return [
            variants.Step(block, 0.25, seconds - 0.25, 10, tokens, loss, (6, 8, 3, 4))
            for block, seconds, tokens, loss in rows
        ]

    def trainee(own: list) -> object:
        return dataclasses.replace(trained[script.TOKENS], steps=own, num_warmup=1)

    slow = trainee(steps((0, 9, 50, 5.0), (0, 2, 50, 4.0), (1, 2, 20, 3.0), (1, 2, 60, 2.0)))
    fast = trainee(steps((0, 9, 50, 5.0), (0, 1, 50, 4.5), (1, 0.5, 20, 3.0)))
    row = script.describe(slow)
    assert row["examples_per_second"] == 30 / 6
    assert row["target_tokens_per_second"] == pytest.approx(130 / 6)
    assert (row["encoder_padding"], row["decoder_padding"]) == (0.25, 0.25)
    assert (row["collate_ms"], row["compute_ms"]) == (250, 1750)
    assert row["training_loss"] == [(20, 4.5), (40, 2.25)]
    ratio = script.ratio({"tokens, new": fast, "tokens, old": slow}, "tokens, new", "tokens, old")
    assert ratio == {"examples_per_second": 3, "blocks": [2, 4], "shared_steps": 3, "loss_difference": 0.5}


def test_positions_by_hand(variants: ModuleType) -> None:
    labels = torch.tensor([[5, 6, -100, -100], [5, 6, 7, -100]])
    words = {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]), "labels": labels}
    assert variants.positions(words) == (4, 6, 5, 8)
    events = {**words, "event_ids": torch.tensor([[0, 1, 1], [0, -1, -1]])}
    assert variants.positions(events) == (3, 4, 5, 8)
    assert variants.num_targets(words) == 2
    assert variants.num_targets({**events, "decoder_target_ids": torch.tensor([[0, 1, -1], [0, 0, 0]])}) == 3
