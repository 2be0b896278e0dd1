"""Small event logs built by hand, independent of the loaders."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.data.user_events import Behavior
from gensar_hf.evaluation.comparison import RunResult
from gensar_hf.files import write_json

KIND = {
    "reconstruction_error_before": 0.5, "collision_rate_before": 0.01, "collision_rate_after": 0.0,
    "codebook_use_before": [1.0, 0.75], "perplexity_before": [3.0, 2.0], "distortion_before": 2.0,
    "distortion_after": 2.5,
}  # fmt: skip
REPORT = {
    "num_items": 9,
    "codebook_size": 4,
    "num_levels": 2,
    "num_shared_levels": 1,
    "semantic": KIND,
    "collaborative": KIND,
}
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")


@pytest.fixture(scope="session")
def make_requests(make_events) -> Callable[..., Requests]:
    def make(clicks, num_items, task=RECOMMENDATION, queries=None) -> Requests:
        """One request per user: the last of the user's clicks, after `queries[user]` in search."""
        rows = {}
        for user, (*earlier, last) in enumerate(clicks):
            searched = [(Behavior.SEARCH_QUERY, user), (Behavior.SEARCHED_ITEM, last, user)]
            rows[f"user-{user}"] = [(Behavior.RECOMMENDED_ITEM, item) for item in earlier]
            rows[f"user-{user}"] += searched if queries else [(Behavior.RECOMMENDED_ITEM, last)]
        events = make_events(rows, [f"item-{item}" for item in range(num_items)], list(queries or []))
        return Requests(task, events, events.offsets[1:] - 1)

    return make


class TableScorer:
    """Scores from a table `(num_items,)` or, per user, `(num_users, num_items)`. Records the calls."""

    def __init__(self, name: str, table: np.ndarray, tasks: Sequence[str] = (RECOMMENDATION, SEARCH)):
        self.name = name
        self.table = np.asarray(table, dtype=np.float64)
        self.tasks = frozenset(tasks)
        self.calls: list[tuple[str, int]] = []

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        self.calls.append((requests.task, len(requests)))
        if self.table.ndim == 1:
            return self.table[candidates]
        return self.table[requests.users[:, None], candidates]


@pytest.fixture(scope="session")
def make_scorer() -> type[TableScorer]:
    return TableScorer


@pytest.fixture
def run_result(tmp_path):
    """Makes a run from the ranks of four requests of three users. Every metric has the value `value`."""

    def make(system, seed, ranks, value, task="search", row="GenSAR", **facts):
        folder = tmp_path / f"{system}-{seed}"
        folder.mkdir(parents=True)
        table = {"system": row, "task": task, "user_id": ["a", "a", "b", "c"], "item_id": ["1", "2", "1", "3"]}
        pd.DataFrame({**table, "rank": ranks}).to_parquet(folder / "ranks.parquet")
        values = {metric: {"value": value, "low": value, "high": value} for metric in METRICS}
        counts = {"protocol": "bm25-hard-99", "num_requests": 4, "num_users": 3, "num_candidates": 100}
        write_json(folder / "metrics.json", {"tasks": {task: {**counts, "systems": {row: values}}}})
        facts = {"seconds": {"rqvae": 2.0 + 2 * seed}, "parameters": 7, "identifiers": copy.deepcopy(REPORT), **facts}
        return RunResult(system, seed, folder, row, **facts)

    return make
