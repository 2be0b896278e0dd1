"""Checkpoints: damaged and foreign ones are neither continued nor deleted, and the loss covers all steps."""

import logging
import os
import shutil

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback, TrainingArguments

from gensar_hf.checkpoints import CheckpointedTrainer, last_checkpoint
from gensar_hf.errors import InputError


class Line(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - 3) ** 2).mean()}

    def _init_weights(self, module):
        pass


class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


def trainer_of(folder, **options):
    args = TrainingArguments(
        str(folder), max_steps=10, save_steps=2, save_total_limit=2, learning_rate=0.1, report_to="none",
        disable_tqdm=True, logging_strategy="no", use_cpu=True, per_device_train_batch_size=2,
    )  # fmt: skip
    rows = [{"x": torch.tensor([float(row)])} for row in range(40)]
    return CheckpointedTrainer(Line(PreTrainedConfig()), args, train_dataset=rows, **options)


@pytest.fixture
def killed(tmp_path):
    """The folder of a training that was killed after step 7."""
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "run", callbacks=[Killed()]).train()
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_resumed_training_ends_with_the_same_weights_and_the_same_loss(killed, tmp_path):
    assert names(killed) == ["checkpoint-4", "checkpoint-6"]
    straight, resumed = trainer_of(tmp_path / "straight"), trainer_of(killed)
    expected = straight.train()
    output = resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.model.weight, straight.model.weight)
    assert output.training_loss == expected.training_loss
    again = trainer_of(killed)
    assert again.train(resume_from_checkpoint=True).training_loss == expected.training_loss


def test_a_checkpoint_whose_files_were_not_recorded_before_a_kill_is_passed_over(tmp_path, monkeypatch, caplog):
    run, fsync = tmp_path / "run", os.fsync

    def killed(descriptor):
        if (run / "checkpoint-6" / "trainer_state.json").exists():
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(run).train()
    assert last_checkpoint(run) == str(run / "checkpoint-4")
    assert "checkpoint-6 is passed over: it was not finished, its files were not recorded" in caplog.text


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["deleted", "cut", "overwritten"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(killed, name, damage, caplog):
    path = killed / "checkpoint-6" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.unlink()
    if damage != "deleted":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")
    assert f"checkpoint-6 is passed over: {name} is" in caplog.text
    with pytest.raises(InputError, match=rf"checkpoint-6 cannot be continued: {name}"):
        trainer_of(killed).train(resume_from_checkpoint=str(killed / "checkpoint-6"))


def test_a_cut_file_is_found_without_a_record_as_well(killed, tmp_path, caplog):
    straight, resumed = trainer_of(tmp_path / "straight"), trainer_of(killed)
    straight.train()
    (killed / "stage.json").write_text('{"stage": "model"}')
    (killed / "checkpoint-6" / ".gensar.json").unlink()
    for name in FILES:
        path = killed / "checkpoint-6" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")
        assert f"checkpoint-6 is passed over: {name} is damaged" in caplog.text
        path.write_bytes(content)
    assert last_checkpoint(killed) == str(killed / "checkpoint-6")
    path.write_text("[]")
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.model.weight, straight.model.weight)


def test_checkpoints_of_earlier_versions_are_continued_if_they_are_whole(killed, caplog):
    for path in killed.glob("*/.gensar.json"):
        path.unlink()
    (killed / "checkpoint-6" / "trainer_state.json").write_text('{"glob')
    assert last_checkpoint(killed) == str(killed / "checkpoint-4")
    (killed / "checkpoint-4" / "optimizer.pt").unlink()
    assert last_checkpoint(killed) is None
    assert "checkpoint-4 is passed over: it was not finished, optimizer.pt is missing" in caplog.text
    assert last_checkpoint(killed / "nowhere") is None
    shutil.rmtree(killed / "checkpoint-4")
    shutil.rmtree(killed / "checkpoint-6")
    with pytest.raises(InputError, match="holds no checkpoint that can be continued"):
        trainer_of(killed).train(resume_from_checkpoint=True)


def test_checkpoints_of_others_are_never_deleted_or_replaced(tmp_path):
    mine = tmp_path / "checkpoint-best"
    mine.mkdir(parents=True)
    trainer_of(tmp_path).train()
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-8", "checkpoint-best"]
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "model.safetensors").write_text("of another program")
    with pytest.raises(InputError, match="checkpoint-500 was not written by this package"):
        trainer_of(tmp_path).train()
    assert "checkpoint-500" in names(tmp_path)
