"""Scores of identifiers that the generator has never been taught to say, from those of identifiers that it has.

A generator learns which combinations of codes exist. One that did not exist in training gets next to no probability,
however well its codes fit the request one by one, so an item that was added afterwards would never be found. It
borrows: its probability is the mean of those of the known items that are nearest to it.
"""

import numpy as np


def mean_probability(log_probabilities: np.ndarray) -> np.ndarray:
    """Natural logarithm of the mean probability over the last axis.

    Args:
        log_probabilities: `(..., n)` natural logarithms; -inf for a probability of 0.

    Returns:
        `(...,)`.

    >>> np.exp(mean_probability(np.log([[0.5, 0.25], [0.1, 0.1]]))).round(3).tolist()
    [0.375, 0.1]
    """
    highest = log_probabilities.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_probabilities - shift).mean(axis=-1)) + shift[..., 0]


def rank_with_cold_items(
    rows: np.ndarray, scores: np.ndarray, cold_items: np.ndarray, neighbors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The result of a search among known items, with the new items at the places that their neighbors give them.

    Args:
        rows: `(num_found,)` the neighbors that a search has found, best first; what it has not found counts as
            improbable. A borrower may be among them: it is then one of its own neighbors.
        scores: `(num_found,)` natural logarithms of their probabilities.
        cold_items: `(num_new,)` rows of the new items.
        neighbors: `(num_new, k)` rows of each one's nearest known items.

    Returns:
        rows and scores of both kinds together, best first; new items none of whose neighbors was found are left out.
    """
    log_probabilities = np.full(1 + max(rows.max(initial=0), neighbors.max(initial=0)), -np.inf)
    log_probabilities[rows] = scores
    borrowed = mean_probability(log_probabilities[neighbors])
    is_found = np.isfinite(borrowed)
    is_known = ~np.isin(rows, cold_items)
    all_rows = np.concatenate([rows[is_known], cold_items[is_found]])
    all_scores = np.concatenate([scores[is_known], borrowed[is_found]])
    order = np.argsort(-all_scores, kind="stable")
    return all_rows[order], all_scores[order]
