"""Train the tiny model under FSDP2 on CPUs: `torchrun --nproc_per_node 2 sharded_training.py MODEL FOLDER`.

accelerate passes FSDP over where there is no GPU, so it is switched on here as `accelerate launch` does on GPUs.
"""

import sys
from pathlib import Path
from typing import Any

import tiny_runs
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers.trainer_callback import TrainerCallback

from gensar_hf import GenSARPipeline, GenSARTrainer
from gensar_hf.files import write_json


class ShardedTrainer(GenSARTrainer):
    """A trainer for which accelerate shards the model."""

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`; then FSDP2 of every T5 layer."""
        super().create_accelerator_and_postprocess()
        self.switch_on()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, which looks at the state that was switched on."""
        self.switch_on()
        super().save_model(output_dir, _internal_call)

    def switch_on(self) -> None:
        """Let accelerate shard, which sees CPUs and would train whole models."""
        state: Any = self.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["T5Block"],
            state_dict_type="FULL_STATE_DICT",
        )
        state.distributed_type, self.is_fsdp_enabled = DistributedType.FSDP, True


class Losses(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Remember it."""
        if logs and "loss" in logs:
            self.values.append(logs["loss"])


def losses_of(trainer_class: type[GenSARTrainer], model: str, folder: Path, batch_size: int) -> list[float]:
    """The losses of four steps; the trained model is written to `folder`."""
    losses, pipe = Losses(), GenSARPipeline.from_pretrained(model, device="cpu")
    for module in pipe.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # it would be drawn for other rows
    args = tiny_runs.arguments(
        folder, save_strategy="no", logging_steps=1, per_device_train_batch_size=batch_size, max_grad_norm=0
    )
    trainer = trainer_class(pipe, args, tiny_runs.make_dataset(), callbacks=[losses])
    trainer.train()
    if trainer_class is ShardedTrainer:
        sharded = [module for module in trainer.model.modules() if isinstance(module, FSDPModule)]
        assert len(sharded) >= 2 + 4 + 1, len(sharded)  # the layers, the modules that share a table, and the model
    trainer.save_model(str(folder / "model"))
    return losses.values


if __name__ == "__main__":
    output = Path(sys.argv[2])
    values = losses_of(ShardedTrainer, sys.argv[1], output, batch_size=4)
    if torch.distributed.get_rank() == 0:
        write_json(output / "losses.json", {"losses": values})
    torch.distributed.destroy_process_group()
