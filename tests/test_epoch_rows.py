"""Which rows a step has: the same for any number of processes and of batches."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset
from transformers import TrainingArguments

from gensar_hf.epoch_rows import FILLER, EpochRows, EpochTrainer, epoch_order, rows_per_step


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9), st.sampled_from(["random", "group_by_length"]))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_row_once_and_fillers_behind_them(num_rows, step_size, epoch, order):
    lengths = np.random.default_rng(0).integers(1, 9, num_rows)
    rows = epoch_order(num_rows, step_size, seed=3, epoch=epoch, order=order, lengths=lengths)

    assert len(rows) == -(-num_rows // step_size) * step_size
    assert sorted(rows[:num_rows]) == list(range(num_rows))
    assert (rows[num_rows:] == FILLER).all()
    np.testing.assert_array_equal(rows, epoch_order(num_rows, step_size, 3, epoch, order, lengths))


def test_orders():
    assert epoch_order(5, 2, seed=0, epoch=7, order="sequential").tolist() == [0, 1, 2, 3, 4, FILLER]
    first, second, other = (epoch_order(50, 5, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (5, 0)))
    assert not (first == second).all()
    assert not (first == other).all()
    # 60 rows in steps of 5: three steps are sorted together, longest first; the longest of all changes places.
    lengths = np.arange(60)
    rows = epoch_order(60, 5, seed=0, epoch=0, order="group_by_length", lengths=lengths)
    assert rows[0] == 59
    assert (np.diff(rows.reshape(4, 15)[:, 1:], axis=1) < 0).all()


class Numbers(Dataset):
    """Rows that say their number and the epoch they were asked for in."""

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 10

    def __getitem__(self, row):
        return row, self.epoch


class Recorder(torch.nn.Module):
    """Notes the rows of each batch."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def forward(self, rows):
        self.batches.append(rows.tolist())
        return {"loss": self.weight * rows.float().sum()}


def seen(folder, epochs=3, **options):
    """The rows of each step, from a real `Trainer`."""
    arguments = TrainingArguments(
        str(folder), use_cpu=True, num_train_epochs=epochs, disable_tqdm=True, save_strategy="steps", save_steps=4,
        report_to="none", remove_unused_columns=False, **options,
    )  # fmt: skip
    model = Recorder()

    def collate(rows):
        return {"rows": torch.tensor(rows, dtype=torch.long).reshape(-1, 2)}

    trainer = EpochTrainer(model, arguments, train_dataset=EpochRows(Numbers(), arguments), data_collator=collate)

    def train(checkpoint=None):
        model.batches.clear()
        trainer.train(resume_from_checkpoint=checkpoint)
        size = arguments.gradient_accumulation_steps
        return [
            sorted(row for batch in model.batches[start : start + size] for row in map(tuple, batch))
            for start in range(0, len(model.batches), size)
        ]

    return train


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_a_step_has_the_same_rows_however_it_is_cut_and_where_it_is_resumed(tmp_path, strategy):
    whole = seen(tmp_path / "whole", per_device_train_batch_size=4, train_sampling_strategy=strategy)()
    train = seen(
        tmp_path / "cut", per_device_train_batch_size=1, gradient_accumulation_steps=4, train_sampling_strategy=strategy
    )
    assert [len(step) for step in whole] == [4, 4, 2] * 3
    assert [sorted(chain(*whole[start : start + 3])) for start in (0, 3, 6)] == [
        [(row, epoch) for row in range(10)] for epoch in range(3)
    ]
    assert train() == whole
    # The fourth step is the first one of the second epoch.
    assert train(str(tmp_path / "cut" / "checkpoint-4")) == whole[4:]


def test_rows_of_a_step(tmp_path):
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=3, gradient_accumulation_steps=5)
    assert rows_per_step(arguments) == 15 * max(1, arguments.n_gpu)
