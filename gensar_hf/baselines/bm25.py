"""BM25 over item texts: lexical search, without histories."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.item_embeddings import row_chunks

_BLOCK_QUERIES = 16  # whose scores of all items are held at a time


class QueryScorer(ABC):
    """A search system that scores the whole catalogue for a query, without the user."""

    name: str
    tasks = frozenset({SEARCH})
    num_parameters = 0

    @abstractmethod
    def score_items(self, queries: list[str]) -> np.ndarray:
        """`(num_queries, num_items)`, higher is better; 0 where query and item have nothing in common."""

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Score of each candidate, `(num_requests, num_candidates)`; each distinct query is scored once."""
        query_codes, queries = pd.factorize(np.asarray(requests.query_texts, dtype=object))
        scores = np.zeros(candidates.shape)
        for block in row_chunks(len(queries), _BLOCK_QUERIES):
            by_query = np.asarray(self.score_items(list(queries[block])))
            rows = np.flatnonzero((query_codes >= block.start) & (query_codes < block.stop))
            scores[rows] = by_query[query_codes[rows, None] - block.start, candidates[rows]]
        return scores


@dataclass
class BM25Config:
    """The two parameters of BM25.

    Args:
        k1: term-frequency saturation; 0 = repetitions of a word do not count.
        b: length normalization, from 0 (none) to 1 (full).
    """

    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if self.k1 < 0:
            raise ValueError(f"`k1` must not be negative; got {self.k1}.")
        if not 0 <= self.b <= 1:
            raise ValueError(f"`b` must lie between 0 and 1; got {self.b}.")


class BM25(QueryScorer):
    """Score = BM25 of the item's text for the request's query, as computed by `BM25Index`.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, FnTIR 2009. One field, no stemming.
    BM25-hard candidates put it at a disadvantage with any parameters: all negatives are the best hits of an index with
    the default ones.
    """

    name = "BM25"

    def __init__(self, item_texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        self.index = BM25Index(item_texts, k1, b)

    def score_items(self, queries: list[str]) -> np.ndarray:
        """BM25 of every item for each query, `(num_queries, num_items)` float32; 0 without a common word."""
        return self.index.scores(queries)


BASELINES = {"bm25": Baseline(BM25Config, lambda dataset, config, _: BM25(dataset.item_texts(), config.k1, config.b))}
