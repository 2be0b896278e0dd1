"""Models that match a user and a query with items by a dot product: settings, training and scoring."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.click_examples import Examples, text_examples
from gensar_hf.baselines.sequential import TrainingSettings, clicked_items, new_model
from gensar_hf.baselines.vocabulary import PADDING, Vocabulary
from gensar_hf.data.splits import Requests
from gensar_hf.embeddings.modeling_sasrec import pad_histories
from gensar_hf.errors import InputError
from gensar_hf.evaluation.protocol import history_items
from gensar_hf.files import last_checkpoint
from gensar_hf.training_defaults import machine_defaults

_CHUNK_SIZE = 256  # requests whose scores of all items are held at once: 12 MB for 12,000 items
_SAVE_STEPS = 300

ModelT = TypeVar("ModelT", bound="MatchingModel")


@dataclass
class MatchingSettings(TrainingSettings):
    """Settings that matching models share; `per_device_train_batch_size` counts examples.

    Attributes:
        hidden_size: width of all vectors.
        dropout: on a request's vector.
        label_smoothing: of the cross entropy while training.
        text_weight: how much an example made from an item's text (its words → the item) counts beside a click; 0 =
            texts are not read.
        skip_clicked: whether a candidate that stands in the user's history comes after all others, which is right
            for a log in which nobody takes an item twice.
    """

    num_train_epochs: float = 8
    per_device_train_batch_size: int = 512
    weight_decay: float = 0.1
    hidden_size: int = 64
    dropout: float = 0.2
    label_smoothing: float = 0.0
    text_weight: float = 0.0
    skip_clicked: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size < 1:
            raise ValueError(f"`hidden_size` must be at least 1; got {self.hidden_size}.")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1; got {getattr(self, name)}.")
        if self.text_weight < 0:
            raise ValueError(f"`text_weight` must not be negative; got {self.text_weight}.")


@strict
class MatchingConfig(PreTrainedConfig):
    """Sizes and regularisation that matching models share.

    Args:
        num_users: users that have a vector.
        num_items: size of the catalogue.
        num_words: size of the vocabulary.
        hidden_size: width of all vectors.
        dropout: on a request's vector.
        label_smoothing: of the cross entropy while training.
        initializer_range: standard deviation of the initial item and word vectors.
    """

    model_type = "matching"

    num_users: int = 0
    num_items: int = 1
    num_words: int = 0
    hidden_size: int = 64
    dropout: float = 0.2
    label_smoothing: float = 0.0
    initializer_range: float = 0.1


@dataclass
class MatchingOutput(ModelOutput):
    """loss: scalar, None without labels. logits: `(batch_size, num_items)`, column `i` is item `i`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class MatchingModel(PreTrainedModel, ABC):
    """Score of an item = request's vector · item's vector + item's bias; a subclass says what the request's vector is.

    Users' vectors start at zero, so that a user without training clicks keeps one that says nothing.
    """

    config_class = MatchingConfig
    base_model_prefix = "matching"
    accepts_loss_kwargs = True  # `num_items_in_batch` makes the loss exact under gradient accumulation

    def __init__(self, config: MatchingConfig) -> None:
        super().__init__(config)
        self.item_table = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING)
        self.word_table = nn.Embedding(config.num_words + 1, config.hidden_size, padding_idx=PADDING)
        self.user_table = nn.Embedding(config.num_users + 1, config.hidden_size, padding_idx=PADDING)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items))
        self.dropout = nn.Dropout(config.dropout)

    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.zeros_(self.item_bias)
        elif module is self.user_table:
            init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.weight[PADDING])
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)

    @abstractmethod
    def request_vectors(
        self, user_ids: torch.Tensor, word_ids: torch.Tensor, history_ids: torch.Tensor
    ) -> torch.Tensor:
        """Vectors of requests, `(batch_size, hidden_size)`; arguments as in `forward`."""

    def forward(
        self,
        user_ids: torch.Tensor,
        word_ids: torch.Tensor,
        history_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> MatchingOutput:
        """Score the whole catalogue; with labels, the cross entropy over it.

        Args:
            user_ids: `(batch_size,)` user index + 1, 0 = nobody.
            word_ids: `(batch_size, num_words)` ids of the query's words, 0 = padding; at least one column.
            history_ids: `(batch_size, num_clicks)` item index + 1 of earlier clicks, 0 = padding; at least one column.
            labels: `(batch_size,)` indices of the clicked items.
            weights: `(batch_size,)` how much each example counts; 1 when omitted.
            num_items_in_batch: labels in the whole batch, as Trainer counts them; default: those given here.
        """
        vectors = self.dropout(self.request_vectors(user_ids, word_ids, history_ids))
        logits = F.linear(vectors, self.item_table.weight[1:], self.item_bias)
        if labels is None:
            return MatchingOutput(logits=logits)
        smoothing = self.config.label_smoothing * self.training
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)  # (batch_size,)
        total = losses.sum() if weights is None else (losses * weights).sum()
        num_labels = len(labels) if num_items_in_batch is None else num_items_in_batch
        return MatchingOutput(loss=total / num_labels, logits=logits)


