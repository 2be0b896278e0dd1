"""Packed rows must compute what their targets compute separately; the reference runs each target by itself."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf import catalogue_loss
from gensar_hf.data import Behavior, Split, UserEvents
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.generator.examples import (
    Example,
    ExampleCollator,
    ExampleRows,
    ExampleSampler,
    ItemTarget,
    Row,
    Target,
    TrainingExamples,
    batches_per_step,
)
from gensar_hf.generator.modeling_gensar import IGNORED_LABEL, GenSARForConditionalGeneration
from gensar_hf.generator.prompts import Task
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer, titles_and_texts
from gensar_hf.pipeline import GenSARPipeline

POSITION_BUCKETS = {
    "exact": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "coarse": {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 5},
}


ITEM_COLUMNS = ("event_items", "item_positions", "item_is_searched", "item_labels")


def words(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 140, length) for length in lengths]


def example(seed: int, event_lengths: tuple[int, ...], targets: dict[int, int]) -> Example:
    """Random tokens; `targets`: how many events a target sees → length of its response."""
    responses = words(seed + 1000, *targets.values())
    pairs = zip(targets, responses, strict=True)
    return Example(Task.NEXT_QUERY, words(seed, *event_lengths), [Target(end, response) for end, response in pairs])


LONG_HISTORY = example(1, (4, 5, 5, 3, 5, 2, 5, 1), {1: 5, 3: 5, 4: 2, 8: 5})
SHORT = example(2, (2, 5), {2: 6})
ONE_EVENT = example(3, (3,), {1: 1})
MIDDLE = example(4, (2, 4, 4), {2: 3, 3: 4})

BATCHES: dict[str, list[Row]] = {
    "several targets of one history": [[LONG_HISTORY]],
    "small examples in one row": [[SHORT, MIDDLE, ONE_EVENT, SHORT]],
    "rows of different lengths": [[ONE_EVENT], [LONG_HISTORY, SHORT], [MIDDLE, MIDDLE]],
}


def alone(model: GenSARForConditionalGeneration, one: Example, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(num_tokens, vocab_size)` and summed loss of one target that nothing is packed with."""
    events = one.events[: target.end]
    output = model(
        input_ids=torch.from_numpy(np.concatenate(events))[None],
        event_ids=torch.from_numpy(np.repeat(np.arange(len(events)), [len(event) for event in events]))[None],
        decoder_input_ids=torch.tensor([[0, *target.response[:-1]]]),
        labels=torch.from_numpy(target.response)[None],
        num_items_in_batch=1,
    )
    return output.logits[0], output.loss


@pytest.mark.parametrize("buckets", POSITION_BUCKETS)
@pytest.mark.parametrize("batch", BATCHES)
def test_packed_rows_equal_each_target_computed_separately(
    batch: str, buckets: str, tokenizers: dict[str, GenSARTokenizer], make_generator: Callable
) -> None:
    rows = BATCHES[batch]
    model = make_generator(tokenizers["events"], **POSITION_BUCKETS[buckets])
    packed = ExampleCollator(tokenizers["events"])(rows)
    with torch.no_grad():
        output = model(**packed)
        expected = [alone(model, one, target) for row in rows for one in row for target in one.targets]
    logits = torch.cat([target_logits for target_logits, _ in expected])
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=0)
    loss = sum(target_loss for _, target_loss in expected) / len(logits)
    assert output.loss.item() == pytest.approx(loss.item(), abs=1e-5)


def test_item_targets_of_packed_rows_equal_each_one_computed_separately(
    tokenizers: dict[str, GenSARTokenizer], make_generator: Callable
) -> None:
    """Which see the items clicked before, and those of their own example only."""
    model = make_generator(tokenizers["events"], num_items=12)
    rng = np.random.default_rng(0)
    clicks = [
        replace(
            one,
            event_items=rng.integers(-1, 12, len(one.events)),
            item_targets=[ItemTarget(end, int(rng.integers(12)), Behavior(2 * (end % 2))) for end in (1, 2, 2)],
        )
        for one in (LONG_HISTORY, SHORT, MIDDLE)
    ]
    rows = [clicks[:2], clicks[2:]]
    packed = ExampleCollator(tokenizers["events"])(rows)
    expected = []
    with torch.no_grad():
        loss = model(**packed, num_items_in_batch=1).loss
        words_only = model(**{**packed, "item_labels": None}, num_items_in_batch=1).loss
        for one in clicks:
            for target in one.item_targets:
                alone = ExampleCollator(tokenizers["events"])([[replace(one, events=one.events[: target.end])]])
                states = model.encoder(
                    alone["input_ids"], event_ids=alone["event_ids"], event_items=alone["event_items"][:, : target.end]
                )[0]
                is_searched = torch.tensor([int(target.behavior is Behavior.SEARCHED_ITEM)])
                logits = model.encoder.items.logits(states[:, -1], is_searched)[0]
                expected.append(-logits.log_softmax(dim=-1)[target.item].item())
    assert (loss - words_only).item() == pytest.approx(sum(expected), abs=1e-4)


