"""Hybrid search: lexical and dense retrieval, fused by reciprocal rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gensar_hf.baselines.bm25 import BM25, BM25Config, QueryScorer
from gensar_hf.baselines.dense_retrieval import DenseRetrievalConfig, fit_dense_retrieval
from gensar_hf.baselines.registry import Baseline

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset


@dataclass
class HybridSearchConfig(BM25Config, DenseRetrievalConfig):
    """The settings of `BM25Config` and `DenseRetrievalConfig`, and the constant of the fusion.

    Args:
        k: constant of reciprocal rank fusion; the larger it is, the less the first ranks stand out.
    """

    k: float = 60

    def __post_init__(self) -> None:
        BM25Config.__post_init__(self)
        DenseRetrievalConfig.__post_init__(self)
        if self.k < 0:
            raise ValueError(f"`k` must not be negative; got {self.k}.")


class HybridSearch(QueryScorer):
    """Score = sum over the systems of 1 / (k + rank of the item in the whole catalogue).

    Reciprocal rank fusion: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual
    Rank Learning Methods, SIGIR 2009. An item that a system scores 0 (no common word, no text) gets nothing from that
    system, and items of equal score share their mean rank, so that the order of the catalogue has no effect.

    Args:
        systems: `BM25` and `DenseRetrieval`, or others like them, over the same catalogue.
        k: the constant; 60 in the paper.
    """

    name = "Hybrid (RRF)"

    def __init__(self, systems: Sequence[QueryScorer], k: float = 60) -> None:
        self.systems, self.k = list(systems), k
        self.num_parameters = sum(system.num_parameters for system in systems)

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


def fit_hybrid(dataset: "InteractionDataset", config: HybridSearchConfig, training: Mapping[str, Any]) -> HybridSearch:
    """Index and encode the item texts; see `Baseline.fit`."""
    dense = fit_dense_retrieval(dataset, config, training)
    return HybridSearch([BM25(dataset.item_texts(), config.k1, config.b), dense], config.k)


BASELINES = {"hybrid": Baseline(HybridSearchConfig, fit_hybrid)}
