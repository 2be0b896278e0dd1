"""Popularity: items ranked by their training clicks."""

from dataclasses import dataclass

import numpy as np

from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, training_events
from gensar_hf.data.user_events import UserEvents


@dataclass
class PopularityConfig:
    """Popularity has no settings."""


class Popularity:
    """Score = number of clicks in the training events, the same for every request (`MostPop`).

    Ji et al., A Re-visit of the Popularity Baseline in Recommender Systems, SIGIR 2020.

    Differs from the paper: clicks of all times and of both tasks count the same. The paper recommends counting only
    recent clicks, which many logs do not allow because their times cannot be compared between users.
    """

    name = "Popularity"
    tasks = frozenset({RECOMMENDATION, SEARCH})
    num_parameters = 0

    def __init__(self, events: UserEvents) -> None:
        self.counts = np.bincount(events.items[events.items >= 0], minlength=events.num_items)  # (num_items,)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Training clicks of each candidate, `(num_requests, num_candidates)`."""
        return self.counts[candidates]


BASELINES = {"popularity": Baseline(PopularityConfig, lambda dataset, *_: Popularity(training_events(dataset.split)))}