def mean_vectors(table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """Mean of each row's vectors, `(batch_size, num_ids)` to `(batch_size, dim)`; zero where a row is all padding."""
    return F.embedding_bag(ids, table.weight, mode="mean", padding_idx=PADDING)


def learn_vocabulary(data: TrainingData, settings: MatchingSettings) -> Vocabulary:
    """The words of the training queries, and of the items' texts if these are learnt from."""
    return Vocabulary.from_texts([*data.events.query_texts, *(data.item_texts if settings.text_weight else ())])


def build_model(
    model_class: type[ModelT],
    data: TrainingData,
    vocabulary: Vocabulary,
    settings: MatchingSettings,
    seed: int,
    **config: Any,
) -> ModelT:
    """A new model whose items' biases are the logarithms of their training clicks.

    Popularity is what training would spend its first steps on.

    Args:
        model_class: what to build; its `config_class` is given what follows.
        data: to be trained on.
        vocabulary: of the words.
        settings: shared by matching models.
        seed: of the initial weights.
        config: values of the configuration that differ from those of the data and the settings.
    """
    sizes = {"num_users": data.events.num_users, "num_items": data.events.num_items, "num_words": len(vocabulary)}
    shared = {name: getattr(settings, name) for name in ("hidden_size", "dropout", "label_smoothing")}
    model = new_model(model_class, model_class.config_class(**{**sizes, **shared, **config}), seed)
    clicked = data.events.items[data.events.items >= 0]
    popularity = np.log1p(np.bincount(clicked, minlength=data.events.num_items))  # (num_items,)
    with torch.no_grad():
        model.item_bias.copy_(torch.from_numpy(popularity - popularity.mean()))
    return model


def fit_matching(
    model: MatchingModel,
    data: TrainingData,
    vocabulary: Vocabulary,
    parts: Sequence[Examples],
    settings: MatchingSettings,
    seed: int,
    folder: Path,
    checkpoints: Path,
) -> None:
    """Train in place on clicks and, if the settings say so, on the items' texts, and save model and vocabulary.

    A checkpoint is written every few hundred steps; the newest is where the training goes on.

    Args:
        model: a new one.
        data: of which the texts are read.
        vocabulary: of the words.
        parts: examples from training clicks.
        settings: of the training.
        seed: of the batches and of dropout.
        folder: for the model.
        checkpoints: a folder for this training alone.

    Raises:
        InputError: there is no such click.
    """
    if not sum(map(len, parts)):
        raise InputError(
            f"{type(model).__name__} cannot be trained: no event before the held-out ones is a click of the kind that "
            "it learns from; give longer histories."
        )
    texts = [text_examples(data.item_texts, vocabulary, settings.text_weight)] if settings.text_weight else []
    _train(model, Examples.concatenate([*parts, *texts]), settings, seed, checkpoints)
    model.save_pretrained(folder)
    vocabulary.save(folder)


def _train(model: MatchingModel, examples: Examples, settings: MatchingSettings, seed: int, checkpoints: Path) -> None:
    # Trainer takes seconds to import, which a run that only scores should not pay.
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import ProgressCallback

    from gensar_hf.embeddings.sasrec_training import MIN_STEPS, QuietProgress

    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        **machine_defaults(),
        **settings.training_values(),
        warmup_steps=0.05,
        seed=seed,
        save_strategy="steps",
        save_steps=_SAVE_STEPS,
        logging_strategy="no",
        remove_unused_columns=False,
    )
    steps_per_epoch = -(-len(examples) // arguments.train_batch_size)
    arguments.max_steps = max(MIN_STEPS, round(settings.num_train_epochs * steps_per_epoch))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=examples.collate,
    )
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(QuietProgress())
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    # Or else `forward` stays under autocast: scores would be ranked by the three digits of bf16.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)


class MatchingScorer:
    """Score = a matching model's logit of the candidate.

    Args:
        model: trained.
        vocabulary: that it was trained with.
        name: the row's name in tables.
        tasks: that it does.
        user_tasks: the tasks in which it is told the user and the history.
        history_length: how many clicks of the history it is told, the latest ones.
        skip_clicked: as in `MatchingSettings`.
    """

    def __init__(
        self,
        model: MatchingModel,
        vocabulary: Vocabulary,
        name: str,
        tasks: frozenset[str],
        user_tasks: frozenset[str],
        history_length: int = 0,
        skip_clicked: bool = False,
    ) -> None:
        self.model, self.vocabulary, self.name = model.eval(), vocabulary, name
        self.tasks, self.user_tasks = tasks, user_tasks
        self.history_length, self.skip_clicked = history_length, skip_clicked
        self.num_parameters = model.num_parameters()

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Logit of each candidate, `(num_requests, num_candidates)` float32; -inf where it is skipped."""
        scores = np.zeros(candidates.shape, dtype=np.float32)
        for start in tqdm(range(0, len(requests), _CHUNK_SIZE), desc=self.name, leave=False, delay=2):
            rows = np.arange(start, min(start + _CHUNK_SIZE, len(requests)))
            chunk = requests.subset(rows)
            item_scores = self._score_items(chunk)
            if self.skip_clicked:
                item_scores[history_items(chunk)] = -np.inf
            scores[rows] = np.take_along_axis(item_scores, candidates[rows], axis=1)
        return scores

    def _score_items(self, requests: Requests) -> np.ndarray:
        """Logits of all items, `(num_requests, num_items)` float32."""
        tells_user = requests.task in self.user_tasks
        histories = clicked_items(requests) if tells_user and self.history_length else [np.empty(0)] * len(requests)
        inputs = {
            "user_ids": torch.from_numpy((requests.users + 1) * tells_user),
            "word_ids": torch.from_numpy(self.vocabulary.encode(requests.query_texts)),
            "history_ids": pad_histories(histories, max(1, self.history_length)),
        }
        with torch.inference_mode():
            logits = self.model(**{name: ids.to(self.model.device) for name, ids in inputs.items()}).logits
        return logits.float().cpu().numpy()
