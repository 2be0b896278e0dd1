"""Rank of the target item by scores, among sampled candidates or in the whole catalogue, and the first items."""

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


def first_items(
    scores: np.ndarray,
    items: np.ndarray,
    target_items: np.ndarray,
    target_ranks: np.ndarray,
    excluded: np.ndarray | None = None,
    depth: int = 100,
) -> np.ndarray:
    """The items in the order of their scores, with the target at its rank, `(num_requests, depth)` int32.

    Where `depth` cuts through items of equal score, it is open which of them are listed.

    Args:
        scores: `(num_requests, num_candidates)`.
        items: `(num_requests, num_candidates)`, the items that they belong to.
        target_items: `(num_requests,)`.
        target_ranks: `(num_requests,)`, as `rank_of_target` or `rank_in_catalogue` gave them, from 1.
        excluded: `(num_requests, num_candidates)` bool, items left out; a target stays.
        depth: items of a request, at most.

    Returns:
        item indices, -1 behind the last one of a request with fewer items.
    """
    is_rival = items != target_items[:, None]
    if excluded is not None:
        is_rival &= ~excluded
    keys = np.where(is_rival, -scores, np.nan)  # NaN is sorted last, behind an item whose score is -inf
    num_kept = min(depth, keys.shape[1])
    kept = np.argpartition(keys, num_kept - 1, axis=1)[:, :num_kept]
    kept.sort(axis=1)  # the columns' order decides between equal scores, as in `rank_of_target`
    order = np.take_along_axis(kept, np.argsort(np.take_along_axis(keys, kept, axis=1), axis=1, kind="stable"), axis=1)
    rivals = np.where(np.take_along_axis(is_rival, order, axis=1), np.take_along_axis(items, order, axis=1), -1)
    first = np.full((len(keys), depth), -1, dtype=np.int32)
    before = np.arange(num_kept) < target_ranks[:, None] - 1
    first[:, :num_kept] = np.where(before, rivals, np.roll(rivals, 1, axis=1))
    is_shown = target_ranks <= depth
    first[is_shown, target_ranks[is_shown] - 1] = target_items[is_shown]
    return first


def _checked(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that belong together; NaN compares false with everything, so its item would get the first rank."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    if len(rows := np.flatnonzero(np.isnan(scores).any(axis=1))):
        raise ValueError(
            f"Scores must not be NaN; {len(rows)} of {len(scores)} requests have NaN scores, "
            f"the first is request {rows[0]}."
        )
    return scores, targets
