"""Metrics as pure functions of the target's rank, with one relevant item per request, and of what is recommended."""

import re
from collections.abc import Sequence

import numpy as np

from gensar_hf.errors import InputError


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


METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
"""The metrics of the paper's tables (NDCG@1 is HR@1), in their order."""
COMPARED_METRICS = (*METRICS, "MRR")
"""The metrics of a comparison of systems."""


def metric_per_request(name: str, target_ranks: np.ndarray) -> np.ndarray:
    """A metric of each request, `(num_requests,)` float64, by its name: `HR@k`, `NDCG@k`, `MRR` or `MRR@k`.

    >>> metric_per_request("MRR", np.array([1, 4])).tolist()
    [1.0, 0.25]

    Raises:
        InputError: there is no such metric.
        ValueError: a rank is below 1, or there are no ranks.
    """
    found = re.fullmatch(r"(HR|NDCG)@([1-9]\d*)|MRR(?:@([1-9]\d*))?", name)
    if found is None:
        raise InputError(f"There is no metric {name!r}; name some of HR@k, NDCG@k, MRR and MRR@k, such as HR@20.")
    if found[1]:
        per_request = hit_rate_per_request if found[1] == "HR" else ndcg_per_request
        return per_request(target_ranks, int(found[2]))
    ranks = _checked(target_ranks, 1)
    return np.where(ranks <= int(found[3] or ranks.max()), 1.0 / ranks, 0.0)


def metrics_per_request(target_ranks: np.ndarray, names: Sequence[str] = METRICS) -> np.ndarray:
    """Metrics of each request, `(num_requests, num_metrics)`; a metric is the mean of its column."""
    return np.stack([metric_per_request(name, target_ranks) for name in names], axis=1)


def coverage(items: np.ndarray, num_items: int) -> float:
    """Catalogue coverage: the fraction of all items that are recommended to anyone.

    Ge, Delgado-Battenfeld and Jannach, Beyond Accuracy, RecSys 2010, section 3. `items` `(num_requests, k)` are the
    recommended items' indices, -1 where there is none.
    """
    return float(len(np.unique(items[items >= 0])) / num_items)


def gini(items: np.ndarray, num_items: int) -> float:
    """Gini index of how often each item is recommended: 0 if all equally, near 1 if always the same few.

    Fleder and Hosanagar, Blockbuster Culture's Next Rise or Fall, Management Science 2009. Arguments as in `coverage`.

    >>> round(gini(np.array([[0], [0], [0], [0]]), num_items=4), 2), gini(np.array([[0], [1]]), num_items=2)
    (0.75, 0.0)
    """
    counts = np.sort(np.bincount(items[items >= 0], minlength=num_items))  # (num_items,), ascending
    places = np.arange(1, num_items + 1)
    return float(2 * (places * counts).sum() / (num_items * max(counts.sum(), 1)) - (num_items + 1) / num_items)


def _checked(target_ranks: np.ndarray, k: int) -> np.ndarray:
    ranks = np.asarray(target_ranks)
    if k < 1:
        raise ValueError(f"`k` is the length of a list and must be at least 1; got {k}.")
    if ranks.ndim != 1 or len(ranks) == 0:
        raise ValueError(f"`target_ranks` must hold one rank per request, at least one; got shape {ranks.shape}.")
    if not ranks.min() >= 1:
        raise ValueError(f"Ranks are counted from 1; the smallest rank is {ranks.min()}.")
    return ranks
