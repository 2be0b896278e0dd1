"""Stage 4: both embeddings → joint RQ-VAE → unique identifiers.

python training_scripts/train_rqvae.py --output_dir runs/mine --rqvae.codebook_size 256
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from console import main, metrics_unprinted
from encode_items import EMBEDDINGS_FILE
from sections import Section, dataclass_values
from settings import Settings
from stages import COLLABORATIVE, DATA, RQVAE, SEMANTIC, StageReport, load_data, refuse_sharding, run_stage
from transformers import set_seed

from gensar_hf.embeddings.item_embeddings import load_item_embeddings
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import build_identifier_table
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE


@dataclass
class RQVAEArguments:
    """Sizes and losses of the joint RQ-VAE, the paper's by default."""

    codebook_size: int = field(default=JointRQVAEConfig.codebook_size, metadata={"help": "K, codes of a level."})
    num_shared_levels: int = field(
        default=JointRQVAEConfig.num_shared_levels, metadata={"help": "L_m, levels that both identifiers share."}
    )
    num_specific_levels: int = field(
        default=JointRQVAEConfig.num_specific_levels, metadata={"help": "L_n, levels of either identifier alone."}
    )
    latent_dim: int = field(default=JointRQVAEConfig.latent_dim, metadata={"help": "d, width of a latent."})
    hidden_sizes: list[int] = field(
        default_factory=lambda: list(JointRQVAEConfig.hidden_sizes),
        metadata={"help": "hidden layers of the encoders, outermost first."},
    )
    commitment_weight: float = field(
        default=JointRQVAEConfig.commitment_weight, metadata={"help": "α, weight of the commitment loss."}
    )
    quantizer: Literal["rq-vae", "rq-kmeans"] = field(
        default=JointRQVAEConfig.quantizer, metadata={"help": "learnt by gradient, or fitted without one."}
    )
    initialization: Literal["kmeans", "random"] = field(
        default=JointRQVAEConfig.initialization, metadata={"help": "of encoders and codebooks."}
    )
    embeddings: Literal["both", "semantic", "collaborative"] = field(
        default=JointRQVAEConfig.embeddings, metadata={"help": "one of them alone gives one identifier for both tasks."}
    )
    collaborative_scale: float = field(
        default=JointRQVAEConfig.collaborative_scale,
        metadata={"help": "of the collaborative latents at the start; below 1 the shared codes follow meaning more."},
    )
    ema_decay: float = field(
        default=JointRQVAEConfig.ema_decay, metadata={"help": "codes as moving averages; 0: learnt by gradient."}
    )
    sinkhorn_epsilon: float = field(
        default=JointRQVAEConfig.sinkhorn_epsilon,
        metadata={"help": "of the balanced assignment on the last level; 0 switches it off."},
    )
    dead_code_threshold: int = field(
        default=JointRQVAEConfig.dead_code_threshold,
        metadata={"help": "codes with fewer items are reset between epochs; 0: none."},
    )

    def __post_init__(self) -> None:
        JointRQVAEConfig(**dataclass_values(self))  # checks the values before anything runs


def tuned() -> dict:
    """The paper's training. A killed one, of seconds, starts again: standardisation and k-means come before it."""
    return {
        "num_train_epochs": 500,
        "per_device_train_batch_size": 1024,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_strategy": "no",
    }


SECTION = Section(RQVAE, RQVAEArguments, tuned)


def run(settings: Settings) -> StageReport:
    """Train, quantize, make unique, save."""
    run_dir, (arguments, training) = settings.run_dir, settings[RQVAE]
    embedding_files = [run_dir / stage / EMBEDDINGS_FILE for stage in (SEMANTIC, COLLABORATIVE)]

    def work(folder: Path, checkpoints: Path) -> dict:
        refuse_sharding(RQVAE)
        log, events, _ = load_data(run_dir)
        semantic, collaborative = (load_item_embeddings(path, events.item_ids) for path in embedding_files)
        set_seed(training.seed)
        dims = {"semantic_dim": semantic.shape[1], "collaborative_dim": collaborative.shape[1]}
        config = JointRQVAEConfig(**dims, **dataclass_values(arguments))
        model = JointRQVAE(config)
        training.output_dir = str(checkpoints)
        with metrics_unprinted():
            train_joint_rqvae(model, semantic, collaborative, training)
        texts = log.item_texts()
        titles = log.items["title"].tolist() if "title" in log.items else texts
        table = build_identifier_table(model, semantic, collaborative, events.item_ids, titles, texts)
        model.save_pretrained(folder)
        table.save(folder)
        return table.report()

    inputs = [arguments, training, run_dir / DATA / "items.parquet", run_dir / DATA / "log.json", *embedding_files]
    return run_stage(run_dir, RQVAE, inputs, work, is_distributed=True)


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
