"""Examples → rows → batches.

With `history_encoding="events"` a row packs what fits: a whole history with all its targets, or many small examples
side by side, none of which sees another. With `"tokens"`, the paper's way, a row is one example with one target.

Rows differ in length all the same, and a batch is as long as its longest row. So an optimizer step is computed in
several batches of like length (`ExampleRows.rows_per_step`, `batches_per_step`): its gradient is a sum over the step's
rows, whatever their order and however they are grouped. Batches of like length from a larger window would save more,
but a step would then hold one task or another, and not the mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gensar_hf.data import Behavior
from gensar_hf.generator.item_vectors import NO_ITEM
from gensar_hf.generator.modeling_gensar import IGNORED_LABEL
from gensar_hf.generator.tasks import Example, ExampleSampler
from gensar_hf.generator.tokenization_gensar import NO_EVENT, GenSARTokenizer, pad_left, pad_right

Row = list[Example]


class ExampleRows(Dataset):
    """Row `i` is a pure function of the sampler's seed, `rows_per_step` and `i`.

    Args:
        sampler: draws the examples.
        num_rows: length of the data set: steps × batch size.
        max_positions: encoder positions of a row; the first example is taken whatever its length. 0: one example a
            row. The responses of a row are held to the sampler's `max_target_tokens` in the same way: without that
            limit a row of item texts is three times as long as one of identifiers, and all others are padded to it.
        rows_per_step: rows of one optimizer step, over all its batches and processes. They come in the order of their
            lengths; which rows make a step does not depend on it. 1: in the order drawn.
    """

    def __init__(self, sampler: ExampleSampler, num_rows: int, max_positions: int = 0, rows_per_step: int = 1) -> None:
        self.sampler, self.num_rows, self.max_positions = sampler, num_rows, max_positions
        self.rows_per_step = rows_per_step
        self._step, self._rows_of_step = -1, list[Row]()

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, self.rows_per_step)
        if step != self._step:
            # Rows are asked for one after another: a step is drawn once.
            first = step * self.rows_per_step
            rows = [self._draw(row) for row in range(first, min(first + self.rows_per_step, self.num_rows))]
            self._step, self._rows_of_step = step, sorted(rows, key=self._length)
        return self._rows_of_step[place]

    def _length(self, row: Row) -> tuple[int, int]:
        """What a batch is padded to, the costlier side first."""
        num_target_tokens = sum(example.num_target_tokens for example in row)
        if self.sampler.log.tokenizer.history_encoding == "events":
            return num_target_tokens, sum(example.num_positions for example in row)
        return sum(len(event) for example in row for event in example.events), num_target_tokens

    def _draw(self, index: int) -> Row:
        rng = np.random.default_rng((self.sampler.seed, index))
        task = self.sampler.draw_task(rng)
        row = [self.sampler.draw(task, rng)]
        num_positions, num_tokens = row[0].num_positions, row[0].num_target_tokens
        while num_positions < self.max_positions:
            # All examples of a row are of one task, so that the weights are shares of the work, too.
            example = self.sampler.draw(task, rng)
            num_positions += example.num_positions
            num_tokens += example.num_target_tokens
            if num_positions > self.max_positions or num_tokens > self.sampler.max_target_tokens:
                break
            row.append(example)
        return row


def batches_per_step(num_rows: int, history_encoding: str, min_rows: int = 4) -> int:
    """In how many batches of like length a processor computes a step's rows best.

    More of them are padded less, but each one costs some time of its own (`tests/benchmarks/training_throughput.py`).

    Args:
        num_rows: rows of the step, in one process.
        history_encoding: rows of events are filled, and differ less in length than rows of tokens.
        min_rows: of a batch.

    Returns:
        A divisor of `num_rows`.
    """
    most = min(2 if history_encoding == "events" else 4, max(1, num_rows // min_rows))
    return max(number for number in range(1, most + 1) if num_rows % number == 0)


@dataclass
class ExampleCollator:
    """Rows → the tensors that `GenSARForConditionalGeneration.forward`, or that of a decoder alone, takes.

    Attributes:
        tokenizer: pads, and knows the history encoding.
    """

    tokenizer: GenSARTokenizer

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate.

        Returns:
            `input_ids`, `attention_mask`, `labels`; for an encoder-decoder `decoder_input_ids`, for events also what
            packing needs; for a decoder alone `position_ids` and the number `logits_to_keep`.
        """
        if self.tokenizer.decoder_only:
            return self._continued(rows)
        is_packed = self.tokenizer.history_encoding == "events"
        arrays = self._packed(rows) if is_packed else self._single(rows)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _single(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        inputs, responses, start = [], [], self.tokenizer.pad_token_id
        for (example,) in rows:
            (target,) = example.targets
            inputs.append(self.tokenizer.assemble(example.events[0], example.events[1 : target.end]))
            responses.append(target.response)
        encoding = self.tokenizer.pad_rows([tokens for tokens, _ in inputs], [ids for _, ids in inputs])
        return {
            **encoding,
            "decoder_input_ids": pad_right([np.append(start, r[:-1]) for r in responses], start),
            "labels": pad_right(responses, IGNORED_LABEL),
        }

    def _continued(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Prompt and response in one row. All rows end together, so that logits are needed of the last tokens only.

        Of a vocabulary of 50,000 and responses of five tokens, the logits of whole rows would take a good part of a
        step. The labels are those of the same last tokens; the model shifts them.
        """
        joined, responses = [], []
        for (example,) in rows:
            (target,) = example.targets
            prompt, _ = self.tokenizer.assemble(example.events[0], example.events[1 : target.end])
            joined.append(np.concatenate([prompt, target.response]))
            responses.append(target.response)
        num_kept = 1 + max(map(len, responses))
        encoding = self.tokenizer.pad_rows(joined, [])
        encoding["position_ids"] = (encoding["attention_mask"].cumsum(axis=1) - 1).clip(min=0)
        labels = pad_left(responses, IGNORED_LABEL)
        encoding["labels"] = np.pad(labels, ((0, 0), (1, 0)), constant_values=IGNORED_LABEL)
        tensors = {name: torch.from_numpy(array) for name, array in encoding.items()}
        return {**tensors, "logits_to_keep": num_kept}

    def _packed(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        packed = [self._pack(row) for row in rows]
        encoding = self.tokenizer.pad_rows([row["input_ids"] for row in packed], [row["event_ids"] for row in packed])
        padding = {
            "encoder_starts": 0,
            "event_items": NO_ITEM,
            "item_positions": 0,
            "item_is_searched": 0,
            "item_labels": IGNORED_LABEL,
            "decoder_input_ids": self.tokenizer.pad_token_id,
            "decoder_target_ids": NO_EVENT,
            "decoder_starts": 0,
            "decoder_ends": 1,
            "labels": IGNORED_LABEL,
        }
        columns = {name: pad_right([row[name] for row in packed], value) for name, value in padding.items()}
        return {**encoding, **columns}

    def _pack(self, row: Row) -> dict[str, np.ndarray]:
        """One row: its examples behind one another, and behind one another their targets."""
        events = [event for example in row for event in example.events]
        num_positions = np.array([len(example.events) for example in row])
        starts = np.cumsum(num_positions) - num_positions
        targets = [
            (start, start + target.end, target.response)
            for start, example in zip(starts, row, strict=True)
            for target in example.targets
        ]
        item_targets = [
            (start, target) for start, example in zip(starts, row, strict=True) for target in example.item_targets
        ]
        lengths = np.array([len(response) for _, _, response in targets])
        labels = np.concatenate([response for _, _, response in targets])
        decoder_inputs = np.roll(labels, 1)
        decoder_inputs[np.cumsum(lengths) - lengths] = self.tokenizer.pad_token_id
        return {
            "input_ids": np.concatenate(events),
            "event_ids": np.repeat(np.arange(len(events)), [len(event) for event in events]),
            "encoder_starts": np.repeat(starts, num_positions),
            "event_items": np.concatenate([_event_items(example) for example in row]),
            "item_positions": np.array([start + target.end - 1 for start, target in item_targets], dtype=np.int64),
            "item_is_searched": np.array(
                [target.behavior is Behavior.SEARCHED_ITEM for _, target in item_targets], dtype=np.int64
            ),
            "item_labels": np.array([target.item for _, target in item_targets], dtype=np.int64),
            "decoder_input_ids": decoder_inputs,
            "decoder_target_ids": np.repeat(np.arange(len(targets)), lengths),
            "decoder_starts": np.repeat([start for start, _, _ in targets], lengths),
            "decoder_ends": np.repeat([end for _, end, _ in targets], lengths),
            "labels": labels,
        }


def _event_items(example: Example) -> np.ndarray:
    return np.full(len(example.events), NO_ITEM) if example.event_items is None else example.event_items
