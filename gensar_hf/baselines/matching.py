"""Models that match a vector of the user and the query with the items' vectors by a dot product, such as QEM."""

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from gensar_hf.baselines.sequential import clicked_items, new_model, train_quietly
from gensar_hf.catalogue_loss import catalogue_losses
from gensar_hf.data.splits import SEARCH, Requests, training_events
from gensar_hf.data.user_events import Behavior, UserEvents
from gensar_hf.embeddings import sasrec_training
from gensar_hf.embeddings.modeling_sasrec import pad_histories
from gensar_hf.errors import InputError
from gensar_hf.training_defaults import machine_defaults

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset

Model = TypeVar("Model", bound="MatchingModel")

PADDING = 0
MAX_WORDS = 64  # words of a text that are read; descriptions can be of any length
CLICKS = (Behavior.RECOMMENDED_ITEM, Behavior.SEARCHED_ITEM)
TRAINING_DEFAULTS = {
    "num_train_epochs": 8,
    "per_device_train_batch_size": 512,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
}


@strict
class MatchingConfig(PreTrainedConfig):
    """Sizes, regularization and training data of a matching model.

    Args:
        num_users: with a vector.
        num_items: size of the catalogue.
        words: vocabulary of queries and texts, lower-cased; word n has id n + 1.
        hidden_size: width of all vectors.
        dropout: of the request vector.
        initializer_range: standard deviation of the initial item and word vectors.
        text_weight: weight of a training example made from an item's text (its words → the item), relative to a click;
            0 = texts are not read.
    """

    model_type = "matching"

    num_users: int = 0
    num_items: int = 1
    words: list[str] | tuple[str, ...] = ()
    hidden_size: int = 64
    dropout: float = 0.2
    initializer_range: float = 0.1
    text_weight: float = 0.0

    def validate_ranges(self) -> None:
        """Part of the `@strict` validation: ranges of sizes, probabilities and weights."""
        if self.hidden_size < 1:
            raise ValueError(f"`hidden_size` must be at least 1; got {self.hidden_size}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1; got {self.dropout}.")
        if self.text_weight < 0:
            raise ValueError(f"`text_weight` must not be negative; got {self.text_weight}.")