def test_gradients_of_a_packed_row_equal_the_sum_of_those_of_its_targets(
    tokenizers: dict[str, GenSARTokenizer], make_generator: Callable
) -> None:
    rows = BATCHES["rows of different lengths"]
    model = make_generator(tokenizers["events"]).double()
    packed = ExampleCollator(tokenizers["events"])(rows)
    model(**packed, num_items_in_batch=1).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row in rows:
        for one in row:
            for target in one.targets:
                alone(model, one, target)[1].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_without_labels_a_packed_row_gives_the_logits_of_every_token(
    tokenizers: dict[str, GenSARTokenizer], generators: dict[str, GenSARForConditionalGeneration]
) -> None:
    packed = ExampleCollator(tokenizers["events"])(BATCHES["rows of different lengths"])
    labels = packed["labels"]
    with torch.no_grad():
        labelled = generators["events"](**packed).logits
        packed.pop("labels")
        everything = generators["events"](**packed).logits
    assert everything.shape == (*labels.shape, len(tokenizers["events"]))
    assert torch.equal(everything[labels != IGNORED_LABEL], labelled)


def test_a_packed_example_sees_nothing_of_its_neighbors(
    tokenizers: dict[str, GenSARTokenizer], generators: dict[str, GenSARForConditionalGeneration]
) -> None:
    """And a target nothing of the events behind its end, nor of the other targets."""
    model, collate = generators["events"], ExampleCollator(tokenizers["events"])
    changed_history = example(5, (4, 5, 5, 3, 5, 2, 5, 1), {1: 5, 3: 5, 4: 2, 8: 5})
    later = [*LONG_HISTORY.events[:4], *changed_history.events[4:]]
    other_targets = [changed_history.targets[0], LONG_HISTORY.targets[1], *changed_history.targets[2:]]
    with torch.no_grad():
        logits = model(**collate([[MIDDLE, LONG_HISTORY, SHORT]])).logits
        same = model(**collate([[example(6, (2, 4, 4), {2: 3, 3: 4}), LONG_HISTORY, ONE_EVENT]])).logits
        changed = model(**collate([[MIDDLE, Example(Task.NEXT_QUERY, later, other_targets), SHORT]])).logits
    history_tokens = slice(7, 7 + 17)
    torch.testing.assert_close(logits[history_tokens], same[history_tokens], atol=1e-5, rtol=0)
    third_end_target = slice(7 + 5, 7 + 10)  # sees three events, all unchanged
    torch.testing.assert_close(logits[third_end_target], changed[third_end_target], atol=1e-5, rtol=0)
    assert not torch.allclose(logits[7 + 13 : 7 + 17], changed[7 + 13 : 7 + 17], atol=1e-2)


