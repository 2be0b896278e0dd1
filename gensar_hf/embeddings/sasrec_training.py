"""Histories to training windows, and the training of SASRec and other next-item models with `Trainer`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import TrainOutput

from gensar_hf.checkpoints import CheckpointedTrainer
from gensar_hf.embeddings.modeling_sasrec import IGNORED_LABEL, PADDING, SASRecModel
from gensar_hf.errors import InputError

MIN_STEPS = 500  # fewer leave a model untrained, however small the data set


class HistoryWindows(torch.utils.data.Dataset):
    """Every history cut into windows of at most `max_length` predictions, at another offset in every epoch.

    A window of events `a … b` has the inputs `a … b - 1` and the labels `a + 1 … b`. The first cut of a history is
    drawn for each epoch from `(seed, epoch)` alone, so that a resumed training sees what an uninterrupted one sees; the
    last window is moved back to be full.

    Args:
        histories: item indices of each user, oldest first; those with fewer than two items are skipped.
        max_length: longest window.
        seed: of the cuts.
        event_dropout: share of the events left out of a window, drawn for each window and epoch.

    Raises:
        InputError: no history has two items.
    """

    def __init__(
        self, histories: Sequence[np.ndarray], max_length: int, seed: int = 0, event_dropout: float = 0.0
    ) -> None:
        self.histories = [np.asarray(history, dtype=np.int64) for history in histories if len(history) >= 2]
        if not self.histories:
            raise InputError(
                f"Cannot train a next-item model: none of the {len(histories)} users has two training clicks; give "
                "longer histories."
            )
        self.max_length, self.seed, self.event_dropout = max_length, seed, event_dropout
        self._num_predictions = num_predictions = np.array([len(history) - 1 for history in self.histories])
        # A short history is one window. A longer one needs one more than fits, because its first window is cut short.
        num_windows = np.where(num_predictions <= max_length, 1, 1 + -(-(num_predictions - 1) // max_length))
        self._users = np.repeat(np.arange(len(num_windows)), num_windows)
        self._places = np.arange(len(self._users)) - (np.cumsum(num_windows) - num_windows)[self._users]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the cuts of this epoch."""
        self._epoch = epoch
        rng = np.random.default_rng((self.seed, epoch))
        self._first_cuts = rng.integers(1, self.max_length + 1, size=len(self.histories))

    def __len__(self) -> int:
        return len(self._users)

    @property
    def lengths(self) -> np.ndarray:
        """`(num_windows,)` predictions of each window in this epoch, before `event_dropout`."""
        num_predictions = self._num_predictions[self._users]
        first_lengths = np.where(num_predictions > self.max_length, self._first_cuts[self._users], num_predictions)
        return np.where(self._places == 0, first_lengths, self.max_length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, both `(window_length,)` long, item index + 1."""
        user, place = self._users[index], self._places[index]
        events, num_predictions = self.histories[user], self._num_predictions[user]
        if num_predictions > self.max_length:
            start = self._first_cuts[user] + (place - 1) * self.max_length
            stop = min(start + self.max_length, num_predictions)
            events = events[max(min(start, num_predictions - self.max_length), 0) : stop + 1]
        tokens = torch.from_numpy(self._kept(events, index) + 1)
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}

    def _kept(self, events: np.ndarray, index: int) -> np.ndarray:
        """The events of a window without the dropped ones; all if fewer than two would be left."""
        if self.event_dropout == 0:
            return events
        rng = np.random.default_rng((self.seed, self._epoch, index))
        kept = events[rng.random(len(events)) >= self.event_dropout]
        return kept if len(kept) >= 2 else events


class PrefixWindows(HistoryWindows):
    """Every prefix of every history, at most `max_length` inputs of it, with one label: the item that follows.

    For models of which a position sees later ones. The arguments are those of `HistoryWindows`; nothing is cut at
    random.
    """

    def __init__(
        self, histories: Sequence[np.ndarray], max_length: int, seed: int = 0, event_dropout: float = 0.0
    ) -> None:
        super().__init__(histories, max_length, seed, event_dropout)
        self._users = np.repeat(np.arange(len(self.histories)), self._num_predictions)
        starts = np.cumsum(self._num_predictions) - self._num_predictions
        self._places = np.arange(len(self._users)) - starts[self._users]

    @property
    def lengths(self) -> np.ndarray:
        """`(num_prefixes,)` inputs of each prefix, before `event_dropout`."""
        return np.minimum(self._places + 1, self.max_length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, both `(window_length,)` long, item index + 1; all labels but the last are -100."""
        stop = self._places[index] + 1
        events = self.histories[self._users[index]][max(0, stop - self.max_length) : stop + 1]
        tokens = torch.from_numpy(self._kept(events, index) + 1)
        labels = torch.full_like(tokens[1:], IGNORED_LABEL)
        labels[-1] = tokens[-1]
        return {"input_ids": tokens[:-1], "labels": labels}


class WindowSampler(torch.utils.data.Sampler[int]):
    """The windows of an epoch, grouped by length, in an order drawn from `(seed, epoch)` alone.

    Trainer's own sampler draws from the global generator, which a resumed training has in another state.
    """

    def __init__(self, windows: HistoryWindows, training_args: TrainingArguments) -> None:
        self.windows = windows
        self.batch_size = training_args.train_batch_size * training_args.gradient_accumulation_steps
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the windows of this epoch; the data loader calls it."""
        self.epoch = epoch
        self.windows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.windows.seed + self.epoch)
        return iter(get_length_grouped_indices(self.windows.lengths.tolist(), self.batch_size, generator=generator))


class WindowTrainer(CheckpointedTrainer):
    """Trains on `HistoryWindows` in the order of `WindowSampler`."""

    def _get_train_sampler(self, train_dataset: Any = None) -> WindowSampler:
        windows: Any = self.train_dataset if train_dataset is None else train_dataset
        return WindowSampler(windows, self.args)


def collate_windows(windows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad a batch on the right: `input_ids` with 0, `labels` with -100, both `(batch_size, longest)`."""
    inputs, labels = ([window[name] for window in windows] for name in ("input_ids", "labels"))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(inputs, batch_first=True, padding_value=PADDING),
        "labels": pad(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def sasrec_training_arguments(output_dir: str, **overrides: Any) -> TrainingArguments:
    """`TrainingArguments` tuned on the validation clicks of MovieLens-100k; `overrides` change any of its fields."""
    tuned = {
        "num_train_epochs": 15,
        "per_device_train_batch_size": 64,
        "learning_rate": 5e-3,
        "warmup_steps": 0.07,
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "save_strategy": "no",
        "report_to": "none",
    }
    return TrainingArguments(output_dir=output_dir, **{**tuned, **overrides})


class QuietProgress(ProgressCallback):
    """The Trainer's bar without the dictionaries that it prints between and after the steps."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Print nothing."""


def next_item_trainer(
    model: PreTrainedModel,
    histories: Sequence[np.ndarray],
    training_args: TrainingArguments,
    callbacks: list[TrainerCallback] | None = None,
    windows_class: type[HistoryWindows] = HistoryWindows,
) -> Trainer:
    """A `Trainer` of a model with SASRec's `forward`, by default with a target at every position of every history.

    Histories are item indices of each user's TRAINING events, oldest first. `data_seed` (or `seed`) draws the windows.

    Raises:
        InputError: no history has two items.
    """
    config: Any = model.config
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    windows = windows_class(histories, config.max_length, seed, config.event_dropout)
    return WindowTrainer(model, training_args, collate_windows, windows, callbacks=callbacks)


def num_training_steps(
    histories: Sequence[np.ndarray],
    training_args: TrainingArguments,
    max_length: int,
    windows_class: type[HistoryWindows] = HistoryWindows,
) -> int:
    """Steps for `num_train_epochs` passes over the windows, at least `MIN_STEPS`."""
    per_process = training_args.train_batch_size * training_args.gradient_accumulation_steps
    steps_per_epoch = -(-len(windows_class(histories, max_length)) // (per_process * training_args.world_size))
    return max(MIN_STEPS, round(training_args.num_train_epochs * steps_per_epoch))


def train_sasrec(
    model: SASRecModel,
    histories: Sequence[np.ndarray],
    training_args: TrainingArguments,
    resume_from_checkpoint: str | bool | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> TrainOutput:
    """Train a new model in place with `next_item_trainer`; returns steps, mean loss and metrics such as the seconds."""
    trainer = next_item_trainer(model, histories, training_args, callbacks)
    return trainer.train(resume_from_checkpoint=resume_from_checkpoint)
