"""Examples → rows → batches.

With `history_encoding="events"` a row packs what fits: a whole history with all its targets, or many small examples
side by side, none of which sees another. Every row costs about the same, and nothing is spent on padding. With
`"tokens"`, the paper's way, a row is one example with one target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from gensar_hf.generator.modeling_gensar import IGNORED_LABEL
from gensar_hf.generator.tasks import Example, ExampleSampler
from gensar_hf.generator.tokenization_gensar import NO_EVENT, GenSARTokenizer, pad_right

Row = list[Example]


class ExampleRows(Dataset):
    """Row `i` is a pure function of the sampler's seed and `i`.

    Args:
        sampler: draws the examples.
        num_rows: length of the data set: steps × batch size.
        max_positions: encoder positions of a row; the first example is taken whatever its length. 0: one example a
            row. The responses of a row are held to the sampler's `max_target_tokens` in the same way: without that
            limit a row of item texts is three times as long as one of identifiers, and all others are padded to it.
    """

    def __init__(self, sampler: ExampleSampler, num_rows: int, max_positions: int = 0) -> None:
        self.sampler, self.num_rows, self.max_positions = sampler, num_rows, max_positions

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
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


@dataclass
class ExampleCollator:
    """Rows → the tensors that `GenSARForConditionalGeneration.forward` takes.

    Attributes:
        tokenizer: pads, and knows the history encoding.
    """

    tokenizer: GenSARTokenizer

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `decoder_input_ids`, `labels`; for events also what packing needs."""
        is_packed = self.tokenizer.history_encoding == "events"
        arrays = self._packed(rows) if is_packed else self._single(rows)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _single(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        inputs, responses = [], []
        for (example,) in rows:
            (target,) = example.targets
            inputs.append(self.tokenizer.assemble(example.events[0], example.events[1 : target.end]))
            responses.append(target.response)
        encoding = self.tokenizer.pad_rows([tokens for tokens, _ in inputs], [ids for _, ids in inputs])
        return {
            **encoding,
            "decoder_input_ids": pad_right([self._decoder_input(r) for r in responses], self.tokenizer.pad_token_id),
            "labels": pad_right(responses, IGNORED_LABEL),
        }

    def _packed(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        packed = [self._pack(row) for row in rows]
        encoding = self.tokenizer.pad_rows([row["input_ids"] for row in packed], [row["event_ids"] for row in packed])
        padding = {
            "encoder_starts": 0,
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
        lengths = [len(response) for _, _, response in targets]
        return {
            "input_ids": np.concatenate(events),
            "event_ids": np.repeat(np.arange(len(events)), [len(event) for event in events]),
            "encoder_starts": np.repeat(starts, num_positions),
            "decoder_input_ids": np.concatenate([self._decoder_input(response) for _, _, response in targets]),
            "decoder_target_ids": np.repeat(np.arange(len(targets)), lengths),
            "decoder_starts": np.repeat([start for start, _, _ in targets], lengths),
            "decoder_ends": np.repeat([end for _, end, _ in targets], lengths),
            "labels": np.concatenate([response for _, _, response in targets]),
        }

    def _decoder_input(self, response: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.tokenizer.pad_token_id], response[:-1]])
