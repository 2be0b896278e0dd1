"""Cold-start evaluation: items that were held out of all training stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.data.user_events import Behavior
from gensar_hf.errors import InputError
from gensar_hf.evaluation.candidates import draw_candidates, with_negatives
from gensar_hf.evaluation.metrics import metrics_per_request
from gensar_hf.evaluation.protocol import evaluate
from gensar_hf.evaluation.scorer import Scorer, request_history
from gensar_hf.evaluation.significance import metric_intervals

if TYPE_CHECKING:
    from gensar_hf.pipeline import GenSARPipeline

DEPTHS = (10, 100)


@dataclass(frozen=True, eq=False)
class ColdStartRequests(Requests):
    """Requests whose histories hold only training events at an earlier time than the target."""

    is_training: np.ndarray  # (num_events,) bool, events that training has read

    def history(self, row: int) -> np.ndarray:
        """As in `Requests`, without events that training has not read and events at the target's time."""
        positions = super().history(row)
        is_earlier = self.events.timestamps[positions] < self.events.timestamps[self.targets[row]]
        return positions[self.is_training[positions] & is_earlier]

    def subset(self, rows: np.ndarray | Sequence[int]) -> ColdStartRequests:
        """The requests at `rows` (indices or a mask), in that order."""
        return ColdStartRequests(self.task, self.events, super().subset(rows).targets, self.is_training)


def cold_start_requests(dataset: Any, training_part: Any) -> dict[str, ColdStartRequests]:
    """Every click on a held-out item as a request, by task, over the events and the catalogue of `dataset`.

    `training_part` is the `InteractionDataset` without the held-out items and all interactions with them, such as the
    first one of `dataset.hold_out_items(…)`.
    """
    events, split = dataset.events, training_part.split
    known = set(training_part.item_ids)
    is_new_item = np.array([item_id not in known for item_id in events.item_ids])
    is_new = (events.items >= 0) & is_new_item[events.items]

    # Splits cut between two timestamps, so a user's training events are those before the first held-out timestamp.
    old, is_cut = split.events, split.train_ends < split.events.offsets[1:]
    ends = np.full(old.num_users, np.inf)
    ends[is_cut] = old.timestamps[split.train_ends[is_cut]]
    end_of_user = dict(zip(old.user_ids, ends.tolist(), strict=True))
    end_times = np.array([end_of_user.get(user, -np.inf) for user in events.user_ids])
    is_training = (events.timestamps < end_times[events.event_users()]) & ~is_new

    # A query that led to nothing but held-out items was held out together with these clicks.
    starts, clicks = events.session_starts(), events.behaviors == Behavior.SEARCHED_ITEM
    led_to_new, led_to_known = np.zeros((2, events.num_events), dtype=bool)
    led_to_new[starts[clicks & is_new]] = True
    led_to_known[starts[clicks & ~is_new]] = True
    is_training &= ~(led_to_new & ~led_to_known)

    behaviors = {RECOMMENDATION: Behavior.RECOMMENDED_ITEM, SEARCH: Behavior.SEARCHED_ITEM}
    return {
        task: ColdStartRequests(task, events, np.flatnonzero(is_new & (events.behaviors == behavior)), is_training)
        for task, behavior in behaviors.items()
    }


def evaluate_groups(
    systems: Sequence[Scorer],
    requests_by_task: Mapping[str, Requests],
    groups: Mapping[str, np.ndarray],
    item_texts: Sequence[str],
    num_negatives: int = 99,
    max_requests: int | None = None,
    seed: int = 0,
    by_item: bool = False,
) -> dict[str, Any]:
    """Evaluate systems on the requests for each group of items.

    Recommendations for users who have interacted with every item are left out, with a warning.

    Args:
        systems: with distinct names.
        requests_by_task: over one catalogue.
        groups: name → `(num_items,)` bool, the items of the group. One without requests is left out.
        item_texts: one text per item.
        num_negatives: candidates per request, without the target.
        max_requests: size of a seeded sample of the requests for a group in a task.
        seed: of the candidates, the sample and the bootstrap.
        by_item: resample target items instead of users, for results about new items.

    Returns:
        plain values for `report.group_tables`; `difference` is that of the last system from the first.

    Raises:
        InputError: a system failed.
    """
    tasks: dict[str, Any] = {}
    for task, requests in requests_by_task.items():
        tasks[task] = {}
        if requests.task == RECOMMENDATION:
            requests = with_negatives(requests)
        for name, is_member in groups.items():
            rows = np.flatnonzero(is_member[requests.target_items])
            if not len(rows):
                continue
            if max_requests is not None and len(rows) > max_requests:
                rows = np.sort(np.random.default_rng(seed).choice(rows, max_requests, replace=False))
            part = requests.subset(rows)
            candidates = draw_candidates(part, item_texts, min(num_negatives, len(item_texts) - 1), seed)
            result = evaluate(systems, {task: part}, {task: candidates})
            for system, failures in result.failures.items():
                raise InputError(f"{system} failed in {task}: {failures[task]}")
            bootstrap: dict[str, Any] = {"seed": seed, "groups": part.target_items if by_item else part.users}
            values = {system: metrics_per_request(ranks[task]) for system, ranks in result.ranks.items()}
            differences = values[systems[-1].name] - values[systems[0].name]
            tasks[task][name] = {
                "protocol": candidates.protocol,
                "num_requests": len(part),
                "num_items": len(np.unique(part.target_items)),
                "num_users": len(np.unique(part.users)),
                "systems": {system: metric_intervals(each, **bootstrap) for system, each in values.items()},
                "difference": metric_intervals(differences, **bootstrap),
            }
    return {"systems": [system.name for system in systems], "groups": list(groups), "tasks": tasks}


def catalogue_reach(pipe: GenSARPipeline, requests: Requests, new_item_ids: Sequence[str]) -> dict[str, float]:
    """How often a beam search over the whole catalogue finds the targets, for depths 10 and 100.

    `requests@`: fraction of requests whose target is found. `items@`: fraction of target items found at least once.
    `places@`: fraction of the results that are new items.
    """
    histories, top_k = [request_history(requests, row) for row in range(len(requests))], max(DEPTHS)
    answers: Any = (
        pipe.search(requests.query_texts, histories, top_k=top_k)
        if requests.task == SEARCH
        else pipe.recommend(histories, top_k=top_k)
    )
    found = [[answer["item_id"] for answer in ranking] for ranking in answers]
    targets = np.array(requests.events.item_ids, dtype=object)[requests.target_items]
    new, reach = set(new_item_ids), {}
    for depth in DEPTHS:
        is_hit = np.array([target in ranking[:depth] for target, ranking in zip(targets, found, strict=True)])
        places = [item_id in new for ranking in found for item_id in ranking[:depth]]
        reach[f"requests@{depth}"] = float(is_hit.mean())
        reach[f"items@{depth}"] = len(set(targets[is_hit])) / len(set(targets))
        reach[f"places@{depth}"] = float(np.mean(places))
    return reach
