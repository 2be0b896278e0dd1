"""A first-order Markov chain: the next item from the latest click alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.sequential import clicked_items
from gensar_hf.data.splits import RECOMMENDATION, Requests
from gensar_hf.data.user_events import UserEvents
from gensar_hf.files import save_arrays

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NAME = "First-order Markov"
REFERENCE = (
    "Guy Shani, David Heckerman and Ronen I. Brafman: An MDP-Based Recommender System, Journal of Machine Learning "
    "Research 6, 2005"
)
_CHUNK_SIZE = 256  # requests whose scores of all items are held at once: 12 MB for 12,000 items


@dataclass
class Settings:
    """What counts as a transition, and what stands in for transitions that were not seen.

    Attributes:
        max_skip: clicks that may stand between the two of a counted pair; 0 counts consecutive clicks only.
        skip_weight: a pair counts as this, to the power of the clicks it skips.
        smoothing: clicks that each item's transitions get on top, divided as the popularity is. Of 12,000 items each
            gets a 12,000th on average: below some hundred only the order of unseen transitions depends on it.
    """

    max_skip: int = 0
    skip_weight: float = 0.8
    smoothing: float = 100.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_skip, int) or self.max_skip < 0:
            raise ValueError(f"`max_skip` is a number of clicks from 0; got {self.max_skip}.")
        if not 0 < self.skip_weight <= 1:
            raise ValueError(f"`skip_weight` must be above 0 and at most 1; got {self.skip_weight}.")
        if not 0 < self.smoothing < math.inf:
            raise ValueError(
                f"`smoothing` must be above 0, because most transitions are never seen; got {self.smoothing}."
            )


class MarkovChain:
    """Score = P(candidate | the user's latest click), estimated from counts that are smoothed with the popularity.

    `P(b | a) = (c(a, b) + s · p(b)) / (c(a) + s)`, where `c(a, b)` counts, with skipping (Shani et al. 2005, sec. 3.2),
    how often b came after a, `c(a)` is their sum over b, p the share of all clicks and s the smoothing. Without a
    latest click, or after one that was never followed by another, that is the popularity.

    Clicks after a search count like others; queries are not read. Simplified against the paper: states are single
    items instead of the latest k, without its clusters of similar states and its mixture of several k, and what is
    ranked is the prediction itself, not the value of recommending it.

    Args:
        events: what may be learnt from, `data.training_events(split)`.
        settings: of the estimate.
    """

    name = NAME
    tasks = frozenset({RECOMMENDATION})
    num_parameters = 0  # counts are not learnt

    def __init__(self, events: UserEvents, settings: Settings) -> None:
        clicks = events.items[events.items >= 0]
        num_clicks = np.bincount(clicks, minlength=events.num_items)
        self.smoothing = settings.smoothing
        self.popularity = (num_clicks / max(len(clicks), 1)).astype(np.float32)  # (num_items,)
        self.counts = transition_counts(events, settings.max_skip, settings.skip_weight)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Probability of each candidate, `(num_requests, num_candidates)` float32."""
        no_click = len(self.popularity)  # the counts' last row
        latest = np.array([clicks[-1] if len(clicks) else no_click for clicks in clicked_items(requests)], dtype=int)
        scores = np.zeros(candidates.shape, dtype=np.float32)
        for start in range(0, len(requests), _CHUNK_SIZE):
            rows = slice(start, start + _CHUNK_SIZE)
            scores[rows] = np.take_along_axis(self.probabilities(latest[rows]), candidates[rows], axis=1)
        return scores

    def probabilities(self, latest: np.ndarray) -> np.ndarray:
        """What follows each of some items (`num_items` stands for none), `(len(latest), num_items)` float32."""
        counts = self.counts[latest].toarray()
        totals = counts.sum(axis=1, keepdims=True)
        return (counts + self.smoothing * self.popularity) / (totals + self.smoothing)

    def save(self, folder: Path) -> None:
        """Write the counts, as the arrays of a SciPy CSR matrix, and the popularity to `transitions.safetensors`."""
        arrays = {name: getattr(self.counts, name) for name in ("data", "indices", "indptr")}
        save_arrays(folder / "transitions.safetensors", {**arrays, "popularity": self.popularity})


def transition_counts(events: UserEvents, max_skip: int, skip_weight: float) -> "csr_array":
    """How often one item was clicked after another by the same user.

    Args:
        events: all of them count; queries between two clicks do not separate them.
        max_skip: clicks that may stand between the two.
        skip_weight: factor for each of these.

    Returns:
        `(num_items + 1, num_items)` sparse float32; the last row, for "no click", is empty.
    """
    from scipy.sparse import csr_array

    is_click = events.items >= 0
    items, users = events.items[is_click], events.event_users()[is_click]
    shape = (events.num_items + 1, events.num_items)
    counts = csr_array(shape, dtype=np.float32)
    for skipped in range(max_skip + 1):
        earlier, later = slice(None, -1 - skipped), slice(1 + skipped, None)
        same_user = users[earlier] == users[later]
        pairs = items[earlier][same_user], items[later][same_user]
        weights = np.full(len(pairs[0]), skip_weight**skipped, dtype=np.float32)
        counts = counts + csr_array((weights, pairs), shape=shape)
    return counts


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> MarkovChain:
    """Count the transitions; see `baseline.fit_by_name`."""
    chain = MarkovChain(data.events, settings)
    chain.save(folder)
    return chain