def test_the_collator_writes_a_packed_row(tokenizers: dict[str, GenSARTokenizer]) -> None:
    first = Example(
        Task.NEXT_QUERY,
        [np.array([11, 12]), np.array([13])],
        [Target(1, np.array([21, 22])), Target(2, np.array([23]))],
    )
    clicks = replace(
        first,
        event_items=np.array([-1, 6]),
        item_targets=[ItemTarget(1, 6, Behavior.SEARCHED_ITEM), ItemTarget(2, 7, Behavior.RECOMMENDED_ITEM)],
    )
    second = Example(Task.NEXT_QUERY, [np.array([14])], [Target(1, np.array([24, 25]))])
    batch = ExampleCollator(tokenizers["events"])([[second, clicks], [second]])
    assert {name: batch.pop(name).tolist() for name in ITEM_COLUMNS} == {
        "event_items": [[-1, -1, 6], [-1, -1, -1]],
        "item_positions": [[1, 2], [0, 0]],
        "item_is_searched": [[1, 0], [0, 0]],
        "item_labels": [[6, 7], [-100, -100]],
    }
    batch = ExampleCollator(tokenizers["events"])([[first, second], [second]])
    for name in ITEM_COLUMNS:
        del batch[name]
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 14], [14, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 0, 0, 0]],
        "event_ids": [[0, 0, 1, 2], [0, -1, -1, -1]],
        "encoder_starts": [[0, 0, 2], [0, 0, 0]],
        "decoder_input_ids": [[0, 21, 0, 0, 24], [0, 24, 0, 0, 0]],
        "decoder_target_ids": [[0, 0, 1, 2, 2], [0, 0, -1, -1, -1]],
        "decoder_starts": [[0, 0, 0, 2, 2], [0, 0, 0, 0, 0]],
        "decoder_ends": [[1, 1, 2, 3, 3], [1, 1, 1, 1, 1]],
        "labels": [[21, 22, 23, 24, 25], [24, 25, -100, -100, -100]],
    }


def test_the_collator_writes_one_target_a_row_where_tokens_are_positions(
    tokenizers: dict[str, GenSARTokenizer],
) -> None:
    first = Example(Task.NEXT_QUERY, [np.array([11, 12]), np.array([13])], [Target(2, np.array([21, 22]))])
    second = Example(Task.NEXT_QUERY, [np.array([14]), np.array([15])], [Target(1, np.array([24]))])
    batch = ExampleCollator(tokenizers["tokens"])([[first], [second]])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 1], [14, 1, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "decoder_input_ids": [[0, 21], [0, 0]],
        "labels": [[21, 22], [24, -100]],
    }


def test_the_collator_continues_the_prompts_of_a_decoder_only_model(causal_pipeline: GenSARPipeline) -> None:
    """Rows end together; the labels are those of the last three tokens, and the model shifts them by one."""
    first = Example(Task.NEXT_QUERY, [np.array([11, 12]), np.array([13])], [Target(2, np.array([21, 22]))])
    second = Example(Task.NEXT_QUERY, [np.array([14]), np.array([15])], [Target(1, np.array([24]))])
    batch = ExampleCollator(causal_pipeline.tokenizer)([[first], [second]])
    assert batch.pop("logits_to_keep") == 3
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 21, 22], [0, 0, 0, 14, 24]],
        "attention_mask": [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]],
        "position_ids": [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]],
        "labels": [[-100, 21, 22], [-100, -100, 24]],
    }


def test_the_loss_of_a_decoder_only_model_is_that_of_the_responses_one_by_one(causal_pipeline: GenSARPipeline) -> None:
    rows = [[example(seed, (3, *range(1, length)), {length: 1 + seed})] for seed, length in enumerate((2, 6, 4))]
    model, total, num_tokens = causal_pipeline.model, 0.0, 0
    for ((one,),) in zip(rows, strict=True):
        prompt, response = np.concatenate(one.events).tolist(), one.targets[0].response.tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 :]
        picked = zip(logits.log_softmax(dim=-1), response, strict=False)
        total -= sum(row[token].item() for row, token in picked)
        num_tokens += len(response)
    with torch.no_grad():
        loss = model(**ExampleCollator(causal_pipeline.tokenizer)(rows)).loss.item()
    assert loss == pytest.approx(total / num_tokens, abs=1e-4)


