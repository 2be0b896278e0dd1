"""Training and scoring of next-item models such as SASRec, whose model is in `gensar_hf.embeddings`."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, Trainer
from transformers.trainer_callback import ProgressCallback

from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import RECOMMENDATION, Requests, training_events
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel, pad_histories
from gensar_hf.embeddings.sasrec_training import (
    HistoryWindows,
    QuietProgress,
    next_item_trainer,
    num_training_steps,
    sasrec_training_arguments,
)
from gensar_hf.training_defaults import machine_defaults

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset

Model = TypeVar("Model", bound=PreTrainedModel)


class NextItemScorer:
    """Score = a next-item model's logit of the candidate after the user's most recent clicks.

    Clicks after a search are part of the history like others. Queries are not read. A user without clicks gets equal
    scores, that is, a random order.
    """

    tasks = frozenset({RECOMMENDATION})

    def __init__(self, model: Any, name: str = "SASRec") -> None:
        self.model, self.name = model, name
        self.num_parameters = model.num_parameters()

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Logit of each candidate as the next item, `(num_requests, num_candidates)` float32."""
        input_ids = pad_histories(clicked_items(requests), self.model.config.max_length)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            item_scores = self.model.score(input_ids.to(self.model.device)).float().cpu().numpy()
        self.model.train(was_training)
        return np.take_along_axis(item_scores, candidates, axis=1)


def fit_next_item_model(
    model_class: Callable[[Any], PreTrainedModel],
    name: str,
    dataset: "InteractionDataset",
    config: Any,
    training: Mapping[str, Any],
    windows_class: type[HistoryWindows] = HistoryWindows,
) -> NextItemScorer:
    """Train a next-item model with cross entropy over the whole catalogue at every labelled position of the windows.

    The other arguments are those of `Baseline.fit`. Clicks after a search count like others. Queries are left out.

    Raises:
        InputError: no user has two clicks.
    """
    events = training_events(dataset.split)
    config.num_items = events.num_items
    model = new_model(model_class, config, training["seed"])
    histories = [items[items >= 0] for items in np.split(events.items, events.offsets[1:-1])]
    with tempfile.TemporaryDirectory() as folder:
        arguments = sasrec_training_arguments(folder, **machine_defaults(), **training, logging_strategy="no")
        arguments.max_steps = num_training_steps(histories, arguments, config.max_length, windows_class)
        train_quietly(next_item_trainer(model, histories, arguments, windows_class=windows_class))
    return NextItemScorer(model, name)


def train_quietly(trainer: Trainer) -> None:
    """Train with a progress bar, without printed metrics, and remove the autocast wrapper from `forward`."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(QuietProgress())
    trainer.train()
    # Otherwise `forward` stays under autocast: scores would be ranked by the three digits of bf16.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def new_model(model_class: Callable[[Any], Model], config: PreTrainedConfig, seed: int) -> Model:
    """A model with weights drawn from `seed`; torch's global generator is left unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config)


def clicked_items(requests: Requests) -> list[np.ndarray]:
    """Each request's history as item indices, oldest first, without the queries."""
    histories = [requests.events.items[requests.history(row)] for row in range(len(requests))]
    return [items[items >= 0] for items in histories]


BASELINES = {"sasrec": Baseline(SASRecConfig, partial(fit_next_item_model, SASRecModel, "SASRec"))}
