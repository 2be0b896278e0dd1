"""QEM: a query vector, personalized with a user vector, matched with the items' vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from gensar_hf.baselines.matching import (
    CLICKS,
    PADDING,
    BagModel,
    MatchingConfig,
    MatchingScorer,
    fit_matching,
    mean_vectors,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.user_events import Behavior

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset


@strict
class QEMConfig(MatchingConfig):
    """Configuration of a `QEMModel`, in addition to `MatchingConfig`.

    Args:
        personalized: add the user's vector to the query's, as in HEM (Ai et al. 2017).
    """

    model_type = "qem"

    personalized: bool = True


class QEMModel(BagModel):
    """Request vector = tanh(W · mean of the word vectors + b) [+ weight · user vector].

    Ai, Zhang, Bi, Chen and Croft, Learning a Hierarchical Embedding Model for Personalized Product Search, SIGIR 2017;
    Ai, Hill, Vishwanathan and Croft, A Zero Attention Model for Personalized Product Search, CIKM 2019.

    Differs from the papers: trained with cross entropy over the whole catalogue instead of a few sampled negatives; a
    bias for each item, initialized with its popularity; the user weight is learned instead of searched (HEM's λ); texts
    train the vectors by predicting their item from all words at once, not word by word from the item, and users have no
    texts. Clicks without a query train the user vectors of a personalized model.
    """

    config_class = QEMConfig

    def __init__(self, config: QEMConfig) -> None:
        super().__init__(config)
        self.query_projection = nn.Linear(config.hidden_size, config.hidden_size)
        if config.personalized:
            self.user_weight = nn.Parameter(torch.ones(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.personalized:
            init.ones_(self.user_weight)

    def request_vectors(
        self, user_ids: torch.Tensor, word_ids: torch.Tensor, history_ids: torch.Tensor
    ) -> torch.Tensor:
        """`(batch_size, hidden_size)`; the history is not read."""
        has_words = (word_ids != PADDING).any(dim=1, keepdim=True)
        vectors = torch.tanh(self.query_projection(mean_vectors(self.word_table, word_ids))) * has_words
        if not self.config.personalized:
            return vectors
        return vectors + self.user_weight * self.user_table(user_ids)


def fit_qem(dataset: "InteractionDataset", config: QEMConfig, training: Mapping[str, Any]) -> MatchingScorer:
    """Train on search clicks and on what the settings add; see `Baseline.fit`."""
    config.num_users = dataset.events.num_users if config.personalized else 0
    clicks = {"behaviors": CLICKS if config.personalized else [Behavior.SEARCHED_ITEM]}
    return fit_matching(QEMModel, dataset, config, training, [clicks], "QEM")


BASELINES = {"qem": Baseline(QEMConfig, fit_qem)}
