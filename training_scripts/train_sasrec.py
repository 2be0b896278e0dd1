"""Stage 3: training clicks → SASRec, and its item table as collaborative embeddings.

python training_scripts/train_sasrec.py --output_dir runs/mine --collaborative.learning_rate 1e-3
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from console import main, metrics_unprinted
from encode_items import EMBEDDINGS_FILE
from sections import Section, dataclass_values
from settings import Settings
from stages import COLLABORATIVE, DATA, StageReport, load_data, refuse_sharding, run_stage
from transformers import set_seed

from gensar_hf.data import Split, UserEvents
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.item_embeddings import save_item_embeddings
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import num_training_steps, sasrec_training_arguments, train_sasrec
from gensar_hf.files import last_checkpoint


@dataclass
class CollaborativeArguments:
    """SASRec's sizes and regularisation."""

    hidden_size: int = field(default=SASRecConfig.hidden_size, metadata={"help": "width of the item embeddings."})
    num_layers: int = field(default=SASRecConfig.num_layers, metadata={"help": "self-attention blocks."})
    num_heads: int = field(default=SASRecConfig.num_heads, metadata={"help": "attention heads."})
    max_length: int = field(default=SASRecConfig.max_length, metadata={"help": "clicks of a history that are read."})
    dropout: float = field(default=SASRecConfig.dropout, metadata={"help": "on embeddings and last states."})
    event_dropout: float = field(
        default=SASRecConfig.event_dropout, metadata={"help": "share of a window's clicks left out in training."}
    )
    label_smoothing: float = field(default=SASRecConfig.label_smoothing, metadata={"help": "of the cross entropy."})

    def __post_init__(self) -> None:
        SASRecConfig(**dataclass_values(self))  # checks the values before anything runs


def tuned() -> dict:
    """The package's tuned settings."""
    values = sasrec_training_arguments(".")
    names = (
        "num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps", "weight_decay",
        "adam_beta2", "train_sampling_strategy",
    )  # fmt: skip
    return {name: getattr(values, name) for name in names} | {
        "save_steps": 100,
        "logging_strategy": "no",
    }


SECTION = Section(COLLABORATIVE, CollaborativeArguments, tuned)


def training_clicks(events: UserEvents, split: Split) -> list[np.ndarray]:
    """Each user's clicked items in training events, oldest first; queries are left out."""
    histories = [events.items[start:end] for start, end in zip(events.offsets[:-1], split.train_ends, strict=True)]
    return [items[items >= 0] for items in histories]


def run(settings: Settings) -> StageReport:
    """Train, save the model and its item table."""
    run_dir, (arguments, training) = settings.run_dir, settings[COLLABORATIVE]

    def work(folder: Path, checkpoints: Path) -> dict:
        refuse_sharding(COLLABORATIVE)
        _, events, split = load_data(run_dir)
        set_seed(training.seed)
        model = SASRecModel(SASRecConfig(num_items=events.num_items, **dataclass_values(arguments)))
        training.output_dir = str(checkpoints)
        histories = training_clicks(events, split)
        if training.max_steps <= 0:
            training.max_steps = num_training_steps(histories, training, model.config.max_length)
        with metrics_unprinted():
            output = train_sasrec(model, histories, training, last_checkpoint(checkpoints))
        model.save_pretrained(folder)
        embeddings = model.item_embeddings().detach().float().cpu().numpy()
        save_item_embeddings(folder / EMBEDDINGS_FILE, embeddings, events.item_ids)
        return {"parameters": model.num_parameters(), "steps": output.global_step, "loss": output.training_loss}

    return run_stage(run_dir, COLLABORATIVE, [arguments, training, run_dir / DATA], work, is_distributed=True)


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
