"""CoPPS: a transformer over query and history, made robust by contrasting altered histories."""

from functools import partial

import torch
from huggingface_hub.dataclasses import strict

from gensar_hf.baselines.behavior_sequences import RequestBatch, fit_sequences, info_nce
from gensar_hf.baselines.registry import Baseline
from gensar_hf.baselines.tem import TEMConfig, TEMModel


@strict
class CoPPSConfig(TEMConfig):
    """Configuration of a `CoPPSModel`, in addition to `TEMConfig`.

    Args:
        contrast_weight: weight of the contrastive loss.
        temperature: of the contrastive loss.
        mask_share: share of the clicks and of the query's words that a view leaves out.
        max_shift: how far a click moves in a view, below this number of places.
    """

    model_type = "copps"

    contrast_weight: float = 0.1
    temperature: float = 0.1
    mask_share: float = 0.2
    max_shift: float = 3.0

    def validate_copps(self) -> None:
        """Part of the `@strict` validation: weight and temperature of the loss, and how views are altered."""
        for name in ("contrast_weight", "max_shift"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}.")
        if not 0 <= self.mask_share < 1:
            raise ValueError(f"`mask_share` must be at least 0 and below 1; got {self.mask_share}.")


class CoPPSModel(TEMModel):
    """TEM's request vector, with the queries of earlier clicks, and a contrastive loss.

    Dai et al., Contrastive Learning for User Sequence Representation in Personalized Product Search, WSDM 2023. Two
    altered views of a request, with masked clicks and words and with moved clicks, must find each other in the batch.

    Differs from the paper: the contrastive loss is added to the ranking loss instead of minimized before it; no views
    from a knowledge graph or from other users' sequences; and as in `TEMModel`.
    """

    config_class = CoPPSConfig

    def click_vectors(self, batch: RequestBatch) -> torch.Tensor:
        """Vectors of the clicks with their queries, `(batch_size, num_clicks, hidden_size)`."""
        return self.event_vectors(batch)

    def read(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Request vectors, `(batch_size, hidden_size)`, and in training the contrastive loss, `(batch_size,)`."""
        vectors = self.query_states(batch)
        if not (self.training and self.config.contrast_weight):
            return vectors, 0.0
        first, second = (self.query_states(self.altered(batch)) for _ in range(2))
        has_history = batch.is_event().any(dim=1)
        is_same = batch.user_ids[:, None] == batch.user_ids
        losses = info_nce(first, second, has_history, is_same, self.config.temperature)
        return vectors, self.config.contrast_weight * losses

    def altered(self, batch: RequestBatch) -> RequestBatch:
        """A view of the requests: some clicks and words are masked, and clicks change places with near ones."""
        is_kept = torch.rand(batch.history_ids.shape, device=batch.history_ids.device) >= self.config.mask_share
        places = torch.arange(is_kept.shape[1], device=is_kept.device)
        shifts = torch.rand(is_kept.shape, device=is_kept.device) * self.config.max_shift
        order = (places + shifts).argsort(dim=1)
        words = batch.history_words.gather(1, order[:, :, None].expand_as(batch.history_words))
        is_kept_word = torch.rand(batch.word_ids.shape, device=is_kept.device) >= self.config.mask_share
        return RequestBatch(
            batch.user_ids,
            batch.word_ids * is_kept_word,
            batch.history_ids.gather(1, order) * is_kept,
            batch.history_behaviors.gather(1, order) * is_kept,
            words * is_kept[:, :, None],
        )


BASELINES = {"copps": Baseline(CoPPSConfig, partial(fit_sequences, CoPPSModel, "CoPPS"))}