def test_rows_of_tokens_compute_the_same_in_any_batch(
    tokenizers: dict[str, GenSARTokenizer], generators: dict[str, GenSARForConditionalGeneration]
) -> None:
    rows = [[example(seed, (3, *range(1, length)), {length: 1 + seed})] for seed, length in enumerate((2, 6, 4))]
    model, collate = generators["tokens"], ExampleCollator(tokenizers["tokens"])
    with torch.no_grad():
        logits = model(**collate(rows)).logits
        for row, one in enumerate(rows):
            single = model(**collate([one])).logits[0]
            torch.testing.assert_close(logits[row, : len(single)], single, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def sampler(tokenizers: dict[str, GenSARTokenizer], tiny_events: UserEvents, tiny_split: Split) -> ExampleSampler:
    log = TrainingExamples(tokenizers["events"], tiny_events, tiny_split.train_ends)
    return ExampleSampler(log, window=6, max_target_tokens=25, seed=3)


def test_a_row_is_filled_with_examples_of_one_task_up_to_the_limits(sampler: ExampleSampler) -> None:
    rows = ExampleRows(sampler, num_rows=60, max_positions=12)
    assert len(rows) == 60
    sizes = set()
    for index in range(len(rows)):
        row = rows[index]
        assert len({one.task for one in row}) == 1
        assert sum(len(one.events) for one in row) == sum(one.num_positions for one in row) <= 12
        num_tokens = sum(len(target.response) for one in row for target in one.targets)
        assert num_tokens == sum(one.num_target_tokens for one in row)
        assert num_tokens <= sampler.max_target_tokens or len(row) == 1
        sizes.add(len(row))
    assert max(sizes) > 1


def test_no_limit_of_positions_means_one_example_a_row(sampler: ExampleSampler) -> None:
    rows = ExampleRows(sampler, num_rows=20, max_positions=0)
    assert {len(rows[index]) for index in range(20)} == {1}


def test_a_row_depends_only_on_the_seed_and_its_index(sampler: ExampleSampler) -> None:
    rows = ExampleRows(sampler, num_rows=30, max_positions=10)
    collate = ExampleCollator(sampler.examples.tokenizer)
    forwards = [collate([rows[index]]) for index in range(30)]
    backwards = [collate([rows[index]]) for index in reversed(range(30))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    reseeded = ExampleRows(
        ExampleSampler(sampler.examples, window=6, max_target_tokens=25, seed=4), num_rows=30, max_positions=10
    )
    again = [collate([reseeded[index]]) for index in range(30)]
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(forwards, again, strict=True))


# ---- batches of like length


@pytest.fixture(scope="module")
def samplers(
    tokenizers: dict[str, GenSARTokenizer], tiny_events: UserEvents, tiny_split: Split
) -> dict[str, ExampleSampler]:
    """One sampler for each history encoding."""
    return {
        encoding: ExampleSampler(
            TrainingExamples(tokenizers[encoding], tiny_events, tiny_split.train_ends),
            window=6, max_target_tokens=25 if encoding == "events" else 0, seed=7,
        )
        for encoding in tokenizers
    }  # fmt: skip


def as_lists(row: Row) -> list:
    return [
        (one.task, [event.tolist() for event in one.events], [(t.end, t.response.tolist()) for t in one.targets])
        for one in row
    ]


def padded_length(row: Row, encoding: str) -> int:
    """What a batch of such rows is as long as: target tokens of the row, or tokens of its input."""
    if encoding == "events":
        return sum(len(target.response) for one in row for target in one.targets)
    return sum(len(event) for one in row for event in one.events)


def test_a_step_holds_the_same_rows_in_the_order_of_their_lengths(
    samplers: dict[str, ExampleSampler], encoding: str
) -> None:
    max_positions = 12 if encoding == "events" else 0
    drawn = ExampleRows(samplers[encoding], num_rows=22, max_positions=max_positions)
    by_length = ExampleRows(samplers[encoding], num_rows=22, max_positions=max_positions, rows_per_step=8)
    for step in (range(8), range(8, 16), range(16, 22)):  # the last one is cut off by the end of the data
        rows = [by_length[index] for index in step]
        lengths = [padded_length(row, encoding) for row in rows]
        assert lengths == sorted(lengths)
        assert len(set(lengths)) > 1
        assert sorted(map(as_lists, rows)) == sorted(as_lists(drawn[index]) for index in step)
    with pytest.raises(IndexError):
        by_length[22]


def test_a_resumed_run_sees_the_rows_of_an_uninterrupted_one(samplers: dict[str, ExampleSampler]) -> None:
    """It begins at any row; several processes each ask for a part of the rows."""
    rows = ExampleRows(samplers["events"], num_rows=32, max_positions=12, rows_per_step=8)
    uninterrupted = [as_lists(rows[index]) for index in range(32)]
    for order in (range(13, 32), range(2, 32, 3), reversed(range(32))):
        resumed = ExampleRows(samplers["events"], num_rows=32, max_positions=12, rows_per_step=8)
        for index in order:
            assert as_lists(resumed[index]) == uninterrupted[index]


def test_batches_of_like_length_sum_to_the_gradient_of_the_step(
    samplers: dict[str, ExampleSampler], make_generator: Callable, encoding: str
) -> None:
    collate = ExampleCollator(samplers[encoding].examples.tokenizer)
    max_positions = 12 if encoding == "events" else 0
    gradients, num_positions = [], []
    for rows_per_step, rows_per_batch in ((1, 8), (8, 4), (8, 2)):
        rows = ExampleRows(samplers[encoding], num_rows=8, max_positions=max_positions, rows_per_step=rows_per_step)
        batches = [
            collate([rows[index] for index in range(first, first + rows_per_batch)])
            for first in range(0, 8, rows_per_batch)
        ]
        num_labels = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches)
        model = make_generator(samplers[encoding].examples.tokenizer).double()
        for batch in batches:
            model(**batch, num_items_in_batch=num_labels).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        num_positions.append(sum(batch["labels"].numel() + batch["input_ids"].numel() for batch in batches))
    assert num_positions[0] > num_positions[1] > num_positions[2]
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("num_rows", "encoding", "expected"),
    [
        (16, "events", 2), (8, "events", 2), (7, "events", 1), (2, "events", 1), (9, "events", 1),
        (128, "tokens", 4), (16, "tokens", 4), (12, "tokens", 3), (10, "tokens", 2), (13, "tokens", 1),
        (1, "tokens", 1),
    ],
)  # fmt: skip
def test_batches_of_a_step_by_hand(num_rows: int, encoding: str, expected: int) -> None:
    assert batches_per_step(num_rows, encoding) == expected


