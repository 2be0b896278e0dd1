"""UniSAR: transitions within and between recommendation and search, for both tasks."""

from functools import partial

import torch
from huggingface_hub.dataclasses import strict

from gensar_hf.baselines.behavior_sequences import (
    AttentionBlock,
    RequestBatch,
    SequenceConfig,
    SequenceModel,
    fit_sequences,
    info_nce,
    masked_mean,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.data.user_events import Behavior


@strict
class UniSARConfig(SequenceConfig):
    """Configuration of a `UniSARModel`, in addition to `SequenceConfig`.

    Args:
        alignment_weight: weight of the contrastive losses.
        temperature: of the contrastive losses.
    """

    model_type = "unisar"

    alignment_weight: float = 0.1
    temperature: float = 0.1

    def validate_unisar(self) -> None:
        """Part of the `@strict` validation: weight and temperature of the contrastive losses."""
        if self.alignment_weight < 0:
            raise ValueError(f"`alignment_weight` must not be negative; got {self.alignment_weight}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}.")


class UniSARModel(SequenceModel):
    """Request vector = user and query, which attend to events after the transitions that lead to them.

    Shi et al., UniSAR: Modeling User Transition Behaviors between Search and Recommendation, SIGIR 2024. One masked
    transformer lets each event attend to the events before it in its own scenario (r→r and s→s), another one to those
    of the other scenario (s→r and r→s). Contrastive losses align a user's two views of a scenario, and cross-attention
    fuses them.

    Differs from the paper: one dot product instead of attention to a candidate and a network for each task, which
    allows cross entropy over the whole catalogue (theirs uses a few sampled negatives): the user and the query attend
    in place of the candidate. The two scenarios share a transformer for each kind of transition. Queries and items are
    aligned by the search task alone. Every click is an example of recommendation as well.
    """

    config_class = UniSARConfig
    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, config: UniSARConfig) -> None:
        super().__init__(config)
        self.within, self.between, self.fusion, self.reader = (AttentionBlock(config) for _ in range(4))
        self.post_init()

    def read(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Request vectors, `(batch_size, hidden_size)`, and in training the contrastive losses, `(batch_size,)`."""
        events, is_event = self.event_vectors(batch), batch.is_event()
        is_search = batch.is_event(Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM)
        num_events = events.shape[1]
        earlier = torch.ones(num_events, num_events, dtype=torch.bool, device=events.device).tril()
        readable = earlier & is_event[:, None]  # (batch_size, num_events, num_events)
        same = is_search[:, :, None] == is_search[:, None]
        within = self.within(events, events, readable & same)
        between = self.between(events, events, readable & ~same)
        fused = self.fusion(within, between, readable & same)
        request = self.query_vectors(batch.word_ids) + self.user_table(batch.user_ids)
        vectors = self.reader(request[:, None], fused, is_event[:, None])[:, 0]
        if not (self.training and self.config.alignment_weight):
            return vectors, 0.0
        is_same = batch.user_ids[:, None] == batch.user_ids
        losses = torch.zeros(len(vectors), device=vectors.device)
        for scenario in (is_event & ~is_search, is_search):
            views = masked_mean(within, scenario), masked_mean(between, scenario)
            losses = losses + info_nce(*views, scenario.any(dim=1), is_same, self.config.temperature)
        return vectors, self.config.alignment_weight * losses


BASELINES = {"unisar": Baseline(UniSARConfig, partial(fit_sequences, UniSARModel, "UniSAR"))}
