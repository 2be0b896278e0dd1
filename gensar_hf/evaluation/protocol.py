"""Many systems, the same requests, the same candidates: who ranks the target where."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gensar_hf.data.splits import Requests
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.full_ranking import FULL_RANKING, FULL_RANKING_UNSEEN, full_ranks
from gensar_hf.evaluation.metrics import METRICS, contributions
from gensar_hf.evaluation.ranks import rank_of_target
from gensar_hf.evaluation.shares import ALONE, Processes, gathered_outcomes, own_rows
from gensar_hf.evaluation.significance import bootstrap_interval
from gensar_hf.files import atomic_path, write_json

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
RANKS_FILE = "ranks.parquet"


class Scorer(Protocol):
    """A system under evaluation: it scores items for requests."""

    name: str
    tasks: frozenset[str]
    """The tasks it can do, of `RECOMMENDATION` and `SEARCH`; it is not asked for others."""

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Score each request's candidates.

        Args:
            requests: the questions; a scorer may look at histories and queries, never at the targets.
            candidates: `(num_requests, num_candidates)` item indices, distinct within a row.

        Returns:
            `(num_requests, num_candidates)`, higher is better.
        """
        ...


@dataclass
class EvaluationResult:
    """The ranks of every system in every task, under one kind of protocol, and the metrics they give.

    Args:
        requests: per task, the requests that were asked.
        protocols: per task, the protocol's name (`random-99`, `bm25-hard-99`, `full-ranking`, `full-ranking-unseen`).
        num_candidates: per task, how many items the target was ranked among, itself included.
        systems: the scorers' names, in the order given.
        empty_tasks: tasks that were to be evaluated, but have no requests.
        ranks: system → task → `(num_requests,)` ranks of the targets, from 1.
        failures: system → task → text of the exception that kept the system from answering.
        confidence: of the bootstrap intervals.
        num_resamples: of the bootstrap.
        seed: of the bootstrap (and of the ties in full ranking).
    """

    requests: dict[str, Requests]
    protocols: dict[str, str]
    num_candidates: dict[str, int]
    systems: list[str]
    empty_tasks: list[str] = field(default_factory=list)
    ranks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    confidence: float = 0.95
    num_resamples: int = 1000
    seed: int = 0

    def metrics(self) -> dict[str, Any]:
        """All figures as plain values, as written to `metrics.json` and read by `evaluation.report`.

        Returns:
            settings of the bootstrap, `systems` in order, `failures`, `empty_tasks`, and per task its `protocol`,
            `num_requests`, `num_users`, `num_candidates` and `systems`: system → metric → `value`, `low`, `high`.
        """
        return {
            "format_version": 1,
            "confidence": self.confidence,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "systems": self.systems,
            "failures": self.failures,
            "empty_tasks": self.empty_tasks,
            "tasks": {task: self._task_metrics(task) for task in self.requests},
        }

    def _task_metrics(self, task: str) -> dict[str, Any]:
        requests = self.requests[task]
        return {
            "protocol": self.protocols[task],
            "num_requests": len(requests),
            "num_users": len(np.unique(requests.users)),
            "num_candidates": self.num_candidates[task],
            "systems": {
                system: self._system_metrics(by_task[task], requests.users)
                for system, by_task in self.ranks.items()
                if task in by_task
            },
        }

    def _system_metrics(self, target_ranks: np.ndarray, users: np.ndarray) -> dict[str, dict[str, float]]:
        values = np.stack(list(contributions(target_ranks).values()), axis=1)  # (num_requests, num_metrics)
        low, high = bootstrap_interval(values, self.confidence, self.num_resamples, self.seed, groups=users)
        return {
            name: {"value": float(value), "low": float(lower), "high": float(upper)}
            for name, value, lower, upper in zip(METRICS, values.mean(axis=0), low, high, strict=True)
        }

    def rank_table(self) -> pd.DataFrame:
        """One row per system, task and request: system, task, protocol, user_id, item_id of the target, rank."""
        parts = [
            pd.DataFrame(
                {
                    "system": system,
                    "task": task,
                    "protocol": self.protocols[task],
                    "user_id": np.asarray(self.requests[task].events.user_ids, dtype=object)[self.requests[task].users],
                    "item_id": np.asarray(self.requests[task].events.item_ids, dtype=object)[
                        self.requests[task].target_items
                    ],
                    "rank": target_ranks,
                }
            )
            for system, by_task in self.ranks.items()
            for task, target_ranks in by_task.items()
        ]
        columns = ["system", "task", "protocol", "user_id", "item_id", "rank"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def save(self, folder: str | Path) -> None:
        """Write `ranks.parquet`, then `metrics.json`, each aside and renamed."""
        with atomic_path(Path(folder) / RANKS_FILE) as aside:
            self.rank_table().to_parquet(aside, index=False)
        write_json(Path(folder) / METRICS_FILE, self.metrics())


def evaluate(
    scorers: Sequence[Scorer],
    requests_by_task: Mapping[str, Requests],
    candidate_sets_by_task: Mapping[str, CandidateSets],
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    skip_clicked: bool = False,
    processes: Processes = ALONE,
) -> EvaluationResult:
    """Rank each request's target among its candidates with every scorer that does the task.

    A scorer that raises, or answers NaN or a wrong shape, is logged and kept in `failures`; the others go on.

    Args:
        scorers: systems with distinct names.
        requests_by_task: `split.test` or `split.validation`; a task without requests is passed over.
        candidate_sets_by_task: candidate sets of the same requests, made by `evaluation.candidates`.
        confidence: of the bootstrap intervals.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
        skip_clicked: put candidates that stand in the user's history behind all others, whatever a scorer says of
            them; fair to all where nobody takes an item twice, as in logs of ratings and reviews.
        processes: that share the requests among them, such as `accelerate.PartialState()`; all of them call this, and
            all get the whole result. Default: this one has them to itself.

    Returns:
        the result, under the candidate sets' protocols (`-unseen` behind their names with `skip_clicked`).

    Raises:
        ValueError: when two scorers share a name, or a task's candidate sets are missing or belong to other requests.
    """
    asked = _tasks_with_requests(requests_by_task)
    for task, requests in asked.items():
        _check_candidates(task, requests, candidate_sets_by_task.get(task))
    result = EvaluationResult(
        requests=asked,
        protocols={task: candidate_sets_by_task[task].protocol + "-unseen" * skip_clicked for task in asked},
        num_candidates={task: candidate_sets_by_task[task].candidates.shape[1] for task in asked},
        systems=_distinct_names(scorers),
        empty_tasks=[task for task in requests_by_task if task not in asked],
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )

    def rank(scorer: Scorer, task: str, rows: np.ndarray) -> np.ndarray:
        sets, requests = candidate_sets_by_task[task], asked[task].subset(rows)
        candidates = sets.candidates[rows]
        scores = np.asarray(scorer.score(requests, candidates))
        if scores.shape != candidates.shape:
            raise ValueError(f"Scores of shape {scores.shape} for candidates of shape {candidates.shape}.")
        if skip_clicked:
            # A target that was clicked before keeps its score.
            others = candidates != sets.target_items[rows, None]
            scores = np.where(clicked_before(requests, candidates) & others, -np.inf, scores)
        return rank_of_target(scores, sets.target_columns[rows])

    _rank_with_all(scorers, result, rank, processes)
    return result


def clicked_before(requests: Requests, candidates: np.ndarray) -> np.ndarray:
    """`(num_requests, num_candidates)` bool: the candidates that stand in the history of their request's user."""
    rows = [np.isin(own, requests.events.items[requests.history(row)]) for row, own in enumerate(candidates)]
    return np.stack(rows) if rows else np.zeros(candidates.shape, dtype=bool)


def evaluate_full_ranking(
    scorers: Sequence[Scorer],
    requests_by_task: Mapping[str, Requests],
    exclude_history: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    chunk_size: int = 256,
    processes: Processes = ALONE,
) -> EvaluationResult:
    """Rank each request's target among all items, with every scorer that does the task.

    Args:
        scorers: as in `evaluate`; they are asked for scores of the whole catalogue.
        requests_by_task: as in `evaluate`.
        exclude_history: take the items in the user's history out of the list, except the target.
        confidence: of the bootstrap intervals.
        num_resamples: of the bootstrap.
        seed: of the bootstrap and of the order of equal scores.
        chunk_size: requests that are scored at once.
        processes: as in `evaluate`.

    Returns:
        the result, under protocol `full-ranking` or `full-ranking-unseen`; failures as in `evaluate`.

    Raises:
        ValueError: when two scorers share a name.
    """
    asked = _tasks_with_requests(requests_by_task)
    result = EvaluationResult(
        requests=asked,
        protocols=dict.fromkeys(asked, FULL_RANKING_UNSEEN if exclude_history else FULL_RANKING),
        num_candidates={task: requests.events.num_items for task, requests in asked.items()},
        systems=_distinct_names(scorers),
        empty_tasks=[task for task in requests_by_task if task not in asked],
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )

    def rank(scorer: Scorer, task: str, rows: np.ndarray) -> np.ndarray:
        return full_ranks(scorer, asked[task], exclude_history, seed, chunk_size, rows)

    _rank_with_all(scorers, result, rank, processes)
    return result


def _rank_with_all(
    scorers: Sequence[Scorer],
    result: EvaluationResult,
    rank: Callable[[Scorer, str, np.ndarray], np.ndarray],
    processes: Processes,
) -> None:
    """Fill `result.ranks` and `result.failures`.

    Args:
        scorers: asked one after another.
        result: to be filled.
        rank: ranks of the targets of some rows of a task's requests, by a scorer.
        processes: each asks for its share of the rows.
    """
    pairs = [(scorer, task) for scorer in scorers for task in result.requests if task in scorer.tasks]
    bar = tqdm(pairs, desc="evaluating", leave=False, delay=2)
    for scorer, task in bar:
        bar.set_postfix_str(f"{scorer.name}, {task}", refresh=False)
        num_requests = len(result.requests[task])
        rows = own_rows(num_requests, processes)
        outcome: np.ndarray | str
        try:
            outcome = rank(scorer, task, rows) if len(rows) else np.zeros(0, dtype=np.int64)
        except Exception as error:  # whatever one system breaks on must not cost the figures of the others
            logger.exception("%s failed in %s; the other systems are evaluated without it.", scorer.name, task)
            outcome = f"{type(error).__name__}: {error}"
        whole = gathered_outcomes(outcome, num_requests, processes)
        if isinstance(whole, str):
            result.failures.setdefault(scorer.name, {})[task] = whole
        else:
            result.ranks.setdefault(scorer.name, {})[task] = whole


def _tasks_with_requests(requests_by_task: Mapping[str, Requests]) -> dict[str, Requests]:
    for task, requests in requests_by_task.items():
        if len(requests) == 0:
            logger.warning("There are no %s requests, so %s is not evaluated.", task, task)
    return {task: requests for task, requests in requests_by_task.items() if len(requests)}


def _distinct_names(scorers: Sequence[Scorer]) -> list[str]:
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names):
        raise ValueError(f"Every scorer needs a name of its own, because it names a row of the table; got {names}.")
    return names


def _check_candidates(task: str, requests: Requests, sets: CandidateSets | None) -> None:
    if sets is None:
        raise ValueError(f"There are {len(requests)} {task} requests, but no candidate sets for {task}.")
    if not np.array_equal(sets.target_items, requests.target_items):
        raise ValueError(
            f"The {task} candidate sets ({len(sets)}) do not hold the targets of the {len(requests)} requests; "
            "make them anew from these requests."
        )
