from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.joint_rqvae_training import (
    DeadCodeReset,
    EmbeddingPairs,
    collate_embedding_pairs,
    train_joint_rqvae,
)
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE


def clustered_embeddings(num_items: int = 96) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((num_items, 3))
    maps = generator.standard_normal((3, 8)), generator.standard_normal((3, 6))
    semantic, collaborative = (np.tanh(latents @ projection).astype(np.float32) for projection in maps)
    return semantic, collaborative


def new_model(**settings: object) -> JointRQVAE:
    set_seed(0)
    sizes = {"semantic_dim": 8, "collaborative_dim": 6, "latent_dim": 4, "hidden_sizes": (16,), "codebook_size": 8}
    return JointRQVAE(JointRQVAEConfig(**sizes, num_shared_levels=1, num_specific_levels=1, **settings))


def arguments(folder: Path, **settings: object) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": 20,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **settings})


def total_error(model: JointRQVAE) -> float:
    tables = clustered_embeddings()
    codes = model.encode(*tables)
    return sum(
        model.reconstruction_error(*tables, codes.quantized(codes.semantic_codes, codes.collaborative_codes)).values()
    )


def test_training_reconstructs_better_than_residual_k_means(tmp_path: Path):
    k_means = new_model(quantizer="rq-kmeans")
    train_joint_rqvae(k_means, *clustered_embeddings(), arguments(tmp_path))
    trained = new_model()
    train_joint_rqvae(trained, *clustered_embeddings(), arguments(tmp_path))
    assert total_error(trained) < total_error(k_means) < 2
    assert not any(parameter.requires_grad for parameter in k_means.parameters())


def test_resumed_training_ends_where_uninterrupted_training_does(tmp_path: Path):
    settings = {"num_train_epochs": 6, "save_strategy": "steps", "save_steps": 5}
    whole = new_model()
    train_joint_rqvae(whole, *clustered_embeddings(), arguments(tmp_path, **settings))
    resumed = new_model()
    checkpoint = str(tmp_path / "checkpoint-10")  # 3 steps an epoch, so in the middle of the fourth
    train_joint_rqvae(resumed, *clustered_embeddings(), arguments(tmp_path, **settings), checkpoint)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_random_start_learns(tmp_path: Path):
    model = new_model(initialization="random")
    model.fit_standardization(*clustered_embeddings())
    untrained = total_error(model)
    train_joint_rqvae(model, *clustered_embeddings(), arguments(tmp_path, learning_rate=1e-2))
    assert total_error(model) < 0.7 * untrained


def test_plain_trainer_trains_and_evaluates_it(tmp_path: Path):
    model, tables = new_model(), [torch.tensor(table) for table in clustered_embeddings()]
    model.fit_standardization(*tables)
    dataset = EmbeddingPairs(*tables)
    trainer = Trainer(
        model,
        arguments(tmp_path, num_train_epochs=1, prediction_loss_only=True),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=collate_embedding_pairs,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_batches_hold_the_requested_rows():
    semantic, collaborative = torch.arange(12.0).reshape(6, 2), torch.arange(6.0).reshape(6, 1)
    dataset = EmbeddingPairs(semantic, collaborative)
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate_embedding_pairs))
    assert [len(batch["semantic_embeddings"]) for batch in batches] == [4, 2]
    assert torch.equal(torch.cat([batch["semantic_embeddings"] for batch in batches]), semantic)
    assert torch.equal(torch.cat([batch["collaborative_embeddings"] for batch in batches]), collaborative)
    assert dataset[2]["semantic_embeddings"].tolist() == [4.0, 5.0]


def test_dead_codes_are_reset_when_due_and_not_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, tables = new_model(), [torch.tensor(table) for table in clustered_embeddings()]
    seeds: list[int] = []
    monkeypatch.setattr(JointRQVAE, "reset_dead_codes", lambda self, *tables, seed: seeds.append(seed) or 0)
    trainer = Trainer(
        model,
        arguments(tmp_path, num_train_epochs=10, per_device_train_batch_size=96, seed=0),
        train_dataset=EmbeddingPairs(*tables),
        data_collator=collate_embedding_pairs,
        callbacks=[DeadCodeReset(*tables, every_epochs=3, settling_share=0.25)],
    )
    trainer.train()
    assert seeds == [3, 6]
