"""QEM, personalized or not: a query's words and a user's id against the items' ids."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.click_examples import CLICKS, click_examples
from gensar_hf.baselines.matching import (
    MatchingConfig,
    MatchingModel,
    MatchingScorer,
    MatchingSettings,
    build_model,
    fit_matching,
    learn_vocabulary,
    mean_vectors,
)
from gensar_hf.baselines.vocabulary import PADDING
from gensar_hf.data.splits import SEARCH
from gensar_hf.data.user_events import Behavior

NAME = "QEM"
REFERENCE = (
    "Ai, Zhang, Bi, Chen and Croft, Learning a Hierarchical Embedding Model for Personalized Product Search, SIGIR "
    "2017; Ai, Hill, Vishwanathan and Croft, A Zero Attention Model for Personalized Product Search, CIKM 2019"
)


@dataclass
class Settings(MatchingSettings):
    """QEM's settings, beside those of `MatchingSettings`.

    Attributes:
        personalized: whether the user's vector is added to the query's, as in HEM (Ai et al. 2017).
        recommendation_clicks: whether a personalized model learns from clicks on recommendations, too: from the user
            alone to the item.
    """

    personalized: bool = True
    recommendation_clicks: bool = True


@strict
class QEMConfig(MatchingConfig):
    """Sizes of a `QEMModel`; see `Settings`."""

    model_type = "qem"

    personalized: bool = True


class QEMModel(MatchingModel):
    """Request's vector = tanh(W · mean of the words' vectors + b) [+ weight · user's vector].

    Differs from the papers: trained with cross entropy over the whole catalogue instead of a few sampled negatives; a
    bias for each item, which is its popularity; the weight of the user is learnt instead of searched (HEM's λ); texts
    teach the vectors by predicting their item from all their words at once, not word by word from the item, and users
    have no texts. That clicks without a query teach the users' vectors is ours, and a setting.
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


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> MatchingScorer:
    """Learn from search clicks, and from what else the settings name.

    Args:
        data: to learn from.
        settings: of model and training.
        seed: of initial weights, batches and dropout.
        folder: for the model and its vocabulary.
        checkpoints: where a training that was killed goes on.

    Raises:
        InputError: there is no click to learn from.
    """
    vocabulary = learn_vocabulary(data, settings)
    num_users = data.events.num_users if settings.personalized else 0
    model = build_model(
        QEMModel, data, vocabulary, settings, seed, num_users=num_users, personalized=settings.personalized
    )
    learns_from_all = settings.personalized and settings.recommendation_clicks
    clicks = click_examples(data.events, vocabulary, CLICKS if learns_from_all else [Behavior.SEARCHED_ITEM])
    fit_matching(model, data, vocabulary, [clicks], settings, seed, folder, checkpoints)
    tasks = frozenset({SEARCH})
    return MatchingScorer(model, vocabulary, NAME, tasks, user_tasks=tasks, skip_clicked=settings.skip_clicked)
