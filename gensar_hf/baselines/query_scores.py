"""Scores that depend on the query alone: computed once per distinct query, in chunks, then gathered."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from gensar_hf.data.splits import Requests

_CHUNK_SIZE = 256  # queries whose scores of all items are held at once: 13 MB for 12,000 items


def gather_query_scores(
    requests: Requests, candidates: np.ndarray, score_items: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """Each request's candidates' scores for its query.

    Args:
        requests: search requests.
        candidates: `(num_requests, num_candidates)` item indices.
        score_items: a list of distinct queries → `(num_queries, num_items)` scores of all items.

    Returns:
        `(num_requests, num_candidates)` float32.
    """
    query_codes, queries = pd.factorize(np.asarray(requests.query_texts, dtype=object))
    scores = np.zeros(candidates.shape, dtype=np.float32)
    for start in range(0, len(queries), _CHUNK_SIZE):
        item_scores = score_items(list(queries[start : start + _CHUNK_SIZE]))
        rows = np.flatnonzero((query_codes >= start) & (query_codes < start + _CHUNK_SIZE))
        scores[rows] = item_scores[query_codes[rows, None] - start, candidates[rows]]
    return scores
