"""Bootstrap confidence intervals of metrics over users."""

import numpy as np

from gensar_hf.evaluation.metrics import METRICS


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
    sums, sizes = _group_totals(values, groups)
    means = _resampled_means(sums, sizes, num_resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def metric_intervals(
    values: np.ndarray,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """The mean of each metric with its bootstrap interval.

    Args:
        values: `(num_requests, num_metrics)`, as `metrics_per_request` returns them, or differences of two systems.
        confidence: as in `bootstrap_interval`.
        num_resamples: as in `bootstrap_interval`.
        seed: as in `bootstrap_interval`.
        groups: as in `bootstrap_interval`.

    Returns:
        name in `METRICS` → `value`, `low`, `high`.
    """
    ends = bootstrap_interval(values, confidence, num_resamples, seed, groups)
    columns = np.stack([values.mean(axis=0), *ends], axis=1).tolist()
    return {
        metric: {"value": value, "low": low, "high": high}
        for metric, (value, low, high) in zip(METRICS, columns, strict=True)
    }


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
        drawn += num_groups * np.arange(num_rows)[:, None]  # one cell per (resample, group)
        times_drawn = np.bincount(drawn.ravel(), minlength=num_rows * num_groups).reshape(num_rows, num_groups)
        means.append((times_drawn @ sums) / (times_drawn @ sizes)[:, None])
    return np.concatenate(means)