class MatchingModel(PreTrainedModel, ABC):
    """Score of an item = request vector · item vector + item bias; subclasses read the request.

    User vectors start at zero, so that a user without training clicks keeps a zero vector.
    """

    config_class = MatchingConfig
    base_model_prefix = "matching"
    accepts_loss_kwargs = True  # `num_items_in_batch` makes the loss exact under gradient accumulation
    tasks = frozenset({SEARCH})

    def __init__(self, config: MatchingConfig) -> None:
        super().__init__(config)
        self._word_indices = {word: index for index, word in enumerate(config.words)}
        self.item_table = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING)
        self.word_table = nn.Embedding(len(config.words) + 1, config.hidden_size, padding_idx=PADDING)
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

    def match(
        self,
        vectors: torch.Tensor,
        labels: torch.Tensor | None,
        clicked: torch.Tensor,
        weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        auxiliary: torch.Tensor | float = 0.0,
    ) -> SequenceClassifierOutput:
        """Score the whole catalogue, or with labels compute the cross entropy over it.

        Args:
            vectors: `(batch_size, hidden_size)` request vectors, before dropout.
            labels: `(batch_size,)` indices of the clicked items.
            clicked: item index + 1 of the histories, of any shape, 0 = none.
            weights: `(batch_size,)` example weights; default 1.
            num_items_in_batch: labels in the whole batch, as Trainer counts them; default: the labels of this call.
            auxiliary: `(batch_size,)` other losses, added to the cross entropies.
        """
        vectors = self.dropout(vectors)
        if labels is None:
            return SequenceClassifierOutput(logits=F.linear(vectors, self.item_table.weight[1:], self.item_bias))
        present = clicked[clicked != PADDING] - 1 if self.training else None
        losses = catalogue_losses(vectors, labels, self.item_table.weight, self.item_bias, present=present)
        losses = losses + auxiliary
        total = losses.sum() if weights is None else (losses * weights).sum()
        num_labels = len(labels) if num_items_in_batch is None else num_items_in_batch
        return SequenceClassifierOutput(loss=total / num_labels)

    def encode_words(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of the first `MAX_WORDS` known words of each text, `(num_texts, longest)` int64, 0 = padding."""
        rows = [
            [self._word_indices[w] for w in split_words(text) if w in self._word_indices][:MAX_WORDS] for text in texts
        ]
        return pad_histories([np.array(row, dtype=np.int64) for row in rows], MAX_WORDS).numpy()


class BagModel(MatchingModel):
    """A matching model of the user's id, the query's words and the latest clicks, in any order."""

    def reads_user(self, task: str) -> bool:
        """Whether requests of the task include the user and the history."""
        return True

    @abstractmethod
    def request_vectors(
        self, user_ids: torch.Tensor, word_ids: torch.Tensor, history_ids: torch.Tensor
    ) -> torch.Tensor:
        """Request vectors, `(batch_size, hidden_size)`; arguments as in `forward`."""

    def forward(
        self,
        user_ids: torch.Tensor,
        word_ids: torch.Tensor,
        history_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Score the whole catalogue, or with labels compute the loss; other arguments as in `match`.

        Args:
            user_ids: `(batch_size,)` user index + 1, 0 = no user.
            word_ids: `(batch_size, num_words)` word ids of the query, 0 = padding; at least one column.
            history_ids: `(batch_size, num_clicks)` item index + 1 of earlier clicks, 0 = padding; at least one column.
            labels: `(batch_size,)` indices of the clicked items.
            weights: `(batch_size,)` example weights; default 1.
            num_items_in_batch: labels in the whole batch.
        """
        vectors = self.request_vectors(user_ids, word_ids, history_ids)
        return self.match(vectors, labels, history_ids, weights, num_items_in_batch)


def mean_vectors(table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """Mean of each row's vectors, `(batch_size, num_ids)` to `(batch_size, dim)`; zero where a row is all padding."""
    return F.embedding_bag(ids, table.weight, mode="mean", padding_idx=PADDING)


def split_words(text: str) -> list[str]:
    """The words of a text, lower-cased, in order."""
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True, eq=False)
class Examples(torch.utils.data.Dataset):
    """The arguments of `BagModel.forward`; `collate` gathers a whole batch at once, which is much faster."""

    user_ids: np.ndarray
    word_ids: np.ndarray
    history_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The examples in `rows`, without columns that are all padding (the first column stays)."""
        batch = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        for name in ("word_ids", "history_ids"):
            is_used = (batch[name] != PADDING).any(axis=0)
            is_used[0] = True
            batch[name] = batch[name][:, is_used]
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> "Examples":
        """All parts in order, padded to the same width."""
        columns = {}
        for name in (field.name for field in fields(cls)):
            tables = [getattr(part, name) for part in parts]
            if tables[0].ndim == 2:
                width = max(table.shape[1] for table in tables)
                tables = [np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables]
            columns[name] = np.concatenate(tables)
        return cls(**columns)


def click_examples(
    events: UserEvents,
    model: MatchingModel,
    behaviors: Sequence[Behavior] = CLICKS,
    with_users: bool = True,
    with_words: bool = True,
    history_length: int = 0,
) -> Examples:
    """One example per click of these behaviors, with the user, the query of a searched item and the latest clicks."""
    clicks = np.flatnonzero(events.items >= 0)
    positions = np.flatnonzero(np.isin(events.behaviors[clicks], behaviors))  # among all clicks
    users, chosen = events.event_users()[clicks], clicks[positions]
    query_words = model.encode_words([*events.query_texts, ""])  # query -1, none, is the last text
    items, timestamps = events.items[clicks], events.timestamps[clicks]
    # The user's clicks before, latest first, without twins of the click, as in `Requests.history`: they are the answer.
    before = positions[:, None] - np.arange(1, max(history_length, 1) + 1)  # (num_examples, history_length)
    exists, before = before >= 0, np.maximum(before, 0)
    is_history = exists & (users[before] == users[positions, None]) & (history_length > 0)
    is_twin = (items[before] == items[positions, None]) & (timestamps[before] == timestamps[positions, None])
    return Examples(
        user_ids=(users[positions] + 1) * with_users,
        word_ids=query_words[events.queries[chosen]] * with_words,
        history_ids=np.where(is_history & ~is_twin, items[before] + 1, PADDING),
        labels=events.items[chosen],
        weights=np.ones(len(chosen), dtype=np.float32),
    )


def text_examples(item_texts: Sequence[str], model: MatchingModel) -> Examples:
    """One example per item with known words: no user, the text as query, the item as label."""
    word_ids = model.encode_words(item_texts)
    items = np.flatnonzero(word_ids[:, 0] != PADDING)
    return Examples(
        user_ids=np.zeros_like(items),
        word_ids=word_ids[items],
        history_ids=np.full((len(items), 1), PADDING, dtype=np.int64),
        labels=items,
        weights=np.full(len(items), model.config.text_weight, dtype=np.float32),
    )


def fit_matching(
    model_class: type[BagModel],
    dataset: "InteractionDataset",
    config: MatchingConfig,
    training: Mapping[str, Any],
    clicks: Sequence[Mapping[str, Any]],
    name: str,
) -> "MatchingScorer":
    """Train a model on click examples (options of `click_examples`) and, with `text_weight`, on the item texts.

    Raises:
        InputError: there is no click to learn from.
    """
    events = training_events(dataset.split)
    model = new_matching_model(model_class, events, dataset.item_texts(), config, training["seed"])
    parts = [click_examples(events, model, **options) for options in clicks]
    if not sum(map(len, parts)):
        raise no_clicks(model)
    texts = [text_examples(dataset.item_texts(), model)] if config.text_weight else []
    train_matching(model, Examples.concatenate(parts + texts), training)
    return MatchingScorer(model, name)


def new_matching_model(
    model_class: Callable[[Any], Model],
    events: UserEvents,
    item_texts: Sequence[str],
    config: MatchingConfig,
    seed: int,
) -> Model:
    """An untrained model with the vocabulary of the training events and, with `text_weight`, of the item texts.

    Item biases start at the log of the training clicks: otherwise training would spend its first steps on the
    popularity.
    """
    config.num_items = events.num_items
    texts = [*events.query_texts, *(item_texts if config.text_weight else ())]
    # In alphabetical order: that of the log would reveal where held-out queries are.
    config.words = sorted({word for text in texts for word in split_words(text)})
    model = new_model(model_class, config, seed)
    clicked = events.items[events.items >= 0]
    popularity = np.log1p(np.bincount(clicked, minlength=events.num_items))  # (num_items,)
    with torch.no_grad():
        model.item_bias.copy_(torch.from_numpy(popularity - popularity.mean()))
    return model


def no_clicks(model: MatchingModel) -> InputError:
    """The error of a log without an example for the model."""
    return InputError(
        f"{type(model).__name__} cannot be trained: no event before the held-out ones is a click of the kind that "
        "it learns from; give longer histories."
    )


def train_matching(model: MatchingModel, examples: Any, training: Mapping[str, Any]) -> None:
    """Train on examples, a data set with a `collate`; settings that are not given are `TRAINING_DEFAULTS`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            **machine_defaults(),
            **{**TRAINING_DEFAULTS, **training},
            warmup_steps=0.05,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
        )
        steps_per_epoch = -(-len(examples) // arguments.train_batch_size)
        num_steps = round(arguments.num_train_epochs * steps_per_epoch)
        arguments.max_steps = max(sasrec_training.MIN_STEPS, num_steps)
        train_quietly(Trainer(model=model, args=arguments, train_dataset=examples, data_collator=examples.collate))


class MatchingScorer:
    """Score = a matching model's logit of the candidate."""

    def __init__(self, model: BagModel, name: str) -> None:
        self.model, self.name, self.tasks = model.eval(), name, model.tasks
        self.num_parameters = model.num_parameters()

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Logit of each candidate, `(num_requests, num_candidates)` float32."""
        with_user, length = self.model.reads_user(requests.task), getattr(self.model.config, "history_length", 0)
        histories = clicked_items(requests) if with_user and length else [np.empty(0)] * len(requests)
        inputs = {
            "user_ids": torch.from_numpy((requests.users + 1) * with_user),
            "word_ids": torch.from_numpy(self.model.encode_words(requests.query_texts)),
            "history_ids": pad_histories(histories, max(1, length)),
        }
        return candidate_logits(self.model, inputs, candidates)


def candidate_logits(model: MatchingModel, inputs: Mapping[str, torch.Tensor], candidates: np.ndarray) -> np.ndarray:
    """A model's logit of each candidate, `(num_requests, num_candidates)` float32."""
    with torch.inference_mode():
        logits = model(**{name: values.to(model.device) for name, values in inputs.items()}).logits
    return np.take_along_axis(logits.float().cpu().numpy(), candidates, axis=1)
