"""What the next-item models share: settings, training on windows of the users' clicks, and scoring."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.data.splits import RECOMMENDATION, Requests
from gensar_hf.data.user_events import UserEvents
from gensar_hf.files import last_checkpoint
from gensar_hf.training_defaults import machine_defaults

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_SAVE_STEPS = 300

Config = TypeVar("Config", bound="PreTrainedConfig")
Model = TypeVar("Model", bound="PreTrainedModel")


@dataclass
class TrainingSettings:
    """How a next-item model is trained; the model's own settings are the further fields of a subclass.

    Attributes:
        num_train_epochs: passes over the windows; short logs are passed over more often, up to 500 steps.
        per_device_train_batch_size: windows per step.
        learning_rate: at its highest, after a short warm-up; it falls linearly to 0.
        weight_decay: of AdamW.
    """

    num_train_epochs: float = 15
    per_device_train_batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0; got {getattr(self, name)}.")
        if not self.weight_decay >= 0:
            raise ValueError(f"`weight_decay` must not be negative; got {self.weight_decay}.")

    def training_values(self) -> dict[str, Any]:
        """What `TrainingArguments` takes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainingSettings)}

    def model_values(self) -> dict[str, Any]:
        """What the model's configuration takes: the fields of the subclass."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name not in self.training_values()}


def checked_config(config_class: Callable[..., Config], **values: Any) -> Config:
    """A `@strict` configuration, whose refusal becomes a `ValueError` with the check's own words.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """
    try:
        return config_class(**values)
    except StrictDataclassError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(" ".join(str(cause).split())) from None


def new_model(model_class: Callable[[Any], Model], config: "PreTrainedConfig", seed: int) -> Model:
    """A model with weights drawn from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config)


def fit_sequential(
    model: "PreTrainedModel", data: TrainingData, settings: TrainingSettings, seed: int, checkpoints: Path
) -> None:
    """Train a next-item model in place, with cross entropy over the whole catalogue at every position.

    Clicks after a search count like others; queries are left out. A checkpoint is written every
    few hundred steps, and the newest in `checkpoints` is where the training goes on.

    Args:
        model: a `PreTrainedModel` with `SASRecModel`'s `forward`, `score` and `config.max_length`.
        data: its events are learnt from.
        settings: of the training.
        seed: of windows, their order and dropout.
        checkpoints: a folder for this training alone.

    Raises:
        InputError: no user has two clicks.
    """
    # Trainer takes seconds to import, which a run that only scores should not pay.
    from transformers.trainer_callback import ProgressCallback

    from gensar_hf.embeddings.sasrec_training import (
        QuietProgress,
        next_item_trainer,
        num_training_steps,
        sasrec_training_arguments,
    )

    histories = user_clicks(data.events)
    arguments = sasrec_training_arguments(
        str(checkpoints),
        **machine_defaults(),
        **settings.training_values(),
        seed=seed,
        logging_strategy="no",
        save_strategy="steps",
        save_steps=_SAVE_STEPS,
    )
    arguments.max_steps = num_training_steps(histories, arguments, model.config.max_length)
    trainer = next_item_trainer(model, histories, arguments)
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(QuietProgress())
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))


class NextItemScorer:
    """Score = a next-item model's logit of the candidate after the user's most recent clicks.

    Clicks after a search are part of the history like others; queries are not read. A user without any click gets
    equal scores, that is, a random order.

    Args:
        model: with `score(input_ids)` and `config.max_length`, and the catalogue's item order.
        name: the row's name in tables.
        batch_size: requests per forward pass.
    """

    tasks = frozenset({RECOMMENDATION})

    def __init__(self, model: Any, name: str, batch_size: int = 256) -> None:
        self.model = model
        self.name = name
        self.batch_size = batch_size

    @property
    def num_parameters(self) -> int:
        """Of the model."""
        return self.model.num_parameters()

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Logit of each candidate as the next item, `(num_requests, num_candidates)` float32."""
        from gensar_hf.embeddings.modeling_sasrec import pad_histories

        input_ids = pad_histories(clicked_items(requests), self.model.config.max_length)
        scores = np.zeros(candidates.shape, dtype=np.float32)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(requests), self.batch_size):
                rows = slice(start, start + self.batch_size)
                item_scores = self.model.score(input_ids[rows].to(self.model.device)).float().cpu().numpy()
                scores[rows] = np.take_along_axis(item_scores, candidates[rows], axis=1)
        self.model.train(was_training)
        return scores


def user_clicks(events: UserEvents) -> list[np.ndarray]:
    """Each user's clicked items, oldest first, without the queries."""
    histories = np.split(events.items, events.offsets[1:-1])
    return [items[items >= 0] for items in histories]


def clicked_items(requests: Requests) -> list[np.ndarray]:
    """Each request's history as item indices, oldest first, without the queries."""
    histories = [requests.events.items[requests.history(row)] for row in range(len(requests))]
    return [items[items >= 0] for items in histories]
