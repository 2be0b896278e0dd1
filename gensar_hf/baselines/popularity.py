"""Items by their clicks in training: the floor that every personalised system must leave behind."""

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, Split, training_mask


class Popularity:
    """Score = number of clicks in the training events, the same for every request (`MostPop`).

    Ji et al., "A Re-visit of the Popularity Baseline in Recommender Systems" (SIGIR 2020). Simplified: clicks of all
    times and of both tasks count the same; their recommendation, counting only what was clicked shortly before the
    request, is not followed.

    Args:
        split: only its training events are counted; held-out ones never are.
    """

    name = "Popularity"
    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, split: Split):
        clicked = split.events.items[training_mask(split)]
        self.counts = np.bincount(clicked[clicked >= 0], minlength=split.events.num_items)  # (num_items,)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Training clicks of each candidate, `(num_requests, num_candidates)`."""
        return self.counts[candidates]
