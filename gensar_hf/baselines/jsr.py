"""JSR: one item representation, learnt from users' clicks and from queries at once."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.click_examples import click_examples
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
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.data.user_events import Behavior

NAME = "JSR"
REFERENCE = (
    "Zamani and Croft, Joint Modeling and Optimization of Search and Recommendation, DESIRES 2018; Zamani and Croft, "
    "Learning a Joint Search and Recommendation Model from User-Item Interactions, WSDM 2020"
)


@dataclass
class Settings(MatchingSettings):
    """JSR's settings, beside those of `MatchingSettings`.

    Attributes:
        history_length: latest clicked items whose mean is part of the user; 0 = the user's id alone, as in the papers.
        search_weight: how much a click after a search counts beside one of a user.
        personalized_search: whether a search is told the user, too; the papers' is not.
    """

    history_length: int = 20
    search_weight: float = 1.0
    personalized_search: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_length < 0:
            raise ValueError(f"`history_length` must not be negative; got {self.history_length}.")
        if self.search_weight <= 0:
            raise ValueError(f"`search_weight` must be positive; got {self.search_weight}.")


@strict
class JSRConfig(MatchingConfig):
    """Sizes of a `JSRModel`; see `Settings`."""

    model_type = "jsr"

    history_length: int = 20


class JSRModel(MatchingModel):
    """Request's vector = user's part + query's part; recommendation has no query, search (in the papers) no user.

    The query's part is tanh(W · weighted mean of the words' vectors + b), the weights a softmax over a learnt number
    for each word. The user's part is a vector of the id and, ours, a projection of the mean of the clicked items'
    vectors. The items' vectors and biases are the same for both tasks.

    Differs from the papers: one dot product instead of a network for each task over products of the vectors, because
    it lets both losses be cross entropies over the whole catalogue (theirs take a few sampled negatives); items' texts
    teach the vectors, when they do, by predicting the item from the words instead of the words from the item. Every
    click is a click of its user; one after a search teaches the query's part besides.
    """

    config_class = JSRConfig

    def __init__(self, config: JSRConfig) -> None:
        super().__init__(config)
        self.word_weights = nn.Embedding(config.num_words + 1, 1, padding_idx=PADDING)
        self.query_projection = nn.Linear(config.hidden_size, config.hidden_size)
        if config.history_length:
            self.history_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    def request_vectors(
        self, user_ids: torch.Tensor, word_ids: torch.Tensor, history_ids: torch.Tensor
    ) -> torch.Tensor:
        """`(batch_size, hidden_size)`; what is all padding adds nothing."""
        vectors = self._query_vectors(word_ids) + self.user_table(user_ids)
        if self.config.history_length:
            vectors = vectors + self.history_projection(mean_vectors(self.item_table, history_ids))
        return vectors

    def _query_vectors(self, word_ids: torch.Tensor) -> torch.Tensor:
        is_word = word_ids != PADDING
        weights = self.word_weights(word_ids).squeeze(-1).masked_fill(~is_word, torch.finfo(torch.float32).min)
        shares = (weights.softmax(dim=1) * is_word).to(self.word_table.weight.dtype)  # (batch_size, num_words)
        words = F.embedding_bag(
            word_ids, self.word_table.weight, mode="sum", per_sample_weights=shares, padding_idx=PADDING
        )
        return torch.tanh(self.query_projection(words)) * is_word.any(dim=1, keepdim=True)


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> MatchingScorer:
    """Learn from all clicks as clicks of their users, and from search clicks as answers to their queries.

    Args:
        data: to learn from.
        settings: of model and training.
        seed: of initial weights, batches and dropout.
        folder: for the model and its vocabulary.
        checkpoints: where a training that was killed goes on.

    Raises:
        InputError: there is no click to learn from.
    """
    vocabulary, length = learn_vocabulary(data, settings), settings.history_length
    model = build_model(JSRModel, data, vocabulary, settings, seed, history_length=length)
    tells_user = settings.personalized_search
    recommended = click_examples(data.events, vocabulary, with_words=False, history_length=length)
    searched = click_examples(
        data.events,
        vocabulary,
        [Behavior.SEARCHED_ITEM],
        with_users=tells_user,
        history_length=length if tells_user else 0,
        weight=settings.search_weight,
    )
    fit_matching(model, data, vocabulary, [recommended, searched], settings, seed, folder, checkpoints)
    return MatchingScorer(
        model,
        vocabulary,
        name=f"{NAME}, personalized search" if tells_user else NAME,
        tasks=frozenset({RECOMMENDATION, SEARCH}),
        user_tasks=frozenset({RECOMMENDATION, SEARCH} if tells_user else {RECOMMENDATION}),
        history_length=length,
        skip_clicked=settings.skip_clicked,
    )
