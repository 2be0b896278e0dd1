"""First-order Markov chain: the next item given only the latest click."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from gensar_hf.baselines.registry import Baseline
from gensar_hf.baselines.sequential import clicked_items
from gensar_hf.data.splits import RECOMMENDATION, Requests, training_events
from gensar_hf.data.user_events import UserEvents


@dataclass
class MarkovConfig:
    """Settings of a `MarkovChain`.

    Args:
        max_skip: most clicks that a counted pair may skip; 0 counts consecutive clicks only.
        skip_weight: a pair that skips n clicks counts as `skip_weight ** n`.
        smoothing: pseudo-clicks added to each item's transitions, distributed as the popularity. Of 12,000 items each
            gets a 12,000th on average: below some hundreds it changes only the order of unseen transitions.
    """

    max_skip: int = 0
    skip_weight: float = 0.8
    smoothing: float = 100.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_skip, int) or self.max_skip < 0:
            raise ValueError(f"`max_skip` must be a whole number of clicks, at least 0; got {self.max_skip}.")
        if not 0 < self.skip_weight <= 1:
            raise ValueError(f"`skip_weight` must be above 0 and at most 1; got {self.skip_weight}.")
        if not 0 < self.smoothing < math.inf:
            raise ValueError(
                f"`smoothing` must be above 0, because most transitions are never seen; got {self.smoothing}."
            )


class MarkovChain:
    """Score = P(candidate | the user's latest click), transition counts smoothed with the popularity.

    Shani, Heckerman and Brafman, An MDP-Based Recommender System, JMLR 6, 2005.

    `P(b | a) = (c(a, b) + s · p(b)) / (c(a) + s)`, where `c(a, b)` counts, with skipping (Shani et al. 2005, sec. 3.2),
    how often b came after a, `c(a)` is their sum over b, p the share of all clicks and s the smoothing. Without a
    latest click, or after one that nothing ever followed, this is the popularity. Clicks after a search count like
    others. Queries are not read.

    Differs from the paper: states are single items instead of the latest k, without clusters of similar states and
    mixtures over k, and items are ranked by the predicted probability, not by the value of recommending them.
    """

    name = "First-order Markov"
    tasks = frozenset({RECOMMENDATION})
    num_parameters = 0

    def __init__(self, events: UserEvents, config: MarkovConfig) -> None:
        clicks = events.items[events.items >= 0]
        num_clicks = np.bincount(clicks, minlength=events.num_items)
        self.smoothing = config.smoothing
        self.popularity = (num_clicks / max(len(clicks), 1)).astype(np.float32)  # (num_items,)
        self.counts = transition_counts(events, config.max_skip, config.skip_weight)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Probability of each candidate, `(num_requests, num_candidates)` float32."""
        no_click = len(self.popularity)  # the counts' last row
        latest = np.array([clicks[-1] if len(clicks) else no_click for clicks in clicked_items(requests)], dtype=int)
        return np.take_along_axis(self.probabilities(latest), candidates, axis=1)

    def probabilities(self, latest: np.ndarray) -> np.ndarray:
        """P(item | latest item), `(len(latest), num_items)` float32; `num_items` stands for no latest click."""
        counts = self.counts[latest].toarray()
        totals = counts.sum(axis=1, keepdims=True)
        return (counts + self.smoothing * self.popularity) / (totals + self.smoothing)


def transition_counts(events: UserEvents, max_skip: int, skip_weight: float) -> csr_array:
    """Count how often the same user clicked one item after another, `(num_items + 1, num_items)` sparse float32.

    At most `max_skip` clicks lie between the two, each with the factor `skip_weight`; queries do not count. The last
    row, for "no click", is empty.
    """
    is_click = events.items >= 0
    items, users = events.items[is_click], events.event_users()[is_click]
    shape = (events.num_items + 1, events.num_items)
    counts = csr_array(shape, dtype=np.float32)
    for skipped in range(max_skip + 1):
        earlier, later = slice(None, -1 - skipped), slice(1 + skipped, None)
        same_user = users[earlier] == users[later]
        pairs = items[earlier][same_user], items[later][same_user]
        counts = counts + csr_array((np.full(same_user.sum(), skip_weight**skipped, np.float32), pairs), shape=shape)
    return counts


BASELINES = {
    "markov": Baseline(MarkovConfig, lambda dataset, config, _: MarkovChain(training_events(dataset.split), config))
}
