"""Training the joint RQ-VAE with transformers' Trainer: tables in memory, dead codes reset between epochs."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerState, TrainingArguments

from gensar_hf.checkpoints import CheckpointedTrainer
from gensar_hf.identifiers.modeling_joint_rqvae import Embeddings, JointRQVAE

logger = logging.getLogger(__name__)


class EmbeddingPairs(Dataset[dict[str, torch.Tensor]]):
    """The two embeddings of each item, named as `JointRQVAE.forward` names them.

    A batch is one `index_select` per table instead of a stack of rows; use it with `collate_embedding_pairs`.
    """

    def __init__(self, semantic: torch.Tensor, collaborative: torch.Tensor) -> None:
        self.tables = {"semantic_embeddings": semantic, "collaborative_embeddings": collaborative}

    def __len__(self) -> int:
        return len(self.tables["semantic_embeddings"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: table[index] for name, table in self.tables.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """A list of one ready batch: the loader requests all rows of a batch at once."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        return [{name: table.index_select(0, rows) for name, table in self.tables.items()}]


def collate_embedding_pairs(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The batch that `EmbeddingPairs.__getitems__` has already made."""
    (batch,) = batches
    return batch


class DeadCodeReset(TrainerCallback):
    """Resets dead codes at the end of epochs (see `JointRQVAE.reset_dead_codes`), seeded by the epoch."""

    def __init__(
        self, semantic: Embeddings, collaborative: Embeddings, every_epochs: int = 5, settling_share: float = 0.2
    ) -> None:
        """Take the embeddings of all training items; in the last `settling_share` of the epochs moved codes settle."""
        self.semantic, self.collaborative = semantic, collaborative
        self.every_epochs, self.settling_share = every_epochs, settling_share

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, *_: object, **kwargs: Any) -> None:
        """Reset when the epoch is due."""
        epoch = round(state.epoch or 0)
        if epoch % self.every_epochs == 0 and epoch < (1 - self.settling_share) * state.num_train_epochs:
            num_moved = kwargs["model"].reset_dead_codes(self.semantic, self.collaborative, seed=args.seed + epoch)
            logger.info("Epoch %d: %d dead codes were moved onto badly quantized items.", epoch, num_moved)


def train_joint_rqvae(
    model: JointRQVAE,
    semantic: Embeddings,
    collaborative: Embeddings,
    training_args: TrainingArguments,
    resume_from_checkpoint: str | bool | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Fit the standardization and the codebooks, then train in place; a `"rq-kmeans"` model is only fitted.

    The model's weights come from torch's global generator: call `transformers.set_seed` before. The paper's batch size,
    epochs and learning rate are 1024, 500 and 1e-3. The tables are `(num_items, semantic_dim)` and
    `(num_items, collaborative_dim)`. The `callbacks` are those in addition to the dead-code reset.

    Raises:
        InputError: embeddings that cannot be quantized; the message says what is wrong with them.
    """
    if not resume_from_checkpoint:  # which has both
        model.fit_standardization(semantic, collaborative)
        if model.config.quantizer == "rq-kmeans" or model.config.initialization == "kmeans":
            model.initialize_codebooks(semantic, collaborative, training_args.seed)
    if model.config.quantizer == "rq-kmeans":
        return
    semantic, collaborative = (torch.as_tensor(table, dtype=torch.float32) for table in (semantic, collaborative))
    trainer = CheckpointedTrainer(
        model=model,
        args=training_args,
        train_dataset=EmbeddingPairs(semantic, collaborative),
        data_collator=collate_embedding_pairs,
        callbacks=[DeadCodeReset(semantic, collaborative), *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