@settings(deadline=None)
@given(num_rows=st.integers(1, 500), encoding=st.sampled_from(["events", "tokens"]), min_rows=st.integers(1, 9))
def test_batches_of_a_step_are_equal_and_not_too_small(num_rows: int, encoding: str, min_rows: int) -> None:
    number = batches_per_step(num_rows, encoding, min_rows)
    assert num_rows % number == 0
    assert number == 1 or num_rows // number >= min_rows


def test_a_real_batch_trains(sampler: ExampleSampler, generators: dict[str, GenSARForConditionalGeneration]) -> None:
    """Whatever the six tasks draw has a finite loss."""
    rows = ExampleRows(sampler, num_rows=120, max_positions=12)
    batch = [rows[index] for index in range(120)]
    assert {row[0].task for row in batch} == set(Task)
    with torch.no_grad():
        assert torch.isfinite(generators["events"](**ExampleCollator(sampler.examples.tokenizer)(batch)).loss)


def test_an_item_without_text_does_not_break_a_batch(
    model_dirs: dict,
    generators: dict[str, GenSARForConditionalGeneration],
    tiny_events: UserEvents,
    tiny_split: Split,
) -> None:
    """Titles may be missing in a user's own table."""
    tokenizer = GenSARTokenizer.from_pretrained(model_dirs["events"])
    table = tokenizer.identifiers
    texts = ["" if item % 2 else text for item, text in enumerate(table.texts)]
    tokenizer.attach_identifiers(replace(table, texts=texts))
    log = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends)
    weights = {Task.DESCRIPTION_TO_IDENTIFIER: 1.0, Task.IDENTIFIER_TO_DESCRIPTION: 1.0}
    rows = ExampleRows(ExampleSampler(log, weights, seed=0), num_rows=20)
    collate = ExampleCollator(tokenizer)
    with torch.no_grad():
        for index in range(20):
            assert torch.isfinite(generators["events"](**collate([rows[index]])).loss)


@pytest.mark.parametrize("kind", ["vectors", "texts"])
def test_a_sample_of_all_items_gives_the_loss_over_all_items(
    pipelines: dict[str, GenSARPipeline],
    kind: str,
    tiny_events: UserEvents,
    tiny_split: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokenizer = pipelines[kind].model, pipelines[kind].tokenizer
    titles, _ = titles_and_texts(tokenizer.identifiers)
    text_queries = TextQueries(titles, {}) if kind == "texts" else None
    examples = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends, text_queries=text_queries)
    rows = list(ExampleRows(ExampleSampler(examples, max_target_tokens=20), num_rows=16))
    exact = ExampleCollator(tokenizer)(rows)
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", 0)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 12)
    sampled = ExampleCollator(tokenizer)(rows)
    assert sampled["sampled_items"].shape[1] > 12
    with torch.no_grad():
        torch.testing.assert_close(model(**sampled).loss, model(**exact).loss)
