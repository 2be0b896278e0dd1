"""BM25 over item texts: lexical search, without histories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.evaluation.bm25_index import BM25Index


@dataclass
class BM25Config:
    """The two parameters of BM25.

    Args:
        k1: term-frequency saturation; 0 = repetitions of a word do not count.
        b: length normalization, from 0 (none) to 1 (full).

    Raises:
        ValueError: a value out of range.
    """

    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if self.k1 < 0:
            raise ValueError(f"`k1` must not be negative; got {self.k1}.")
        if not 0 <= self.b <= 1:
            raise ValueError(f"`b` must lie between 0 and 1; got {self.b}.")


class BM25:
    """Score = BM25 of the item's text for the request's query, as computed by `BM25Index`.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, FnTIR 2009. One field, no stemming.
    BM25-hard candidates put it at a disadvantage with any parameters: all negatives are the best hits of an index with
    the default ones.

    Args:
        item_texts: one text per item in catalogue order, or an existing index of them.
        name: the row's name in tables.
    """

    tasks = frozenset({SEARCH})
    num_parameters = 0

    def __init__(self, item_texts: Sequence[str] | BM25Index, name: str = "BM25") -> None:
        self.name = name
        self.index = item_texts if isinstance(item_texts, BM25Index) else BM25Index(item_texts)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """BM25 of each candidate, `(num_requests, num_candidates)` float32; 0 if query and text share no word."""
        return gather_query_scores(requests, candidates, self.score_items)

    def score_items(self, queries: list[str]) -> np.ndarray:
        """BM25 of every item for each query, `(num_queries, num_items)` float32."""
        return self.index.scores(queries)


def gather_query_scores(
    requests: Requests, candidates: np.ndarray, score_items: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """Candidate scores that depend only on the query, computed once per distinct query.

    Args:
        requests: search requests.
        candidates: `(num_requests, num_candidates)` item indices.
        score_items: distinct queries → `(num_queries, num_items)` scores of all items.

    Returns:
        `(num_requests, num_candidates)`.
    """
    query_codes, queries = pd.factorize(np.asarray(requests.query_texts, dtype=object))
    return score_items(list(queries))[query_codes[:, None], candidates]
