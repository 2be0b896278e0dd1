"""Matching models that read clicks and searches of a user as one sequence of events, such as TEM and UniSAR."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from gensar_hf.baselines.matching import (
    PADDING,
    MatchingConfig,
    MatchingModel,
    candidate_logits,
    mean_vectors,
    new_matching_model,
    no_clicks,
    train_matching,
)
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, training_events
from gensar_hf.data.user_events import Behavior, UserEvents

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset


@strict
class SequenceConfig(MatchingConfig):
    """Configuration of a `SequenceModel`, in addition to `MatchingConfig`.

    Args:
        history_length: number of latest events that are read.
        num_heads: attention heads; must divide `hidden_size`.
    """

    model_type = "behavior_sequences"

    history_length: int = 10
    num_heads: int = 2

    def validate_sequences(self) -> None:
        """Part of the `@strict` validation: sizes of the history and of the attention."""
        for name in ("history_length", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(
                "`num_heads` must divide `hidden_size`, because each head gets an equal part of it; "
                f"got {self.num_heads} and {self.hidden_size}."
            )


class RequestBatch(NamedTuple):
    """What a model reads of a batch of requests; histories are in the order of time and padded on the LEFT.

    Attributes:
        user_ids: `(batch_size,)` user index + 1, 0 = no user.
        word_ids: `(batch_size, num_words)` word ids of the query, 0 = padding; all 0 for a recommendation.
        history_ids: `(batch_size, num_events)` item index + 1, 0 = padding or a query.
        history_behaviors: `(batch_size, num_events)` value of `Behavior` + 1, 0 = padding.
        history_words: `(batch_size, num_events, num_words)` word ids of a query, and of a searched item's query.
    """

    user_ids: torch.Tensor
    word_ids: torch.Tensor
    history_ids: torch.Tensor
    history_behaviors: torch.Tensor
    history_words: torch.Tensor

    def is_event(self, *behaviors: Behavior) -> torch.Tensor:
        """Which events have one of the behaviors, `(batch_size, num_events)` bool; default: all but padding."""
        if not behaviors:
            return self.history_behaviors != PADDING
        return torch.isin(self.history_behaviors, self.history_behaviors.new_tensor(behaviors) + 1)


class AttentionBlock(nn.Module):
    """Attention to a context and a feed-forward layer, each with a layer norm before it and a residual connection."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.num_heads, size = config.num_heads, config.hidden_size
        self.state_norm, self.context_norm, self.feed_forward_norm = (nn.LayerNorm(size) for _ in range(3))
        self.query, self.key_value = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.attention_output = nn.Linear(size, size)
        self.feed_forward_input, self.feed_forward_output = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, states: torch.Tensor, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """New states, `(batch_size, num_states, hidden_size)`.

        Args:
            states: `(batch_size, num_states, hidden_size)`.
            context: `(batch_size, num_events, hidden_size)`; the states themselves for self-attention.
            mask: `(batch_size, num_states, num_events)` bool, what each state attends to, which may be nothing.
        """
        query = self._heads(self.query(self.state_norm(states)))
        key, value = (self._heads(part) for part in self.key_value(self.context_norm(context)).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        states = states + self.attention_output(attended.transpose(1, 2).flatten(2))
        return states + self.feed_forward_output(F.gelu(self.feed_forward_input(self.feed_forward_norm(states))))

    def _heads(self, vectors: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, hidden_size)` to `(batch_size, num_heads, length, head_size)`."""
        return vectors.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SequenceModel(MatchingModel):
    """A matching model that reads events in the order of time; subclasses define `read`."""

    config_class = SequenceConfig
    history_behaviors: tuple[Behavior, ...] = tuple(Behavior)  # the events that count for `history_length`

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self.query_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.behavior_table = nn.Embedding(len(Behavior) + 1, config.hidden_size, padding_idx=PADDING)
        self.position_table = nn.Embedding(config.history_length, config.hidden_size)  # the last row: the latest event

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @abstractmethod
    def read(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Request vectors, `(batch_size, hidden_size)`, and in training other losses, `(batch_size,)` or 0."""

    def forward(
        self,
        user_ids: torch.Tensor,
        word_ids: torch.Tensor,
        history_ids: torch.Tensor,
        history_behaviors: torch.Tensor,
        history_words: torch.Tensor,
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Score the whole catalogue, or with labels compute the loss.

        The first arguments are those of `RequestBatch`, the others those of `match`.
        """
        batch = RequestBatch(user_ids, word_ids, history_ids, history_behaviors, history_words)
        vectors, auxiliary = self.read(batch)
        return self.match(vectors, labels, history_ids, weights, num_items_in_batch, auxiliary)

    def query_vectors(self, word_ids: torch.Tensor) -> torch.Tensor:
        """tanh(W · mean of the word vectors + b), `(..., num_words)` to `(..., hidden_size)`; zero without words."""
        flat = word_ids.flatten(end_dim=-2)
        vectors = torch.tanh(self.query_projection(mean_vectors(self.word_table, flat)))
        return (vectors * (flat != PADDING).any(dim=1, keepdim=True)).unflatten(0, word_ids.shape[:-1])

    def place_vectors(self, batch: RequestBatch) -> torch.Tensor:
        """Sum of each event's vectors of position and behavior, `(batch_size, num_events, hidden_size)`."""
        num_events = batch.history_ids.shape[1]
        positions = self.position_table.weight[self.config.history_length - num_events :]
        return positions + self.behavior_table(batch.history_behaviors)

    def event_vectors(self, batch: RequestBatch) -> torch.Tensor:
        """Sum of the vectors of item, query, position and behavior, `(batch_size, num_events, hidden_size)`."""
        contents = self.item_table(batch.history_ids) + self.query_vectors(batch.history_words)
        return contents + self.place_vectors(batch)


def masked_mean(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the vectors in the mask, `(batch_size, length, dim)` to `(batch_size, dim)`; zero where there is none."""
    weights = mask.to(vectors.dtype)
    return torch.einsum("bld,bl->bd", vectors, weights) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def latest(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last state in the mask, `(batch_size, length, dim)` to `(batch_size, dim)`; zero where there is none."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    is_last = mask & (columns == (mask * columns).amax(dim=1, keepdim=True))
    return torch.einsum("bld,bl->bd", states, is_last.to(states.dtype))


def info_nce(
    anchors: torch.Tensor, others: torch.Tensor, is_pair: torch.Tensor, is_same: torch.Tensor, temperature: float
) -> torch.Tensor:
    """`(batch_size,)` losses of finding each anchor's other half in the batch by cosine (van den Oord et al. 2018).

    Args:
        anchors: `(batch_size, dim)`.
        others: `(batch_size, dim)`, row i belongs to anchor i.
        is_pair: `(batch_size,)` bool, rows that count; the loss of others is 0, and they are no negatives.
        is_same: `(batch_size, batch_size)` bool, rows whose halves mean the same, so that they are no negatives.
        temperature: divides the cosines.
    """
    cosines = F.normalize(anchors, dim=1) @ F.normalize(others, dim=1).T
    own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    is_negative = is_pair[None, :] & ~is_same
    logits = (cosines.float() / temperature).masked_fill(~(is_negative | own), -torch.inf)
    return (logits.logsumexp(dim=1) - logits.diagonal()) * is_pair


_NOTHING = np.empty(0, dtype=np.int64)


class EventExamples(torch.utils.data.Dataset):
    """The clicks of a log as arguments of `SequenceModel.forward`; `collate` makes a whole batch at once.

    A model of recommendation learns from every click, without the query, as the next click of its user; a model of
    search from every click after a query and, with `text_weight`, from the words of an item's text as a query for it.
    """

    def __init__(self, events: UserEvents, item_texts: Sequence[str], model: SequenceModel) -> None:
        self.events, self.length = events, model.config.history_length
        self.text_weight = model.config.text_weight * (SEARCH in model.tasks)
        num_texts = 1 + len(events.query_texts)
        self.words = model.encode_words(["", *events.query_texts, *(item_texts if self.text_weight else ())])
        searches = np.flatnonzero(events.behaviors == Behavior.SEARCHED_ITEM) if SEARCH in model.tasks else _NOTHING
        clicks = np.flatnonzero(events.items >= 0) if RECOMMENDATION in model.tasks else _NOTHING
        items = np.flatnonzero((self.words[num_texts:] != PADDING).any(axis=1))
        self.targets = np.concatenate([clicks, searches, np.full(len(items), -1)])  # events, -1 for a text
        self.texts = np.concatenate([np.zeros_like(clicks), events.queries[searches] + 1, num_texts + items])
        self.labels = np.concatenate([events.items[clicks], events.items[searches], items])
        self.num_clicks = len(clicks) + len(searches)
        self._users, self._sessions = events.event_users(), events.session_starts()
        self._readable = np.flatnonzero(np.isin(events.behaviors, model.history_behaviors))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The examples in `rows`."""
        targets, is_click = self.targets[rows], self.targets[rows] >= 0
        batch = {
            "user_ids": np.where(is_click, self._users[targets] + 1, PADDING),
            "word_ids": without_padding(self.words[self.texts[rows]]),
            **history_columns(self.events, self.histories(targets), self.words),
            "labels": self.labels[rows],
            "weights": np.where(is_click, 1.0, self.text_weight).astype(np.float32),
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def histories(self, targets: np.ndarray) -> np.ndarray:
        """The latest events before each target, without those that `Requests.history` leaves out.

        `(num_targets, history_length + 1)` int64 event indices in the order of time, at most `history_length` of them,
        -1 for what is left out or missing.
        """
        events, end = self.events, np.searchsorted(self._readable, targets)
        places = end[:, None] - np.arange(self.length + 1, 0, -1)  # one more, for the request's query
        before, target = self._readable[np.maximum(places, 0)], targets[:, None]
        kept = (target >= 0) & (places >= 0) & (self._users[before] == self._users[target])
        at_once = kept & (events.timestamps[before] == events.timestamps[target])
        twins = at_once & (events.items[before] == events.items[target])
        kept &= ~twins & (before != self._sessions[target])
        # The query of a searched twin is left out as well, if it is from the same moment.
        rows, columns = np.nonzero(twins & (events.behaviors[before] == Behavior.SEARCHED_ITEM))
        queries = self._sessions[before[rows, columns]]
        np.logical_and.at(kept, rows, ~(at_once[rows] & (before[rows] == queries[:, None])))
        kept &= np.cumsum(kept[:, ::-1], axis=1)[:, ::-1] <= self.length
        return np.where(kept, before, -1)


def history_columns(events: UserEvents, histories: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of `RequestBatch` that hold the histories.

    Args:
        events: the log.
        histories: `(batch_size, length)` event indices, -1 = none.
        words: `(1 + num_queries, num_words)` word ids of each query of the log, behind a row for no query.
    """
    # The gaps are moved to the left, so that the last column is the latest event.
    histories = np.take_along_axis(histories, np.argsort(histories >= 0, axis=1, kind="stable"), axis=1)
    histories = histories[:, histories.shape[1] - max(1, (histories >= 0).sum(axis=1).max(initial=0)) :]
    is_event = histories >= 0
    return {
        "history_ids": np.where(is_event, events.items[histories] + 1, PADDING),
        "history_behaviors": np.where(is_event, events.behaviors[histories].astype(np.int64) + 1, PADDING),
        "history_words": without_padding(words[np.where(is_event, events.queries[histories] + 1, 0)]),
    }


def without_padding(word_ids: np.ndarray) -> np.ndarray:
    """Word ids without the last columns that are all padding; at least one column stays."""
    lengths = (word_ids != PADDING).sum(axis=-1)
    return word_ids[..., : max(1, lengths.max(initial=0))]


class SequenceScorer:
    """Score = a sequence model's logit of the candidate."""

    def __init__(self, model: SequenceModel, name: str) -> None:
        self.model, self.name, self.tasks = model.eval(), name, model.tasks
        self.num_parameters = model.num_parameters()
        self._words: tuple[Sequence[str], np.ndarray] = [], np.empty(0)  # of the last log's queries

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Logit of each candidate, `(num_requests, num_candidates)` float32."""
        events, model, length = requests.events, self.model, self.model.config.history_length
        if self._words[0] is not events.query_texts:
            self._words = events.query_texts, model.encode_words(["", *events.query_texts])
        histories = np.full((len(requests), length), -1)
        for row, columns in enumerate(histories):
            history = requests.history(row)
            latest = history[np.isin(events.behaviors[history], model.history_behaviors)][-length:]
            columns[length - len(latest) :] = latest
        batch = {
            "user_ids": requests.users + 1,
            "word_ids": model.encode_words(requests.query_texts),
            **history_columns(events, histories, self._words[1]),
        }
        return candidate_logits(model, {name: torch.from_numpy(ids) for name, ids in batch.items()}, candidates)


def fit_sequences(
    model_class: type[SequenceModel],
    name: str,
    dataset: "InteractionDataset",
    config: SequenceConfig,
    training: Mapping[str, Any],
) -> SequenceScorer:
    """Train a model on the clicks of its tasks and, with `text_weight`, on the item texts; see `Baseline.fit`.

    Raises:
        InputError: there is no click to learn from.
    """
    events, item_texts = training_events(dataset.split), dataset.item_texts()
    config.num_users = events.num_users
    model = new_matching_model(model_class, events, item_texts, config, training["seed"])
    examples = EventExamples(events, item_texts, model)
    if not examples.num_clicks:
        raise no_clicks(model)
    train_matching(model, examples, training)
    return SequenceScorer(model, name)
