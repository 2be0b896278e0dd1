"""Hybrid search: lexical and dense retrieval, fused by reciprocal rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gensar_hf.baselines import dense_retrieval
from gensar_hf.baselines.bm25 import BM25, BM25Config, gather_query_scores
from gensar_hf.baselines.dense_retrieval import DenseRetrievalConfig
from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.data.user_events import UserEvents
from gensar_hf.evaluation.bm25_index import BM25Index


class QueryScorer(Protocol):
    """A search system that scores the whole catalogue for a query, without the user: `BM25`, `DenseRetrieval`."""

    num_parameters: int

    def score_items(self, queries: list[str]) -> np.ndarray:
        """`(num_queries, num_items)`, higher is better; 0 where query and item have nothing in common."""
        ...


@dataclass
class HybridSearchConfig(BM25Config, DenseRetrievalConfig):
    """The settings of `BM25Config` and `DenseRetrievalConfig`, and the constant of the fusion.

    Args:
        k: constant of reciprocal rank fusion; the larger it is, the less the first ranks stand out.

    Raises:
        ValueError: a value out of range.
    """

    k: float = 60

    def __post_init__(self) -> None:
        BM25Config.__post_init__(self)
        DenseRetrievalConfig.__post_init__(self)
        _check_k(self.k)


class HybridSearch:
    """Score = sum over the systems of 1 / (k + rank of the item in the whole catalogue).

    Reciprocal rank fusion: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual
    Rank Learning Methods, SIGIR 2009. An item that a system scores 0 (no common word, no text) gets nothing from that
    system, and items of equal score share their mean rank, so that the order of the catalogue has no effect.

    Args:
        systems: `BM25` and `DenseRetrieval`, or others like them, over the same catalogue.
        name: the row's name in tables.
        k: the constant; 60 in the paper.

    Raises:
        ValueError: there are no systems, or `k` is negative.
    """

    tasks = frozenset({SEARCH})

    def __init__(self, systems: Sequence[QueryScorer], name: str = "Hybrid (RRF)", k: float = 60) -> None:
        if not systems:
            raise ValueError("`systems` is empty; a hybrid fuses the ranks of at least one system.")
        _check_k(k)
        self.systems, self.name, self.k = list(systems), name, k
        self.num_parameters = sum(system.num_parameters for system in systems)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Fused score of each candidate, `(num_requests, num_candidates)` float64."""
        return gather_query_scores(requests, candidates, self.score_items)

    def score_items(self, queries: list[str]) -> np.ndarray:
        """Fused score of every item, `(num_queries, num_items)` float64; 0 if every system scores the item 0."""
        from scipy.stats import rankdata  # takes 1.4 s to import

        fused: Any = 0.0
        for system in self.systems:
            scores = np.asarray(system.score_items(queries))
            matches = scores != 0
            ranks = rankdata(np.where(matches, -scores, np.inf), axis=1)  # from 1, ties share their mean
            fused = fused + matches / (self.k + ranks)
        return fused


def _check_k(k: float) -> None:
    if k < 0:
        raise ValueError(f"`k` must not be negative; got {k}.")


def fit(
    events: UserEvents, item_texts: Sequence[str], config: HybridSearchConfig, training: Mapping[str, Any]
) -> HybridSearch:
    """Index and encode the item texts; see `Baseline.fit`.

    Raises:
        InputError: the encoder cannot be found or loaded.
    """
    bm25 = BM25(BM25Index(item_texts, config.k1, config.b))
    return HybridSearch([bm25, dense_retrieval.fit(events, item_texts, config, training)], k=config.k)
