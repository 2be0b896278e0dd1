"""Bootstrap confidence intervals of metrics over users, and the correction of many tests."""

from collections.abc import Sequence

import numpy as np

from gensar_hf.evaluation.metrics import METRICS

CONFIDENCE, NUM_RESAMPLES = 0.95, 1000


def bootstrap_interval(
    values: np.ndarray,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, ch. 13).

    Users are drawn with replacement, each with all its requests, because requests of one user are not independent.

    Args:
        values: `(num_requests,)` or `(num_requests, num_metrics)`, per-request values of each metric.
        confidence: fraction of the resampled means inside the interval.
        num_resamples: number of resamples, each as large as the number of users.
        seed: of the draws; the same seed draws the same users for any values.
        groups: `(num_requests,)`, the user of each request; by default every request is its own user.

    Returns:
        lower and upper end, each of shape `()` or `(num_metrics,)`.

    Raises:
        ValueError: there are no values, lengths differ, or `confidence` is not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("`values` is empty: an interval needs at least one request.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1; got {confidence}.")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"`groups` must name one user per value; got {len(groups)} for {len(values)} values.")
    sums, sizes = values.reshape(len(values), -1), np.ones(len(values))  # of each group: (num_groups, num_metrics), …
    if groups is not None:
        _, group_of_row, counts = np.unique(groups, return_inverse=True, return_counts=True)
        sums, sizes = np.zeros((len(counts), sums.shape[1])), counts.astype(np.float64)
        np.add.at(sums, group_of_row, values.reshape(len(values), -1))
    num_groups, generator, means = len(sizes), np.random.default_rng(seed), []
    chunk_size = max(1, 10_000_000 // num_groups)  # resamples at a time, about ten million draws
    for start in range(0, num_resamples, chunk_size):
        num_rows = min(chunk_size, num_resamples - start)
        drawn = generator.integers(num_groups, size=(num_rows, num_groups))
        drawn += num_groups * np.arange(num_rows)[:, None]  # one cell per (resample, group)
        times_drawn = np.bincount(drawn.ravel(), minlength=num_rows * num_groups).reshape(num_rows, num_groups)
        means.append((times_drawn @ sums) / (times_drawn @ sizes)[:, None])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def metric_intervals(
    values: np.ndarray, seed: int = 0, groups: np.ndarray | None = None, names: Sequence[str] = METRICS
) -> dict[str, dict[str, float]]:
    """The mean of each metric with its bootstrap interval: name → `value`, `low`, `high`.

    `values` is `(num_requests, num_metrics)`, as `metrics_per_request` returns them, or differences of two systems.
    `seed` and `groups` are those of `bootstrap_interval`.
    """
    ends = bootstrap_interval(values, seed=seed, groups=groups)
    columns = np.stack([values.mean(axis=0), *ends], axis=1).tolist()
    return {
        metric: {"value": value, "low": low, "high": high}
        for metric, (value, low, high) in zip(names, columns, strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected so that one false finding among all has at most the stated chance.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979: the smallest
    of n is multiplied by n, the next by n - 1 and so on; none is smaller than the one before, or larger than 1.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order, corrected, largest = np.argsort(p_values, kind="stable"), list(p_values), 0.0
    for place, test in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[test]))
        corrected[test] = largest
    return corrected
