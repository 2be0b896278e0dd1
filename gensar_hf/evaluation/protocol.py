"""Evaluate several systems on the same held-out requests and candidates."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gensar_hf.data.splits import RECOMMENDATION, TASKS, Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.candidates import CandidateSets, draw_candidates, with_negatives
from gensar_hf.evaluation.metrics import (
    METRICS,
    coverage,
    gini,
    hit_rate,
    metric_per_request,
    metrics_per_request,
    ndcg,
)
from gensar_hf.evaluation.plots import plot_metrics
from gensar_hf.evaluation.ranks import first_items, rank_in_catalogue, rank_of_target
from gensar_hf.evaluation.report import SPREAD_METRICS, metrics_tables, terminal, write_markdown
from gensar_hf.evaluation.scorer import GeneratorScorer, Scorer
from gensar_hf.evaluation.significance import CONFIDENCE, NUM_RESAMPLES, bootstrap_interval, metric_intervals
from gensar_hf.files import write_json
from gensar_hf.folders import saving

if TYPE_CHECKING:
    from rich.console import Group

    from gensar_hf.pipeline import GenSARPipeline

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
RANKS_FILE = "ranks.parquet"
FULL_RANKING_DIR = "full_ranking"
TREC_DIR = "trec"
LIST_LENGTH = 100  # items of a request that are kept: all candidates of the paper's protocol

_CHUNK_SIZE = 256  # requests per call of a scorer
_CHUNK_SCORES = 1 << 24  # of all items that a full ranking holds at a time

# Weights of the log-probabilities of identifier and item vector. Without identifiers the decoder has nothing to do.
SCORE_WEIGHTS = ((0.0, 1.0), *((1.0, weight) for weight in (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.0)))
_WORTH = 0.005  # NDCG@5 that identifiers must add to be worth the time of the decoder, which takes most of a request


@dataclass
class EvaluationResult:
    """Ranks of the targets by every system in every task, under one protocol per task.

    A protocol is `random-99`, `bm25-hard-99` or `full-ranking`, or one of them with `-unseen`.
    """

    requests: dict[str, Requests]  # of each task
    protocols: dict[str, str]  # of each task
    num_candidates: dict[str, int]  # of each task, the target included
    systems: list[str]  # names of the scorers, in the order of the tables
    empty_tasks: list[str] = field(default_factory=list)  # without requests
    ranks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # system → task → (num_requests,), from 1
    items: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # the same → `Ranking.items`
    failures: dict[str, dict[str, str]] = field(default_factory=dict)  # system → task → text of the exception
    seed: int = 0  # of the bootstrap, and of the ties in a full ranking
    names: Sequence[str] = METRICS  # of the metrics
    full_ranking: EvaluationResult | None = None  # the same systems and requests among all items

    def metrics(self) -> dict[str, Any]:
        """All metrics as plain values: the content of `metrics.json`.

        Of each task: `protocol`, `num_requests`, `num_users`, `num_candidates` and `systems`: system → metric →
        `value`, `low`, `high`.
        """
        return {
            "format_version": 1,
            "confidence": CONFIDENCE,
            "num_resamples": NUM_RESAMPLES,
            "seed": self.seed,
            "metrics": list(self.names),
            "systems": self.systems,
            "failures": self.failures,
            "empty_tasks": self.empty_tasks,
            "tasks": {task: self._task_metrics(task) for task in self.requests},
        }

    def _task_metrics(self, task: str) -> dict[str, Any]:
        users = self.requests[task].users
        users = np.where(users < 0, -1 - np.arange(len(users)), users)  # each request without a user is another one
        return {
            "protocol": self.protocols[task],
            "num_requests": len(users),
            "num_users": len(np.unique(users)),
            "num_candidates": self.num_candidates[task],
            "systems": {
                system: {
                    **metric_intervals(metrics_per_request(by_task[task], self.names), self.seed, users, self.names),
                    **self._spread(system, task),
                }
                for system, by_task in self.ranks.items()
                if task in by_task
            },
        }

    def _spread(self, system: str, task: str) -> dict[str, dict[str, float]]:
        """How recommendations spread over the catalogue; among sampled candidates that says nothing of a system."""
        if self.requests[task].task != RECOMMENDATION or not self.protocols[task].startswith("full-ranking"):
            return {}
        items, num_items = self.items[system][task][:, :10], self.num_candidates[task]
        values = coverage(items, num_items), gini(items, num_items)
        return {name: {"value": value} for name, value in zip(SPREAD_METRICS, values, strict=True)}

    def terminal_table(self) -> Group:
        """The tables for `rich.console.Console().print`, those of a full ranking last."""
        results = [self, self.full_ranking] if self.full_ranking else [self]
        return terminal([table for result in results for table in metrics_tables(result.metrics())])

    def save(self, folder: str | Path, trec_runs: bool = False) -> None:
        """Write `ranks.parquet`, `tables.md`, `ndcg.png` and `metrics.json`; a full ranking goes to `full_ranking/`.

        With `trec_runs` the first 100 items of every request go to `trec/` as run files, the targets as qrels. Without
        matplotlib (an optional extra) there is no `ndcg.png`, and a warning is logged.

        Raises:
            InputError: the folder has a file of such a name that this package did not write, or cannot be written to.
        """
        metrics = self.metrics()
        ranks = [
            (system, task, self.protocols[task], requests.events.user_ids[user], requests.events.item_ids[item], rank)
            for system, by_task in self.ranks.items()
            for task, requests in self.requests.items()
            if task in by_task
            for user, item, rank in zip(requests.users, requests.target_items, by_task[task], strict=True)
        ]
        with saving(folder) as aside:
            columns = ["system", "task", "protocol", "user_id", "item_id", "rank"]
            pd.DataFrame(ranks, columns=columns).to_parquet(aside / RANKS_FILE, index=False)
            write_markdown(aside / "tables.md", metrics_tables(metrics))
            plot_metrics(metrics, aside / "ndcg.png")
            write_json(aside / METRICS_FILE, metrics)
            if trec_runs:
                self._save_runs(aside / TREC_DIR)
            if self.full_ranking:
                self.full_ranking.save(aside / FULL_RANKING_DIR, trec_runs)

    def _save_runs(self, folder: Path) -> None:
        """Write `TASK.qrels` and `TASK-SYSTEM.run.gz` in the format of TREC, for ranx, ir-measures or trec_eval.

        A query is the number of its request, a document the item's id (percent-encoded, as TREC has no blanks in ids).
        The score is the reciprocal of the place: no two items of a request are equal, so that no tool breaks ties.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for task, requests in self.requests.items():
            ids = [quote(item_id, safe="") for item_id in requests.events.item_ids]
            lines = [f"{row} 0 {ids[item]} 1\n" for row, item in enumerate(requests.target_items)]
            (folder / f"{task}.qrels").write_text("".join(lines), encoding="utf-8")
            for system, by_task in self.items.items():
                tag = "-".join(re.findall(r"\w+", system))
                if task in by_task:
                    with gzip.open(folder / f"{task}-{tag}.run.gz", "wt", encoding="utf-8") as file:
                        for row, items in enumerate(by_task[task].tolist()):
                            shown = [item for item in items if item >= 0]
                            file.writelines(
                                f"{row} Q0 {ids[item]} {place} {1 / place:.6f} {tag}\n"
                                for place, item in enumerate(shown, start=1)
                            )


