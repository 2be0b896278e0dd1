"""The rows of each training step, the same for any number of processes, of batches a step, and after a resumption."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

FILLER = -1

Order = Literal["random", "group_by_length", "sequential"]


def rows_per_step(training_args: TrainingArguments) -> int:
    """Rows of one optimizer step, over all devices, processes and accumulated batches."""
    per_process = training_args.train_batch_size * training_args.gradient_accumulation_steps
    return per_process * training_args.world_size


def epoch_order(
    num_rows: int, step_size: int, seed: int, epoch: int, order: Order = "random", lengths: np.ndarray | None = None
) -> np.ndarray:
    """Which row comes when in an epoch: a pure function of the arguments.

    Args:
        num_rows: of the data set.
        step_size: rows of a step.
        seed: of the order.
        epoch: from 0.
        order: `"group_by_length"` draws, and sorts by length within a stretch of steps.
        lengths: `(num_rows,)`, for `"group_by_length"`.

    Returns:
        `(num_steps * step_size,)` row numbers; behind the last row stands `FILLER`, which makes the last step a whole
        one. Without it the loaders of several processes would repeat rows until each has as many batches.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    if order == "sequential":
        rows = np.arange(num_rows)
    elif order == "group_by_length" and lengths is not None:
        rows = np.array(get_length_grouped_indices(lengths.tolist(), step_size, generator=generator))
    else:
        rows = torch.randperm(num_rows, generator=generator).numpy()
    return np.concatenate([rows, np.full(-num_rows % step_size, FILLER)])


class EpochRows(Dataset):
    """A data set's rows in the order of an epoch; for `EpochTrainer`.

    A batch of fillers alone is empty, so the collator must know what to make of no rows.

    Args:
        rows: has `__len__` and `__getitem__`; also taken: `__getitems__`, which gets a list of row numbers,
            `set_epoch`, and `lengths`, of the rows in the epoch that was set.
        training_args: say how many rows make a step, the order (`train_sampling_strategy`) and the seed (`data_seed`,
            or `seed`).
    """

    def __init__(self, rows: Any, training_args: TrainingArguments) -> None:
        self.rows = rows
        self.step_size = rows_per_step(training_args)
        self.order: Any = training_args.train_sampling_strategy
        self.seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw this epoch's order; the data loader calls it before each."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
        lengths = getattr(self.rows, "lengths", None)
        self._order = epoch_order(len(self.rows), self.step_size, self.seed, epoch, self.order, lengths)

    def __len__(self) -> int:
        """Rows of all steps of an epoch, fillers included; the same in every epoch."""
        return len(self._order)

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """The rows at some places of the epoch, without the fillers."""
        rows = [row for row in self._order[list(places)].tolist() if row != FILLER]
        return self.rows.__getitems__(rows) if hasattr(self.rows, "__getitems__") else [self.rows[row] for row in rows]


class EpochTrainer(Trainer):
    """Trains on `EpochRows`, which come in order already."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)
