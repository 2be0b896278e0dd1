"""Stage 4: both embeddings → joint RQ-VAE → unique identifiers.

python training_scripts/train_rqvae.py --output_dir runs/mine --rqvae.codebook_size 256
"""

from dataclasses import dataclass, field
from pathlib import Path

from encode_items import EMBEDDINGS_FILE
from stages import (
    COLLABORATIVE,
    DATA,
    RQVAE,
    SEMANTIC,
    StageReport,
    last_checkpoint,
    load_data,
    main,
    run_stage,
    section_arguments,
    training_arguments,
)
from transformers import set_seed

from gensar_hf.embeddings.item_embeddings import load_item_embeddings
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import build_identifier_table
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

TUNED = {"num_train_epochs": 500, "per_device_train_batch_size": 1024, "learning_rate": 1e-3, "save_strategy": "no"}


@dataclass
class RQVAEArguments:
    """Sizes of the joint RQ-VAE; None: the configuration's default (the paper's)."""

    codebook_size: int | None = field(default=None, metadata={"help": "K, codes of a level."})
    num_shared_levels: int | None = field(default=None, metadata={"help": "L_m."})
    num_specific_levels: int | None = field(default=None, metadata={"help": "L_n."})
    latent_dim: int | None = field(default=None, metadata={"help": "d."})
    quantizer: str | None = field(default=None, metadata={"help": "rq-vae or rq-kmeans."})
    initialization: str | None = field(default=None, metadata={"help": "kmeans or random."})
    sinkhorn_epsilon: float | None = field(default=None, metadata={"help": "0 switches Sinkhorn off."})


def run(sections: dict[str, dict]) -> StageReport:
    """Train, quantize, make unique, save."""
    run_dir, section = Path(sections[""]["output_dir"]), sections.get(RQVAE, {})
    arguments = section_arguments(section, RQVAEArguments, RQVAE)
    training = training_arguments(section, **TUNED)
    embedding_files = [run_dir / stage / EMBEDDINGS_FILE for stage in (SEMANTIC, COLLABORATIVE)]

    def work(folder: Path, checkpoints: Path) -> dict:
        log, events, _ = load_data(run_dir)
        semantic, collaborative = (load_item_embeddings(path, events.item_ids) for path in embedding_files)
        set_seed(training.seed)
        sizes = {name: value for name, value in vars(arguments).items() if value is not None}
        config = JointRQVAEConfig(semantic_dim=semantic.shape[1], collaborative_dim=collaborative.shape[1], **sizes)
        model = JointRQVAE(config)
        training.output_dir = str(checkpoints)
        train_joint_rqvae(model, semantic, collaborative, training, last_checkpoint(checkpoints))
        texts = log.item_texts()
        titles = log.items["title"].tolist() if "title" in log.items else texts
        table = build_identifier_table(model, semantic, collaborative, events.item_ids, titles, texts)
        model.save_pretrained(folder)
        table.save(folder)
        return table.report()

    return run_stage(run_dir, RQVAE, [arguments, training, run_dir / DATA / "items.parquet", *embedding_files], work)


if __name__ == "__main__":
    main(run, __doc__)
