"""How far a figure would move with other users: bootstrap intervals and a paired test."""

from typing import NamedTuple

import numpy as np


def bootstrap_interval(
    values: np.ndarray,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, ch. 13).

    Users are drawn with replacement, each with all its requests, because requests of one user are not independent.

    Args:
        values: `(num_requests,)` or `(num_requests, num_metrics)`, each request's share in each metric.
        confidence: share of the resampled means that the interval holds.
        num_resamples: how often to draw as many users as there are.
        seed: of the draws; the same seed draws the same users whatever the values.
        groups: `(num_requests,)`, the user of each request; every request is its own user when omitted.

    Returns:
        lower and upper end, each of shape `()` or `(num_metrics,)`.

    Raises:
        ValueError: when there are no values, lengths differ, or `confidence` is not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("`values` is empty: an interval needs at least one request.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1; got {confidence}.")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"`groups` must name one user per value; got {len(groups)} for {len(values)} values.")
    sums, sizes = _group_totals(values, groups)
    means = _resampled_means(sums, sizes, num_resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _group_totals(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values `(num_groups, num_metrics)` and number of requests `(num_groups,)` of each group."""
    columns = values.reshape(len(values), -1)
    if groups is None:
        return columns, np.ones(len(columns))
    _, group_of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), columns.shape[1]))
    np.add.at(sums, group_of_row, columns)
    return sums, sizes.astype(np.float64)


def _resampled_means(
    sums: np.ndarray, sizes: np.ndarray, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Means of the resamples, `(num_resamples, num_metrics)`, in chunks of about ten million draws."""
    num_groups = len(sizes)
    chunk_size = max(1, 10_000_000 // num_groups)
    means = []
    for start in range(0, num_resamples, chunk_size):
        num_rows = min(chunk_size, num_resamples - start)
        drawn = generator.integers(num_groups, size=(num_rows, num_groups))
        drawn += num_groups * np.arange(num_rows)[:, None]  # a cell of its own for every (resample, group)
        times_drawn = np.bincount(drawn.ravel(), minlength=num_rows * num_groups).reshape(num_rows, num_groups)
        means.append((times_drawn @ sums) / (times_drawn @ sizes)[:, None])
    return np.concatenate(means)


class PairedTTest(NamedTuple):
    """mean_difference: of `first - second`. statistic: Student's t. p_value: two-sided."""

    mean_difference: float
    statistic: float
    p_value: float


def paired_t_test(first: np.ndarray, second: np.ndarray) -> PairedTTest:
    """Student's paired t-test of two systems' per-request values on the same requests.

    Args:
        first: `(num_requests,)`, such as `ndcg_per_request` of one system.
        second: the same requests' values of the other system.

    Returns:
        the mean difference, t and the two-sided p-value. When all differences are the same, t is 0 or infinite.

    Raises:
        ValueError: when the shapes differ or there are fewer than two requests.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"A paired test needs the same two or more requests twice; got {first.shape}, {second.shape}.")
    from scipy.special import stdtr  # scipy.stats would take 1.4 s to import

    differences = first - second
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation == 0:
        return PairedTTest(mean, 0.0, 1.0) if mean == 0 else PairedTTest(mean, float(np.copysign(np.inf, mean)), 0.0)
    statistic = mean * np.sqrt(len(first)) / deviation
    return PairedTTest(mean, float(statistic), float(2 * stdtr(len(first) - 1, -abs(statistic))))
