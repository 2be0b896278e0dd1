"""HR@k and NDCG@k as pure functions of the target's rank: one relevant item per request, ranks from 1."""

from collections.abc import Callable

import numpy as np


def hit_rate_per_request(target_ranks: np.ndarray, k: int) -> np.ndarray:
    """HR@k of each request: 1 if the target is among the first k items, else 0.

    Args:
        target_ranks: `(num_requests,)`, the rank of each request's target, from 1.
        k: length of the list that counts.

    Returns:
        `(num_requests,)` float64.

    Raises:
        ValueError: `k` or a rank is below 1, or there are no ranks.
    """
    return (_checked(target_ranks, k) <= k).astype(np.float64)


def ndcg_per_request(target_ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each request: 1 / log2(rank + 1) within the first k items, else 0 (the ideal DCG is 1).

    Arguments, shapes and errors are those of `hit_rate_per_request`.
    """
    ranks = _checked(target_ranks, k)
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def hit_rate(target_ranks: np.ndarray, k: int) -> float:
    """HR@k: the fraction of requests whose target is among the first k items (with one target equal to recall@k).

    >>> hit_rate(np.array([1, 3, 11, 20]), k=10)
    0.5
    """
    return float(hit_rate_per_request(target_ranks, k).mean())


def ndcg(target_ranks: np.ndarray, k: int) -> float:
    """NDCG@k with one relevant item: IDCG is 1, a hit at rank r gains 1 / log2(r + 1).

    >>> ndcg(np.array([1, 3, 11, 20]), k=10)
    0.375
    """
    return float(ndcg_per_request(target_ranks, k).mean())


METRICS: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]] = {
    "HR@1": (hit_rate_per_request, 1),
    "HR@5": (hit_rate_per_request, 5),
    "HR@10": (hit_rate_per_request, 10),
    "NDCG@5": (ndcg_per_request, 5),
    "NDCG@10": (ndcg_per_request, 10),
}
"""The metrics of the paper's tables (NDCG@1 is HR@1), in their order."""


def metrics_per_request(target_ranks: np.ndarray) -> np.ndarray:
    """All metrics of `METRICS` for each request, `(num_requests, num_metrics)`; a metric is the mean of its column."""
    return np.stack([per_request(target_ranks, k) for per_request, k in METRICS.values()], axis=1)


def _checked(target_ranks: np.ndarray, k: int) -> np.ndarray:
    ranks = np.asarray(target_ranks)
    if k < 1:
        raise ValueError(f"`k` is the length of a list and must be at least 1; got {k}.")
    if ranks.ndim != 1 or len(ranks) == 0:
        raise ValueError(f"`target_ranks` must hold one rank per request, at least one; got shape {ranks.shape}.")
    if not ranks.min() >= 1:
        raise ValueError(f"Ranks are counted from 1; the smallest rank is {ranks.min()}.")
    return ranks