class Evaluation:
    """The held-out requests of a dataset and their candidates, drawn once and used for every system.

    Recommendation targets are ranked among random items, search targets among the best BM25 hits for the query.
    Recommendations for users who have interacted with every item are left out, with a warning.

    Args:
        dataset: an `InteractionDataset`.
        part: `"test"`, or `"validation"` to choose a model.
        tasks: `"recommendation"`, `"search"` or both.
        num_negatives: candidates per request, without the target.
        max_users: size of a seeded sample of users. Default: all users.
        skip_clicked: rank items of the user's history behind all others, for every system. This is fair where nobody
            takes an item twice, as in logs of ratings and reviews.
        bm25_columns: columns of the items that BM25 reads to find the hard candidates of search. Default: all text
            columns. Where queries are made of what a text column says, such as genres, all its hits are alike in text,
            and a search by text is at chance; hits by `title` alone are not.
        more_metrics: further ones, such as HR@20, NDCG@50 or MRR. Default: those of the paper's tables.
        seed: of the sample, the candidates and the bootstrap.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: Any,
        part: str = "test",
        *,
        tasks: Sequence[str] = TASKS,
        num_negatives: int = 99,
        max_users: int | None = None,
        skip_clicked: bool = False,
        bm25_columns: Sequence[str] | None = None,
        more_metrics: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if part not in ("test", "validation"):
            raise InputError(f"`part` must be test or validation; got {part!r}.")
        if not tasks or set(tasks) - set(TASKS):
            raise InputError(f"`tasks` must be some of {', '.join(TASKS)}; got {', '.join(tasks) or 'none'}.")
        if num_negatives < 1 or (max_users is not None and max_users < 1):
            raise InputError(
                f"`num_negatives` and `max_users` must be at least 1; got {num_negatives} and {max_users}."
            )
        self.names = tuple(dict.fromkeys([*METRICS, *(more_metrics or ())]))
        for name in self.names:
            metric_per_request(name, np.ones(1))  # refuses names that there are not
        self.skip_clicked, self.seed = skip_clicked, seed
        held_out: dict[str, Requests] = getattr(dataset.split, part)
        users = np.unique(np.concatenate([requests.users for requests in held_out.values()]))
        self.requests = {task: held_out[task] for task in TASKS if task in tasks}
        if max_users is not None and len(users) > max_users:
            chosen = np.random.default_rng(seed).choice(users, size=max_users, replace=False)
            self.requests = {
                task: requests.subset(np.flatnonzero(np.isin(requests.users, chosen)))
                for task, requests in self.requests.items()
            }
        if RECOMMENDATION in self.requests:
            self.requests[RECOMMENDATION] = with_negatives(self.requests[RECOMMENDATION])
        item_texts = dataset.item_texts() if bm25_columns is None else dataset.item_texts(bm25_columns)
        self.candidates: dict[str, CandidateSets] = {
            task: draw_candidates(task_requests, item_texts, num_negatives, seed, bm25_columns)
            for task, task_requests in self.requests.items()
            if len(task_requests)
        }

    def run(self, systems: Sequence[Scorer], full_ranking: bool = False) -> EvaluationResult:
        """Rank the targets by systems with distinct names, with `full_ranking` among all items as well."""
        options: dict[str, Any] = {"skip_clicked": self.skip_clicked, "seed": self.seed, "names": self.names}
        result = evaluate(systems, self.requests, self.candidates, **options)
        if full_ranking:
            result.full_ranking = evaluate(systems, self.requests, **options)
        return result


def evaluate_pipeline(  # noqa: D417
    pipe: GenSARPipeline,
    dataset: Any,
    *,
    part: str = "test",
    tasks: Sequence[str] = TASKS,
    systems: Sequence[Scorer] = (),
    num_negatives: int = 99,
    max_users: int | None = None,
    skip_clicked: bool = False,
    bm25_columns: Sequence[str] | None = None,
    more_metrics: Sequence[str] | None = None,
    full_ranking: bool = False,
    seed: int = 0,
) -> EvaluationResult:
    """Evaluate a model, and other systems if there are any, on the held-out requests of a dataset.

    Items are matched by item id, so the dataset may list them in another order than the model's identifier table.

    The arguments that are not listed are those of `Evaluation`.

    Args:
        pipe: a trained model, the first system of the result.
        systems: further systems for the same requests and candidates.
        full_ranking: rank the targets among all items as well. This takes longer.

    Raises:
        InputError: as in `Evaluation`, or an item of the dataset is not in the model's catalogue.
    """
    generator = GeneratorScorer(pipe)
    generator.table_rows(dataset.item_ids)
    options: dict[str, Any] = {"tasks": tasks, "num_negatives": num_negatives, "max_users": max_users, "seed": seed}
    options |= {"skip_clicked": skip_clicked, "bm25_columns": bm25_columns, "more_metrics": more_metrics}
    evaluation = Evaluation(dataset, part, **options)
    return evaluation.run([generator, *systems], full_ranking)


def validation_metrics(
    pipe: GenSARPipeline, data: Any, k: Sequence[int] = (5, 10), max_users: int = 500
) -> dict[str, float]:
    """HR@k and NDCG@k of a model on validation requests, without intervals: for use during training.

    Such as `{"recommendation_hr@5": …, "recommendation_ndcg@5": …, "search_hr@5": …}`. Tasks without validation
    requests have no entries. `data` is an `InteractionDataset`, of which `max_users` users are drawn, or an
    `Evaluation` that was prepared once for many calls. The model's training mode is restored.
    """
    evaluation = data if isinstance(data, Evaluation) else Evaluation(data, "validation", max_users=max_users)
    scorer, was_training = GeneratorScorer(pipe), pipe.model.training
    metrics = {}
    pipe.model.eval()
    try:
        for task, candidates in evaluation.candidates.items():
            excluded = history_items if evaluation.skip_clicked else None
            ranks = rank_requests(scorer, evaluation.requests[task], candidates, excluded).ranks
            for length in k:
                metrics[f"{task}_hr@{length}"] = hit_rate(ranks, length)
                metrics[f"{task}_ndcg@{length}"] = ndcg(ranks, length)
    finally:
        pipe.model.train(was_training)
    return metrics


def choose_weights(
    pipe: GenSARPipeline, requests: Mapping[str, Requests], candidates: Mapping[str, CandidateSets]
) -> dict[str, tuple[float, float]]:
    """For each task the weights of identifier and item vector with the highest NDCG@5 on validation requests.

    The score is linear in the weights, so that two scoring passes cover all of `SCORE_WEIGHTS`. Identifiers weigh
    nothing where they add less than .005 among the candidates, or where the 95 % interval of what they add among all
    items, which is what the pipeline answers with, reaches 0. On Amazon Beauty they do the one without the other
    (docs/results.md). The model's own weights are not changed. Tasks without candidates are left out.

    Raises:
        ValueError: the model has no item vectors.
    """
    from gensar_hf.generator.text_matching import CHANNELS

    config = pipe.model.config
    if not getattr(config, "num_items", 0):
        raise ValueError("Weights are chosen for a model with item vectors.")
    configured, best = (config.identifier_weight, config.item_weight), dict[str, tuple[float, float]]()
    try:
        for task, sets in candidates.items():
            config.identifier_weight = config.item_weight = 1.0
            identifiers = GeneratorScorer(pipe, parts=["identifier"]).score(requests[task], sets.candidates)
            by_item = GeneratorScorer(pipe, parts=["vector", *CHANNELS]).score(requests[task], sets.candidates)
            scores = {pair: pair[0] * identifiers + pair[1] * by_item for pair in SCORE_WEIGHTS}
            quality = {pair: ndcg(rank_of_target(values, sets.target_columns), 5) for pair, values in scores.items()}
            logger.info("NDCG@5 in %s by weight: %s", task, {pair: round(value, 4) for pair, value in quality.items()})
            least = {pair: quality[pair] - (_WORTH if pair[0] else 0.0) for pair in SCORE_WEIGHTS}
            best[task] = max(least, key=lambda pair: least[pair])
            if best[task][0]:
                answered = []
                for pair in (best[task], SCORE_WEIGHTS[0]):
                    config.identifier_weight, config.item_weight = pair
                    ranking = rank_requests(GeneratorScorer(pipe, as_answered=True), requests[task])
                    answered.append(metric_per_request("NDCG@5", ranking.ranks))
                gain = answered[0] - answered[1]
                low, high = bootstrap_interval(gain, groups=requests[task].users)
                logger.info("Among all items identifiers add %.4f (%.4f … %.4f).", gain.mean(), low, high)
                if low <= 0:
                    best[task] = SCORE_WEIGHTS[0]
    finally:
        config.identifier_weight, config.item_weight = configured
    return best


def evaluate(
    scorers: Sequence[Scorer],
    requests_by_task: Mapping[str, Requests],
    candidate_sets_by_task: Mapping[str, CandidateSets] | None = None,
    *,
    skip_clicked: bool = False,
    excluded: Callable[[Requests], np.ndarray] | None = None,
    seed: int = 0,
    names: Sequence[str] = METRICS,
) -> EvaluationResult:
    """Rank each request's target among its candidates, or among all items, with every scorer that supports the task.

    If a scorer raises, or returns NaN or a wrong shape, the error is logged and kept in `failures`, and the other
    scorers are evaluated.

    Args:
        scorers: systems with distinct names.
        requests_by_task: requests of each task. A task without requests is skipped. The names may be others than those
            of the tasks (see `query_kinds`), as each `Requests` has its task.
        candidate_sets_by_task: candidates of the same requests. Default: full ranking.
        skip_clicked: as in `Evaluation`. A full ranking leaves these items out.
        excluded: as in `rank_requests`, in place of `skip_clicked`.
        seed: of the bootstrap, and of the ties in a full ranking.
        names: of the metrics.

    Raises:
        ValueError: two scorers share a name, or a task's candidates are missing or belong to other requests.
    """
    systems = [scorer.name for scorer in scorers]
    if len(set(systems)) < len(systems):
        raise ValueError(f"Scorers must have distinct names, because a name is a row of the tables; got {systems}.")
    excluded = excluded or (history_items if skip_clicked else None)
    result = EvaluationResult(requests={}, protocols={}, num_candidates={}, systems=systems, seed=seed, names=names)
    for task, requests in requests_by_task.items():
        if not len(requests):
            logger.warning("There are no %s requests, so %s is not evaluated.", task, task)
            result.empty_tasks.append(task)
            continue
        protocol, num_candidates = "full-ranking", requests.events.num_items
        if candidate_sets_by_task is not None:
            if (sets := candidate_sets_by_task.get(task)) is None:
                raise ValueError(f"There are {len(requests)} {task} requests, but no candidate sets for {task}.")
            if not np.array_equal(sets.target_items, requests.target_items):
                raise ValueError(
                    f"The {task} candidate sets ({len(sets)}) do not hold the targets of the {len(requests)} requests; "
                    "draw them from these requests."
                )
            protocol, num_candidates = sets.protocol, sets.candidates.shape[1]
        result.requests[task], result.num_candidates[task] = requests, num_candidates
        result.protocols[task] = f"{protocol}-unseen" if skip_clicked else protocol
    for scorer in scorers:
        for task, requests in result.requests.items():
            if requests.task not in scorer.tasks:
                continue
            try:
                ranking = rank_requests(scorer, requests, (candidate_sets_by_task or {}).get(task), excluded, seed)
                result.ranks.setdefault(scorer.name, {})[task] = ranking.ranks
                result.items.setdefault(scorer.name, {})[task] = ranking.items
            except Exception as error:  # an error of one system must not lose the results of the others
                logger.exception("%s failed in %s; the other systems are evaluated without it.", scorer.name, task)
                result.failures.setdefault(scorer.name, {})[task] = f"{type(error).__name__}: {error}"
    return result


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a scorer made of each request."""

    ranks: np.ndarray  # (num_requests,) int64, of the target, from 1
    items: np.ndarray  # (num_requests, LIST_LENGTH) int32, the first items; -1: there are no more


