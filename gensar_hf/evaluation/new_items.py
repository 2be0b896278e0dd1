"""Items that every stage of training went without: requests for them, and how many neighbors they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gensar_hf.data.continuation import append_log
from gensar_hf.data.interactions import InteractionLog
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, Split
from gensar_hf.data.user_events import Behavior, UserEvents, events_from_log
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.generator_scorer import GeneratorScorer
from gensar_hf.evaluation.ranks import rank_of_target
from gensar_hf.generator.item_scores import mean_probability


@dataclass(frozen=True, eq=False)
class NewItemRequests(Requests):
    """Requests whose histories hold nothing but what training has seen, strictly before the target.

    Attributes:
        readable: `(num_events,)` bool, the training events.
    """

    readable: np.ndarray

    def history(self, row: int) -> np.ndarray:
        """As in `Requests`, training events at an earlier time only: within one time the order is the file's."""
        positions = super().history(row)
        is_earlier = self.events.timestamps[positions] < self.events.timestamps[self.targets[row]]
        return positions[self.readable[positions] & is_earlier]

    def subset(self, rows: np.ndarray | Sequence[int]) -> NewItemRequests:
        """The requests at `rows` (indices or a mask), in that order."""
        return NewItemRequests(self.task, self.events, super().subset(rows).targets, self.readable)


def new_item_requests(log: InteractionLog, split: Split, held_out: InteractionLog) -> dict[str, NewItemRequests]:
    """Every click on an item that was held out of the log, as a request.

    Args:
        log: what training was given.
        split: of this log.
        held_out: the held-out items and all rows that have them.

    Returns:
        requests by task, with events over one catalogue: the log's items in their order, then the held-out ones.
    """
    events = events_from_log(append_log(log, held_out))
    is_new = events.items >= len(log.items)
    readable = (events.timestamps < _training_cutoffs(split, events)[events.event_users()]) & ~is_new
    readable &= ~_asked_for_new_items_only(events, is_new)
    behaviors = {RECOMMENDATION: Behavior.RECOMMENDED_ITEM, SEARCH: Behavior.SEARCHED_ITEM}
    return {
        task: NewItemRequests(task, events, np.flatnonzero(is_new & (events.behaviors == behavior)), readable)
        for task, behavior in behaviors.items()
    }


def _training_cutoffs(split: Split, events: UserEvents) -> np.ndarray:
    """The time at which each user's training events end, `(num_users,)`; -inf for users that training never saw.

    Splits cut between two times, never within one, so the time says on which side an event is.
    """
    old = split.events
    cutoffs = np.full(old.num_users, np.inf)
    is_cut = split.train_ends < old.offsets[1:]
    cutoffs[is_cut] = old.timestamps[split.train_ends[is_cut]]
    by_user = dict(zip(old.user_ids, cutoffs.tolist(), strict=True))
    return np.array([by_user.get(user, -np.inf) for user in events.user_ids])


def _asked_for_new_items_only(events: UserEvents, is_new: np.ndarray) -> np.ndarray:
    """Queries after which nothing but new items was clicked: they left the log together with these clicks."""
    starts = events.session_starts()
    clicks = events.behaviors == Behavior.SEARCHED_ITEM
    led_to_new, led_to_old = np.zeros((2, events.num_events), dtype=bool)
    led_to_new[starts[clicks & is_new]] = True
    led_to_old[starts[clicks & ~is_new]] = True
    return led_to_new & ~led_to_old


def ranks_as_new(
    generator: GeneratorScorer,
    requests: Requests,
    candidates: CandidateSets,
    neighbors: np.ndarray,
    nums_neighbors: Sequence[int],
) -> dict[int, np.ndarray]:
    """Ranks of known targets if they were new: to choose the number of neighbors with, without any new item.

    Args:
        generator: scores known items.
        requests: for known items, such as `split.validation`.
        candidates: of these requests.
        neighbors: `(num_items, k)` item indices, every item's nearest others, nearest first.
        nums_neighbors: numbers of neighbors to try, at most k.

    Returns:
        number of neighbors → `(num_requests,)` ranks of the targets.
    """
    num_candidates, columns = candidates.candidates.shape[1], candidates.target_columns
    asked = np.concatenate([candidates.candidates, neighbors[requests.target_items]], axis=1)
    scores = np.array(generator.score(requests, asked))
    ranks = {}
    for num_neighbors in nums_neighbors:
        among = scores[:, :num_candidates].copy()
        lent = scores[:, num_candidates : num_candidates + num_neighbors]
        among[np.arange(len(requests)), columns] = mean_probability(lent)
        ranks[num_neighbors] = rank_of_target(among, columns)
    return ranks
