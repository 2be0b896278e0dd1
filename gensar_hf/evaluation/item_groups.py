"""Systems on the same requests, told apart by what kind of item is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.candidates import bm25_candidates, random_candidates
from gensar_hf.evaluation.metrics import METRICS, contributions
from gensar_hf.evaluation.protocol import Scorer, evaluate
from gensar_hf.evaluation.significance import bootstrap_interval


def evaluate_groups(
    scorers: Sequence[Scorer],
    requests_by_task: Mapping[str, Requests],
    groups: Mapping[str, tuple[int, int]],
    item_texts: Sequence[str],
    num_negatives: int = 99,
    max_requests: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Rank targets among random items (recommendation) or BM25's best (search), group by group.

    Args:
        scorers: systems with distinct names; differences are those of the last from the first.
        requests_by_task: of one event log.
        groups: name → first item and the one after the last of it.
        item_texts: one an item.
        num_negatives: candidates beside the target.
        max_requests: size of a seeded sample of a group's requests in a task.
        seed: of the candidates, the samples and the bootstrap.

    Returns:
        plain values: `systems`, `groups` in order, and per task and group `protocol`, `num_requests`, `num_items`,
        `num_users`, `systems` (system → metric → `value`, `low`, `high`: 95 % bootstrap interval over users) and
        `difference` (metric → the same); of a group without requests in the task nothing.

    Raises:
        InputError: a system failed.
    """
    result: dict[str, Any] = {"systems": [scorer.name for scorer in scorers], "groups": list(groups), "tasks": {}}
    for task, requests in requests_by_task.items():
        by_group = {}
        for name, (first, end) in groups.items():
            is_asked = (requests.target_items >= first) & (requests.target_items < end)
            asked = _sample(requests.subset(np.flatnonzero(is_asked)), max_requests, seed)
            if len(asked):
                by_group[name] = _figures(scorers, asked, item_texts, num_negatives, seed)
        result["tasks"][task] = by_group
    return result


def _sample(requests: Requests, max_requests: int | None, seed: int) -> Requests:
    if max_requests is None or len(requests) <= max_requests:
        return requests
    return requests.subset(np.sort(np.random.default_rng(seed).choice(len(requests), max_requests, replace=False)))


def _figures(
    scorers: Sequence[Scorer], requests: Requests, item_texts: Sequence[str], num_negatives: int, seed: int
) -> dict[str, Any]:
    task = requests.task
    num_negatives = min(num_negatives, len(item_texts) - 1)
    if task == SEARCH:
        sets = bm25_candidates(requests, item_texts, num_negatives, seed)
    else:
        sets = random_candidates(requests, num_negatives, seed)
    evaluated = evaluate(scorers, {task: requests}, {task: sets}, seed=seed)
    for name, failure in evaluated.failures.items():
        raise InputError(f"{name} failed in {task}: {failure[task]}")
    figures = evaluated.metrics()["tasks"][task]
    shares = {name: np.stack(list(contributions(ranks[task]).values()), 1) for name, ranks in evaluated.ranks.items()}
    difference = shares[scorers[-1].name] - shares[scorers[0].name]
    low, high = bootstrap_interval(difference, seed=seed, groups=requests.users)
    columns = zip(METRICS, difference.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return {
        **figures,
        "num_items": len(np.unique(requests.target_items)),
        "difference": {name: {"value": mean, "low": least, "high": most} for name, mean, least, most in columns},
    }
