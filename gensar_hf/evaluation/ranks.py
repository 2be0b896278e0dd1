"""From scores to the rank of the target item, among sampled candidates or in the whole catalogue."""

import numpy as np


def rank_of_target(scores: np.ndarray, target_columns: np.ndarray) -> np.ndarray:
    """Rank of each request's target among its candidates.

    Of two candidates with the same score, the one in the earlier column is ranked first, as a stable sort would do. The
    candidate sets come in a seeded, shuffled order that no scorer influences, so a target that ties with n others gains
    each of the n + 1 ranks with the same probability: neither the optimistic rank (all ties behind it, which lets a
    scorer that answers a constant score win) nor the pessimistic one.

    Args:
        scores: `(num_requests, num_candidates)`, higher is better; one score per candidate ITEM. -inf is a valid score.
        target_columns: `(num_requests,)`, the column that holds the target.

    Returns:
        `(num_requests,)` int64, from 1 (best) to num_candidates.

    Raises:
        ValueError: when shapes disagree, a score is NaN, or a request has no target among its columns.
    """
    scores, columns = np.asarray(scores), np.asarray(target_columns)
    if scores.ndim != 2 or columns.shape != scores.shape[:1]:
        raise ValueError(
            "`scores` must be (num_requests, num_candidates) and `target_columns` (num_requests,); "
            f"got {scores.shape} and {columns.shape}."
        )
    _refuse_nan(scores)
    missing = np.flatnonzero((columns < 0) | (columns >= scores.shape[1]))
    if len(missing):
        raise ValueError(
            f"Request {missing[0]} has no target among its {scores.shape[1]} candidates: "
            f"its target column is {columns[missing[0]]}."
        )
    target_scores = np.take_along_axis(scores, columns[:, None], axis=1)  # (num_requests, 1)
    tied_before = (scores == target_scores) & (np.arange(scores.shape[1]) < columns[:, None])
    return 1 + ((scores > target_scores) | tied_before).sum(axis=1, dtype=np.int64)


def rank_in_catalogue(
    scores: np.ndarray, target_items: np.ndarray, tie_draws: np.ndarray, excluded: np.ndarray | None = None
) -> np.ndarray:
    """Rank of each request's target among all items.

    The columns are the catalogue in its own order, which may carry information (MovieLens numbers its films roughly by
    when they were added), so ties are not decided by it: a target that ties with n other items gets one of the n + 1
    ranks by its draw.

    Args:
        scores: `(num_requests, num_items)`, higher is better. -inf is a valid score.
        target_items: `(num_requests,)` item indices.
        tie_draws: `(num_requests,)`, uniform in [0, 1).
        excluded: `(num_requests, num_items)` bool, items that take no place in the list; a target is never excluded.

    Returns:
        `(num_requests,)` int64, from 1.

    Raises:
        ValueError: when shapes disagree, a score is NaN, or a target is not in the catalogue.
    """
    scores, targets = np.asarray(scores), np.asarray(target_items)
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(
            "`scores` must be (num_requests, num_items) and `target_items` (num_requests,); "
            f"got {scores.shape} and {targets.shape}."
        )
    _refuse_nan(scores)
    unknown = targets[(targets < 0) | (targets >= scores.shape[1])]
    if len(unknown):
        raise ValueError(f"The target {unknown[0]} is not an item index: there are {scores.shape[1]} items.")
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)  # (num_requests, 1)
    rivals = np.ones(scores.shape, dtype=bool) if excluded is None else ~excluded
    rivals[np.arange(len(targets)), targets] = False
    num_better = ((scores > target_scores) & rivals).sum(axis=1, dtype=np.int64)
    num_tied = ((scores == target_scores) & rivals).sum(axis=1, dtype=np.int64)
    return 1 + num_better + np.floor(tie_draws * (num_tied + 1)).astype(np.int64)


def _refuse_nan(scores: np.ndarray) -> None:
    """A NaN compares false with everything and would hand its item the first rank, so it is an error."""
    rows = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(rows):
        raise ValueError(
            f"The scores of {len(rows)} of {len(scores)} requests hold NaN, the first is request {rows[0]}."
        )
