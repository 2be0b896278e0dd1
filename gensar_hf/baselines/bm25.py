"""BM25 over the items' texts: lexical search without a history."""

from collections.abc import Sequence

import numpy as np

from gensar_hf.baselines.query_scores import gather_query_scores
from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.evaluation.bm25_index import BM25Index


class BM25:
    """Score = BM25 of the item's text for the request's query (Robertson and Zaragoza 2009), as `BM25Index` counts it.

    Simplified: one field, `bm25s`' default k1 and b instead of tuned ones, no stemming. On BM25-hard candidates it
    cannot shine: all negatives are its own best answers.

    Args:
        item_texts: one text per item in catalogue order, or an index that is there already.
        name: the row's name in tables.
    """

    tasks = frozenset({SEARCH})

    def __init__(self, item_texts: Sequence[str] | BM25Index, name: str = "BM25"):
        self.name = name
        self.index = item_texts if isinstance(item_texts, BM25Index) else BM25Index(item_texts)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """BM25 of each candidate, `(num_requests, num_candidates)` float32; 0 where no word is shared."""
        return gather_query_scores(requests, candidates, self.index.scores)
