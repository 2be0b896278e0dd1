"""Items by their clicks in training: the floor that every personalised system must leave behind."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.data.user_events import UserEvents
from gensar_hf.files import save_arrays

NAME = "Popularity"
REFERENCE = (
    "Yitong Ji, Aixin Sun, Jie Zhang and Chenliang Li: A Re-visit of the Popularity Baseline in Recommender Systems, "
    "SIGIR 2020"
)


@dataclass
class Settings:
    """None: there is nothing to choose."""


class Popularity:
    """Score = number of clicks in the training events, the same for every request (`MostPop`).

    Ji et al. (SIGIR 2020). Simplified: clicks of all times and of both tasks count the same; their recommendation,
    counting only what was clicked shortly before the request, is not followed, as many logs have no times that can be
    compared between users.

    Args:
        events: what may be learnt from, `data.training_events(split)`; all clicks in it are counted.
    """

    name = NAME
    tasks = frozenset({RECOMMENDATION, SEARCH})
    num_parameters = 0  # counts are not learnt

    def __init__(self, events: UserEvents) -> None:
        self.counts = np.bincount(events.items[events.items >= 0], minlength=events.num_items)  # (num_items,)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Training clicks of each candidate, `(num_requests, num_candidates)`."""
        return self.counts[candidates]


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> Popularity:
    """Count, and save the counts as `clicks.safetensors`; see `baseline.fit_by_name`."""
    popularity = Popularity(data.events)
    save_arrays(folder / "clicks.safetensors", {"clicks": popularity.counts})
    return popularity
