"""Stage 3: training clicks → SASRec, and its item table as collaborative embeddings.

python training_scripts/train_sasrec.py --output_dir runs/mine --collaborative.learning_rate 1e-3
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from encode_items import EMBEDDINGS_FILE
from stages import (
    COLLABORATIVE,
    DATA,
    StageReport,
    last_checkpoint,
    load_data,
    main,
    run_stage,
    section_arguments,
    training_arguments,
)
from transformers import set_seed

from gensar_hf.data import EventLog, Split
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.item_embeddings import save_item_embeddings
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import sasrec_training_arguments, train_sasrec


@dataclass
class CollaborativeArguments:
    """SASRec's sizes; None: the configuration's default."""

    hidden_size: int | None = field(default=None, metadata={"help": "width of the item embeddings."})
    num_layers: int | None = field(default=None, metadata={"help": "self-attention blocks."})
    max_length: int | None = field(default=None, metadata={"help": "clicks of a history that are read."})
    dropout: float | None = field(default=None, metadata={"help": "on embeddings and last states."})


def training_clicks(events: EventLog, split: Split) -> list[np.ndarray]:
    """Each user's clicked items in training events, oldest first; queries are left out."""
    histories = [events.items[start:end] for start, end in zip(events.offsets[:-1], split.train_ends, strict=True)]
    return [items[items >= 0] for items in histories]


def run(sections: dict[str, dict]) -> StageReport:
    """Train, save the model and its item table."""
    run_dir, section = Path(sections[""]["output_dir"]), sections.get(COLLABORATIVE, {})
    arguments = section_arguments(section, CollaborativeArguments, COLLABORATIVE)
    training = training_arguments(section, **_tuned())

    def work(folder: Path, checkpoints: Path) -> dict:
        _, events, split = load_data(run_dir)
        set_seed(training.seed)
        sizes = {name: value for name, value in vars(arguments).items() if value is not None}
        model = SASRecModel(SASRecConfig(num_items=events.num_items, **sizes))
        training.output_dir = str(checkpoints)
        output = train_sasrec(model, training_clicks(events, split), training, last_checkpoint(checkpoints))
        model.save_pretrained(folder)
        embeddings = model.item_embeddings().detach().float().cpu().numpy()
        save_item_embeddings(folder / EMBEDDINGS_FILE, embeddings, events.item_ids)
        return {"parameters": model.num_parameters(), "steps": output.global_step, "loss": output.training_loss}

    return run_stage(run_dir, COLLABORATIVE, [arguments, training, run_dir / DATA], work)


def _tuned() -> dict:
    """The tuned settings as plain values, so that a section can override them one by one."""
    tuned = sasrec_training_arguments(".")
    names = (
        "max_steps", "per_device_train_batch_size", "learning_rate", "warmup_steps", "weight_decay", "adam_beta2",
        "train_sampling_strategy",
    )  # fmt: skip
    return {name: getattr(tuned, name) for name in names}


if __name__ == "__main__":
    main(run, __doc__)
