"""UnifiedSSR: one encoder for the history of clicked items and that of queries, for both tasks."""

from functools import partial

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from gensar_hf.baselines.behavior_sequences import (
    AttentionBlock,
    RequestBatch,
    SequenceConfig,
    SequenceModel,
    fit_sequences,
    info_nce,
    latest,
)
from gensar_hf.baselines.matching import CLICKS, PADDING
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.data.user_events import Behavior


@strict
class UnifiedSSRConfig(SequenceConfig):
    """Configuration of a `UnifiedSSRModel`, in addition to `SequenceConfig`.

    Args:
        num_layers: attention blocks.
        query_weight: weight of the loss of the next query.
        temperature: of the loss of the next query.
    """

    model_type = "unifiedssr"

    num_layers: int = 1
    query_weight: float = 0.1
    temperature: float = 0.1

    def validate_unifiedssr(self) -> None:
        """Part of the `@strict` validation: number of blocks, weight and temperature of the loss."""
        if self.num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1; got {self.num_layers}.")
        if self.query_weight < 0:
            raise ValueError(f"`query_weight` must not be negative; got {self.query_weight}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}.")


class UnifiedSSRModel(SequenceModel):
    """Request vector = last state of the item branch [+ that of the query branch, which ends with the request's query].

    Xie et al., UnifiedSSR: A Unified Framework of Sequential Search and Recommendation, WWW 2024. The same causal
    transformer encodes the clicked items and, for a search, the queries. The query branch also predicts the next query.

    Differs from the paper: without the discovery of sessions by intent and its losses; cross entropy over the whole
    catalogue, and the next query is to be found among those of the batch; item biases, initialized with the popularity.
    """

    config_class = UnifiedSSRConfig
    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, config: UnifiedSSRConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(AttentionBlock(config) for _ in range(config.num_layers))
        self.post_init()

    def read(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Request vectors, `(batch_size, hidden_size)`, and in training the loss of the next query, `(batch_size,)`."""
        is_item, is_query = batch.is_event(*CLICKS), batch.is_event(Behavior.SEARCH_QUERY)
        earlier_queries = self.query_vectors(batch.history_words) * is_query[:, :, None]
        events = self.item_table(batch.history_ids) + earlier_queries + self.place_vectors(batch)
        query = self.query_vectors(batch.word_ids)
        has_query = (batch.word_ids != PADDING).any(dim=1, keepdim=True)
        states = torch.cat([events, query[:, None]], dim=1)
        is_item = torch.cat([is_item, torch.zeros_like(has_query)], dim=1)
        is_query = torch.cat([is_query, has_query], dim=1)
        length = states.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()
        mask = earlier & ((is_item[:, :, None] & is_item[:, None]) | (is_query[:, :, None] & is_query[:, None]))
        for block in self.blocks:
            states = block(states, states, mask)
        vectors = latest(states, is_item) + states[:, -1] * has_query
        if not (self.training and self.config.query_weight):
            return vectors, 0.0
        before = latest(states[:, :-1], is_query[:, :-1])
        has_pair = has_query[:, 0] & is_query[:, :-1].any(dim=1)
        is_same = (batch.word_ids[:, None] == batch.word_ids).all(dim=2)
        return vectors, self.config.query_weight * info_nce(before, query, has_pair, is_same, self.config.temperature)


BASELINES = {"unifiedssr": Baseline(UnifiedSSRConfig, partial(fit_sequences, UnifiedSSRModel, "UnifiedSSR"))}
