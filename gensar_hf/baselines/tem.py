"""TEM: a query that attends to its user's clicks, which learns how much to personalize."""

from functools import partial

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from gensar_hf.baselines.behavior_sequences import (
    AttentionBlock,
    RequestBatch,
    SequenceConfig,
    SequenceModel,
    fit_sequences,
)
from gensar_hf.baselines.matching import CLICKS
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import SEARCH


@strict
class TEMConfig(SequenceConfig):
    """Configuration of a `TEMModel`, in addition to `SequenceConfig`.

    Args:
        num_layers: attention blocks.
    """

    model_type = "tem"

    num_layers: int = 1

    def validate_tem(self) -> None:
        """Part of the `@strict` validation: number of blocks."""
        if self.num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1; got {self.num_layers}.")


class TEMModel(SequenceModel):
    """Request vector = state of the query in a transformer over the query and its user's latest clicks.

    Bi, Ai and Croft, A Transformer-based Embedding Model for Personalized Product Search, SIGIR 2020. The query's
    attention to itself and to the clicks decides how much the request is personalized.

    Differs from the paper: cross entropy over the whole catalogue instead of a few sampled negatives; a bias for each
    item, initialized with its popularity; vectors of behavior and recency added to the items'; layer norms before the
    layers instead of behind them; the item texts train the item vectors only with `text_weight`.
    """

    config_class = TEMConfig
    tasks = frozenset({SEARCH})
    history_behaviors = CLICKS

    def __init__(self, config: TEMConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(AttentionBlock(config) for _ in range(config.num_layers))
        self.post_init()

    def read(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Request vectors, `(batch_size, hidden_size)`, and no other loss."""
        return self.query_states(batch), 0.0

    def click_vectors(self, batch: RequestBatch) -> torch.Tensor:
        """Vectors of the clicked items, `(batch_size, num_clicks, hidden_size)`."""
        return self.item_table(batch.history_ids) + self.place_vectors(batch)

    def query_states(self, batch: RequestBatch) -> torch.Tensor:
        """The query's last states, `(batch_size, hidden_size)`."""
        states = torch.cat([self.click_vectors(batch), self.query_vectors(batch.word_ids)[:, None]], dim=1)
        mask = F.pad(batch.is_event(), (0, 1), value=True)[:, None]  # (batch_size, 1, num_clicks + 1)
        for block in self.blocks[:-1]:
            states = block(states, states, mask.expand(-1, states.shape[1], -1))
        return self.blocks[-1](states[:, -1:], states, mask)[:, 0]  # only the query's state is read


BASELINES = {"tem": Baseline(TEMConfig, partial(fit_sequences, TEMModel, "TEM"))}
