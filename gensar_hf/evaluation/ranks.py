"""Rank of the target item by scores, among sampled candidates or in the whole catalogue."""

import numpy as np


def rank_of_target(scores: np.ndarray, target_columns: np.ndarray) -> np.ndarray:
    """Rank of each request's target among its candidates, `(num_requests,)` int64, from 1.

    Ties are broken by column. Candidate sets are in a seeded random order, so a target that ties with n others gets
    each of the n + 1 ranks with the same probability. This is neither the optimistic rank (with which a constant scorer
    wins) nor the pessimistic one.

    Args:
        scores: `(num_requests, num_candidates)`, higher is better. -inf is a valid score.
        target_columns: `(num_requests,)`, the column that holds the target.

    Raises:
        ValueError: a score is NaN.
    """
    scores, columns = _checked(scores, target_columns)
    target_scores = np.take_along_axis(scores, columns[:, None], axis=1)  # (num_requests, 1)
    tied_before = (scores == target_scores) & (np.arange(scores.shape[1]) < columns[:, None])
    return 1 + ((scores > target_scores) | tied_before).sum(axis=1, dtype=np.int64)


def rank_in_catalogue(
    scores: np.ndarray, target_items: np.ndarray, tie_draws: np.ndarray, excluded: np.ndarray | None = None
) -> np.ndarray:
    """Rank of each request's target among all items, `(num_requests,)` int64, from 1.

    Ties are broken by a random draw and not by the catalogue's order, which may carry information (MovieLens numbers
    its films roughly by when they were added): a target that ties with n items gets one of the n + 1 ranks.

    Args:
        scores: `(num_requests, num_items)`, higher is better. -inf is a valid score.
        target_items: `(num_requests,)` item indices.
        tie_draws: `(num_requests,)`, uniform in [0, 1).
        excluded: `(num_requests, num_items)` bool, items left out of the ranking. A target is never excluded.

    Raises:
        ValueError: a score is NaN.
    """
    scores, targets = _checked(scores, target_items)
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)  # (num_requests, 1)
    rivals = np.ones(scores.shape, dtype=bool) if excluded is None else ~excluded
    rivals[np.arange(len(targets)), targets] = False
    num_better = ((scores > target_scores) & rivals).sum(axis=1, dtype=np.int64)
    num_tied = ((scores == target_scores) & rivals).sum(axis=1, dtype=np.int64)
    return 1 + num_better + np.floor(tie_draws * (num_tied + 1)).astype(np.int64)


def _checked(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that belong together; NaN compares false with everything, so its item would get the first rank."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    if len(rows := np.flatnonzero(np.isnan(scores).any(axis=1))):
        raise ValueError(
            f"Scores must not be NaN; {len(rows)} of {len(scores)} requests have NaN scores, "
            f"the first is request {rows[0]}."
        )
    return scores, targets
