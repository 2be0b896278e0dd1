"""SESRec: recommendation with similar and dissimilar interests of clicks and searches."""

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
    info_nce,
    masked_mean,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import RECOMMENDATION
from gensar_hf.data.user_events import Behavior


@strict
class SESRecConfig(SequenceConfig):
    """Configuration of a `SESRecModel`, in addition to `SequenceConfig`.

    Args:
        alignment_weight: weight of the contrastive loss of queries and their items.
        temperature: of the contrastive loss.
        triplet_weight: weight of the triplet losses.
        margin: of the triplet losses, a distance.
    """

    model_type = "sesrec"

    alignment_weight: float = 0.1
    temperature: float = 0.1
    triplet_weight: float = 0.1
    margin: float = 0.1

    def validate_sesrec(self) -> None:
        """Part of the `@strict` validation: weights, temperature and margin of the losses."""
        for name in ("alignment_weight", "triplet_weight", "margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}.")


class SESRecModel(SequenceModel):
    """Request vector = user + all, similar and dissimilar interests of the clicks and of the searches.

    Si et al., When Search Meets Recommendation: Learning Disentangled Search Representation for Recommendation, SIGIR
    2023. The events of recommendation and those of search are encoded apart. Co-attention tells for each event how
    similar it is to the other history: events with more than an equal share of the attention are similar, the others
    dissimilar. A triplet loss draws the attended history to its similar part, and a contrastive loss aligns queries
    with the items clicked for them.

    Differs from the paper: one dot product instead of attention to a candidate and a network, which allows cross
    entropy over the whole catalogue (theirs uses a few sampled negatives): the user attends in place of the candidate.
    Both histories share an encoder. Clicks after a search are targets as well, and the latest one is aligned.
    """

    config_class = SESRecConfig
    tasks = frozenset({RECOMMENDATION})

    def __init__(self, config: SESRecConfig) -> None:
        super().__init__(config)
        self.encoder, self.reader = AttentionBlock(config), AttentionBlock(config)
        self.affinity = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.interests = nn.Parameter(torch.zeros(6, config.hidden_size))
        self.fusion = nn.Linear(6 * config.hidden_size, config.hidden_size)
        self.post_init()

    def read(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Request vectors, `(batch_size, hidden_size)`, and in training the other losses, `(batch_size,)`."""
        is_search = batch.is_event(Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM)
        histories = batch.is_event(Behavior.RECOMMENDED_ITEM), is_search
        events = self.event_vectors(batch)
        readable = batch.is_event()[:, None] & (is_search[:, :, None] == is_search[:, None])
        events = self.encoder(events, events, readable)
        shares = self.co_attention(events, *histories)
        masks: list[torch.Tensor] = []
        losses = torch.zeros(len(events), device=events.device)
        for is_event, share in zip(histories, shares, strict=True):
            # With an equal share for every event there is nothing to separate: all are similar.
            is_similar = is_event & (share * is_event.sum(dim=1, keepdim=True) >= 1 - 1e-4)
            is_other = is_event & ~is_similar
            masks += [is_event, is_similar, is_other]
            if self.training:
                losses = losses + self.triplet_losses(events, share, is_similar, is_other)
        user = self.user_table(batch.user_ids)
        read = self.reader(user[:, None] + self.interests, events, torch.stack(masks, dim=1))
        vectors = user + self.fusion(read.flatten(1))
        if not self.training:
            return vectors, 0.0
        return vectors, self.config.triplet_weight * losses + self.config.alignment_weight * self.alignment(batch)

    def co_attention(
        self, events: torch.Tensor, is_click: torch.Tensor, is_search: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of each event in its history's attention by the other history, two `(batch_size, num_events)`.

        The share is a softmax of the mean of tanh(h W h') over the other history's events h'.
        """
        affinity = torch.tanh(self.affinity(events) @ events.transpose(1, 2) / events.shape[-1] ** 0.5)
        shares = []
        for own, other, scores in ((is_click, is_search, affinity), (is_search, is_click, affinity.transpose(1, 2))):
            means = (scores * other[:, None]).sum(dim=2) / other.sum(dim=1, keepdim=True).clamp(min=1)
            shares.append(means.float().masked_fill(~own, torch.finfo(torch.float32).min).softmax(dim=1) * own)
        return shares[0], shares[1]

    def triplet_losses(
        self, events: torch.Tensor, share: torch.Tensor, is_similar: torch.Tensor, is_other: torch.Tensor
    ) -> torch.Tensor:
        """`(batch_size,)` how far the attended history is from being nearer to its similar part by the margin."""
        anchor = torch.einsum("bld,bl->bd", events, share.to(events.dtype))
        similar, other = masked_mean(events, is_similar), masked_mean(events, is_other)
        distances = F.pairwise_distance(anchor, similar), F.pairwise_distance(anchor, other)
        return (distances[0] - distances[1] + self.config.margin).clamp(min=0) * is_other.any(dim=1)

    def alignment(self, batch: RequestBatch) -> torch.Tensor:
        """`(batch_size,)` contrastive losses of each history's latest searched item and its query."""
        is_searched = batch.is_event(Behavior.SEARCHED_ITEM)
        columns = torch.arange(1, is_searched.shape[1] + 1, device=is_searched.device)
        latest = (is_searched * columns).argmax(dim=1)
        rows = torch.arange(len(latest), device=latest.device)
        items, words = batch.history_ids[rows, latest], batch.history_words[rows, latest]
        is_same = (items[:, None] == items) | (words[:, None] == words).all(dim=2)
        queries, vectors = self.query_vectors(words), self.item_table(items)
        has_pair = is_searched.any(dim=1)
        by_query = info_nce(queries, vectors, has_pair, is_same, self.config.temperature)
        return by_query + info_nce(vectors, queries, has_pair, is_same, self.config.temperature)


BASELINES = {"sesrec": Baseline(SESRecConfig, partial(fit_sequences, SESRecModel, "SESRec"))}