def rank_requests(
    scorer: Scorer,
    requests: Requests,
    sets: CandidateSets | None = None,
    excluded: Callable[[Requests], np.ndarray] | None = None,
    seed: int = 0,
) -> Ranking:
    """Rank each request's target by one scorer.

    Args:
        scorer: the system. It scores a chunk of requests at a time.
        requests: the requests.
        sets: their candidates. Default: all items.
        excluded: function of requests to `(num_requests, num_items)` bool: items behind all others, such as
            `history_items`. A target is never among them.
        seed: of the ties among all items.

    Raises:
        ValueError: the scorer returns NaN or a wrong shape.
    """
    num_items, ranks = requests.events.num_items, [np.zeros(0, dtype=np.int64)]
    first = [np.zeros((0, LIST_LENGTH), dtype=np.int32)]
    tie_draws = np.random.default_rng(seed).random(len(requests))  # drawn at once: the same for every chunk size
    size = _CHUNK_SIZE if sets is not None else max(1, min(_CHUNK_SIZE, _CHUNK_SCORES // num_items))
    for start in tqdm(range(0, len(requests), size), desc=scorer.name, leave=False, delay=2):
        rows = np.arange(start, min(start + size, len(requests)))
        chunk = requests.subset(rows)
        candidates = (
            np.broadcast_to(np.arange(num_items), (len(rows), num_items)) if sets is None else sets.candidates[rows]
        )
        scores = np.asarray(scorer.score(chunk, candidates))
        if scores.shape != candidates.shape:
            raise ValueError(f"Scores of shape {scores.shape} for candidates of shape {candidates.shape}.")
        is_excluded = None if excluded is None else np.take_along_axis(excluded(chunk), candidates, axis=1)
        if sets is None:
            ranks.append(rank_in_catalogue(scores, chunk.target_items, tie_draws[rows], is_excluded))
        else:
            if is_excluded is not None:
                is_target = candidates == chunk.target_items[:, None]  # one that was clicked before keeps its score
                scores, is_excluded = np.where(is_excluded & ~is_target, -np.inf, scores), None
            ranks.append(rank_of_target(scores, sets.target_columns[rows]))
        first.append(first_items(scores, candidates, chunk.target_items, ranks[-1], is_excluded, LIST_LENGTH))
    return Ranking(np.concatenate(ranks), np.concatenate(first))


def history_items(requests: Requests) -> np.ndarray:
    """Which items are in each request's history, `(num_requests, num_items)` bool."""
    in_history = np.zeros((len(requests), requests.events.num_items), dtype=bool)
    for row in range(len(requests)):
        items = requests.events.items[requests.history(row)]
        in_history[row, items[items >= 0]] = True
    return in_history
