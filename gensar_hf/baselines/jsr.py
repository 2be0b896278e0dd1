"""JSR: one item representation, learned jointly from users' clicks and from queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from gensar_hf.baselines.matching import (
    PADDING,
    MatchingConfig,
    MatchingModel,
    MatchingScorer,
    build_model,
    click_examples,
    fit_matching,
    mean_vectors,
)
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.data.user_events import Behavior, UserEvents


@strict
class JSRConfig(MatchingConfig):
    """Configuration of a `JSRModel`, in addition to `MatchingConfig`.

    Args:
        history_length: number of latest clicks whose mean is part of the user's vector; 0 = only the user's id, as in
            the papers.
        search_weight: weight of a search click relative to a user's click in training.
        personalized_search: include the user and the history in search requests; the papers do not.
    """

    model_type = "jsr"

    history_length: int = 20
    search_weight: float = 1.0
    personalized_search: bool = False

    def validate_jsr(self) -> None:
        """Part of the `@strict` validation: ranges of the history length and the weight."""
        if self.history_length < 0:
            raise ValueError(f"`history_length` must not be negative; got {self.history_length}.")
        if self.search_weight <= 0:
            raise ValueError(f"`search_weight` must be positive; got {self.search_weight}.")


class JSRModel(MatchingModel):
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

    @property
    def user_tasks(self) -> frozenset[str]:
        """Tasks whose requests include the user and the history."""
        return self.tasks if self.config.personalized_search else frozenset({RECOMMENDATION})

    @property
    def history_length(self) -> int:
        """Number of latest clicks that the model reads."""
        return self.config.history_length

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


def fit(
    events: UserEvents, item_texts: Sequence[str], config: JSRConfig, training: Mapping[str, Any]
) -> MatchingScorer:
    """Train on all clicks as clicks of their users, and on search clicks as answers to queries; see `Baseline.fit`.

    Raises:
        InputError: there is no click to learn from.
    """
    model = build_model(JSRModel, events, item_texts, config, training["seed"])
    length, personalized = config.history_length, config.personalized_search
    user_clicks = click_examples(events, model, with_words=False, history_length=length)
    search_clicks = click_examples(
        events,
        model,
        [Behavior.SEARCHED_ITEM],
        with_users=personalized,
        history_length=length if personalized else 0,
        weight=config.search_weight,
    )
    name = "JSR, personalized search" if personalized else "JSR"
    return fit_matching(model, [user_clicks, search_clicks], item_texts, training, name)
