"""JSR: joint search and recommendation by a user part and a query part over the same item vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from gensar_hf.baselines.matching import (
    PADDING,
    BagModel,
    MatchingConfig,
    MatchingScorer,
    fit_matching,
    mean_vectors,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.data.user_events import Behavior

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset


@strict
class JSRConfig(MatchingConfig):
    """Configuration of a `JSRModel`, in addition to `MatchingConfig`.

    Args:
        history_length: number of latest clicks whose mean is part of the user's vector; 0 = only the user's id, as in
            the papers.
        personalized_search: include the user and the history in search requests; the papers do not.
    """

    model_type = "jsr"

    history_length: int = 20
    personalized_search: bool = False

    def validate_jsr(self) -> None:
        """Part of the `@strict` validation: range of the history length."""
        if self.history_length < 0:
            raise ValueError(f"`history_length` must not be negative; got {self.history_length}.")


class JSRModel(BagModel):
    """Request vector = user part + query part; recommendation has no query, search (in the papers) no user.

    Zamani and Croft, Joint Modeling and Optimization of Search and Recommendation, DESIRES 2018; Zamani and Croft,
    Learning a Joint Search and Recommendation Model from User-Item Interactions, WSDM 2020.

    The query part is tanh(W · weighted mean of the word vectors + b), the weights a softmax over a learned number for
    each word. The user part is a vector of the id plus (our addition) a projection of the mean of the clicked items'
    vectors. Both tasks share the item vectors and biases.

    Differs from the papers: one dot product instead of a network for each task over products of the vectors, which
    allows cross entropies over the whole catalogue (theirs use a few sampled negatives); item texts train the vectors
    by predicting the item from the words instead of the words from the item. Every click is a click of its user; a
    search click also trains the query part.
    """

    config_class = JSRConfig
    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, config: JSRConfig) -> None:
        super().__init__(config)
        self.word_weights = nn.Embedding(len(config.words) + 1, 1, padding_idx=PADDING)
        self.query_projection = nn.Linear(config.hidden_size, config.hidden_size)
        if config.history_length:
            self.history_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    def reads_user(self, task: str) -> bool:
        """Whether requests of the task include the user and the history."""
        return task == RECOMMENDATION or self.config.personalized_search

    def request_vectors(
        self, user_ids: torch.Tensor, word_ids: torch.Tensor, history_ids: torch.Tensor
    ) -> torch.Tensor:
        """`(batch_size, hidden_size)`; padding adds nothing."""
        vectors = self._query_vectors(word_ids) + self.user_table(user_ids)
        if self.config.history_length:
            vectors = vectors + self.history_projection(mean_vectors(self.item_table, history_ids))
        return vectors

    def _query_vectors(self, word_ids: torch.Tensor) -> torch.Tensor:
        is_word = word_ids != PADDING
        weights = self.word_weights(word_ids).squeeze(-1).masked_fill(~is_word, torch.finfo(torch.float32).min)
        normalized = (weights.softmax(dim=1) * is_word).to(self.word_table.weight.dtype)  # (batch_size, num_words)
        words = F.embedding_bag(
            word_ids, self.word_table.weight, mode="sum", per_sample_weights=normalized, padding_idx=PADDING
        )
        return torch.tanh(self.query_projection(words)) * is_word.any(dim=1, keepdim=True)


def fit_jsr(dataset: "InteractionDataset", config: JSRConfig, training: Mapping[str, Any]) -> MatchingScorer:
    """Train on all clicks as clicks of their users, and on search clicks as answers to queries; see `Baseline.fit`."""
    config.num_users = dataset.events.num_users
    length, personalized = config.history_length, config.personalized_search
    user_clicks = {"with_words": False, "history_length": length}
    search_clicks: dict[str, Any] = {"behaviors": [Behavior.SEARCHED_ITEM], "with_users": personalized}
    search_clicks["history_length"] = length if personalized else 0
    name = "JSR, personalized search" if personalized else "JSR"
    return fit_matching(JSRModel, dataset, config, training, [user_clicks, search_clicks], name)


BASELINES = {
    "jsr": Baseline(JSRConfig, fit_jsr),
    "jsr_personalized": Baseline(JSRConfig, fit_jsr, {"personalized_search": True}),
}
