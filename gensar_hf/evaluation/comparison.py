"""Compare systems over seeds on the same requests: means, standard deviations, differences, tests."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gensar_hf.errors import InputError
from gensar_hf.evaluation.metrics import COMPARED_METRICS, METRICS, metrics_per_request
from gensar_hf.evaluation.plots import plot_comparison
from gensar_hf.evaluation.protocol import FULL_RANKING_DIR, METRICS_FILE, RANKS_FILE
from gensar_hf.evaluation.query_kinds import QUERY_KINDS_FILE
from gensar_hf.evaluation.report import KINDS, SPREAD_METRICS, comparison_tables, write_markdown
from gensar_hf.evaluation.significance import metric_intervals
from gensar_hf.files import read_json, write_json
from gensar_hf.folders import saving

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The result of one system with one seed."""

    system: str  # its row in the tables
    seed: int  # of its training
    results: Path  # folder of its `metrics.json` and `ranks.parquet`
    row: str = "GenSAR"  # the system's name in these two files
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each stage
    parameters: int | None = None  # used for scoring; None if unknown
    memory: int | None = None  # most bytes that its process held; None if unknown
    identifiers: Mapping[str, Any] | None = None  # report of the identifier stage, if there is one
    settings: Mapping[str, Any] = field(default_factory=dict)  # chosen for this system
    was_finished: bool = False  # before this call, which computed nothing


def run_apart(
    calls: Mapping[str, Callable[[], RunResult]], set_up: Callable[[], None], tell: Callable[[str], object]
) -> tuple[list[RunResult], dict[str, str]]:
    """Run systems one after another, each that is not finished in a process of its own.

    So a system's peak of memory is its own, and one that fails or is killed does not end the others.

    Args:
        calls: name → what trains and evaluates the system; must be picklable.
        set_up: called first in each process; must be picklable.
        tell: called with what begins, and with what failed.

    Returns:
        the results, and name → what failed.
    """
    spawning = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    new_pool = partial(ProcessPoolExecutor, 1, spawning, _begin, (set_up,))
    runs, failures, pool = list[RunResult](), dict[str, str](), new_pool()
    for number, (name, call) in enumerate(calls.items(), start=1):
        tell(f"{number}/{len(calls)} {name}")
        is_clean = False
        try:
            runs.append(pool.submit(call).result())
            is_clean = runs[-1].was_finished
        except BrokenProcessPool:
            failures[name] = "its process was killed, as by the system where the memory is used up"
        except Exception as error:  # an error of one system must not lose the results of the others
            failures[name] = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        if name in failures:
            tell(f"{name} failed: {failures[name]}")
        if not is_clean:
            pool.shutdown()
            pool = new_pool()
    pool.shutdown()
    return runs, failures


def _begin(set_up: Callable[[], None]) -> None:
    set_up()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """So that nothing goes on for hours after the comparison was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def compare(runs: Sequence[RunResult], failures: Mapping[str, str], full_ranking: bool = False) -> dict[str, Any]:
    """Compare runs by system, each with the first system.

    Args:
        runs: at least one. Systems without a request of their tasks (search, where nobody searched) are left out.
        failures: run → why it has no result.
        full_ranking: compare the ranks among all items. Systems without them are left out.

    Returns:
        plain values. `variants`: per system, task and metric the `mean`, `sd` and `values` over the seeds, with the
        `difference` from the first system, its 95 % bootstrap interval over users, and the `p_value` of a paired t-test
        over requests. `tests`: that test for any two systems. Both use each request's mean over the seeds.

    Raises:
        InputError: no system has requests of its tasks.
    """
    by_system: dict[str, list[RunResult]] = {}
    for run in runs:
        folder = run.results / FULL_RANKING_DIR if full_ranking else run.results
        if full_ranking and not folder.is_dir():
            continue
        if any(run.row in facts["systems"] for facts in read_json(folder / METRICS_FILE)["tasks"].values()):
            by_system.setdefault(run.system, []).append(replace(run, results=folder))
        else:
            logger.warning("%s is left out, since there are no requests of its tasks.", run.system)
    if not by_system:
        raise InputError("No system has requests of its tasks, so there is nothing to compare; give longer histories.")
    metrics = {name: [read_json(run.results / METRICS_FILE) for run in group] for name, group in by_system.items()}
    of_runs = {name: [_metrics_of_requests(run) for run in group] for name, group in by_system.items()}
    per_request = {name: _means_by_task(frames) for name, frames in of_runs.items()}
    reference, variants = next(iter(by_system)), {}
    for name, group in by_system.items():
        reports = [run.identifiers for run in group if run.identifiers is not None]
        tasks = {}
        for task, values in per_request[name].items():
            by_seed = [  # files of earlier versions have fewer metrics
                _means(frame.loc[[task]]) | each["tasks"][task]["systems"][run.row]
                for run, frame, each in zip(group, of_runs[name], metrics[name], strict=True)
            ]
            tasks[task] = _task_metrics(by_seed, values, per_request[reference].get(task))
        variants[name] = {
            "seeds": [run.seed for run in group],
            "seconds": {stage: float(np.mean([run.seconds[stage] for run in group])) for stage in group[0].seconds},
            "parameters": group[0].parameters,
            "memory": max((run.memory for run in group if run.memory), default=None),
            "settings": dict(group[0].settings),
            "identifiers": summarize_identifiers(reports) if reports else None,
            "tasks": tasks,
        }
    return {
        "format_version": 1,
        "reference": reference,
        "order": list(by_system),  # write_json sorts keys
        "tasks": {
            task: {name: facts[name] for name in ("protocol", "num_requests", "num_users", "num_candidates")}
            for reports in metrics.values()
            for task, facts in reports[0]["tasks"].items()
            if facts["systems"]
        },
        "variants": variants,
        "tests": _tests(per_request),
        **({"query_kinds": kinds} if (kinds := mean_query_kinds(runs))["systems"] and not full_ranking else {}),
        "failures": dict(failures),
    }


def mean_query_kinds(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Query kinds of the same requests by several systems, as `QueryKindsResult.metrics()`: means over the seeds.

    A row whose name begins with that of the run's own row (such as "GenSAR, no history") gets the system's name there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, Any] = {}
    for run in runs:
        path = run.results / QUERY_KINDS_FILE
        report = read_json(path) if path.is_file() else {"systems": [], "kinds": {}}
        for kind, facts in report["kinds"].items():
            kinds.setdefault(kind, {**facts, "systems": {}})
        for row in report["systems"]:
            values = {kind: facts["systems"][row] for kind, facts in report["kinds"].items() if row in facts["systems"]}
            found.setdefault(row.replace(run.row, run.system, 1), []).append(values)
    for system, by_seed in found.items():
        for kind in by_seed[0]:
            names = [name for name in METRICS if all(name in each[kind] for each in by_seed)]
            metrics = {name: float(np.mean([each[kind][name]["value"] for each in by_seed])) for name in names}
            kinds[kind]["systems"][system] = {name: {"value": value} for name, value in metrics.items()}
    num_seeds = max(map(len, found.values()), default=0)
    return {"format_version": 1, "num_seeds": num_seeds, "systems": list(found), "kinds": kinds, "failures": {}}


def save_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write `comparison.json`, the tables as `comparison.md`, and the plots of `plot_comparison`."""
    with saving(folder) as aside:
        write_json(aside / "comparison.json", comparison)
        write_markdown(aside / "comparison.md", comparison_tables(comparison))
        plot_comparison(comparison, aside)


def _metrics_of_requests(run: RunResult) -> pd.DataFrame:
    """Metrics of each request; the index is task, user and target."""
    ranks = pd.read_parquet(run.results / RANKS_FILE)
    ranks = ranks[ranks["system"] == run.row]
    index = pd.MultiIndex.from_frame(ranks[["task", "user_id", "item_id"]])
    return pd.DataFrame(metrics_per_request(ranks["rank"].to_numpy(), COMPARED_METRICS), index, list(COMPARED_METRICS))


def _means(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {str(name): {"value": float(value)} for name, value in frame.mean().items()}


def _means_by_task(frames: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Task → metrics of each request, mean over the seeds; the index is user and target."""
    mean = pd.concat(frames).groupby(level=["task", "user_id", "item_id"], sort=True).mean()
    return {str(task): mean.loc[task] for task in mean.index.get_level_values("task").unique()}


def _task_metrics(
    by_seed: Sequence[Mapping[str, Mapping[str, float]]], per_request: pd.DataFrame, reference: pd.DataFrame | None
) -> dict[str, Any]:
    """Each metric's mean, deviation and values over the seeds, and the difference from the reference."""
    metrics: dict[str, Any] = {}
    for name in [name for name in (*COMPARED_METRICS, *SPREAD_METRICS) if all(name in run for run in by_seed)]:
        values = [run[name]["value"] for run in by_seed]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        metrics[name] = {"mean": float(np.mean(values)), "sd": sd, "values": values}
    if reference is not None and reference is not per_request and reference.index.equals(per_request.index):
        users = per_request.index.get_level_values("user_id").to_numpy()
        intervals = metric_intervals((per_request - reference).to_numpy(), groups=users, names=COMPARED_METRICS)
        for name, interval in intervals.items():
            p_value = paired_t_test(per_request[name].to_numpy(), reference[name].to_numpy())["p_value"]
            interval["mean"] = interval.pop("value")
            metrics[name]["difference"] = {**interval, "p_value": p_value}
    return metrics


def _tests(per_request: Mapping[str, Mapping[str, pd.DataFrame]]) -> list[dict[str, Any]]:
    """Paired t-tests of any two systems with the same requests, for each metric."""
    tests = []
    for (first, left), (second, right) in combinations(per_request.items(), 2):
        for task in left:
            if task not in right or not left[task].index.equals(right[task].index) or len(left[task]) < 2:
                continue
            for metric in METRICS:
                test = paired_t_test(left[task][metric].to_numpy(), right[task][metric].to_numpy())
                tests.append({"task": task, "metric": metric, "first": first, "second": second, **test})
    return tests


def paired_t_test(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """Student's paired t-test of two systems' per-request values, each `(num_requests,)` with at least two requests.

    Returns:
        mean `difference`, `t` (None if all differences are equal but not 0, as it is infinite), two-sided `p_value`.
    """
    from scipy.stats import ttest_rel  # takes 1.4 s to import

    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return {"difference": mean, "t": None if mean else 0.0, "p_value": 0.0 if mean else 1.0}
    test = ttest_rel(first, second)
    return {"difference": mean, "t": float(test.statistic), "p_value": float(test.pvalue)}


def summarize_identifiers(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of the identifier stage's reports; codebook use and perplexity of the worst level."""
    first = reports[0]

    def mean(kind: str, name: str) -> float:
        return float(np.mean([np.min(report[kind][name]) for report in reports]))  # the worst level's

    summary: dict[str, Any] = {
        name: first[name] for name in ("num_items", "codebook_size", "num_levels", "num_shared_levels")
    }
    for kind in KINDS:
        summary[kind] = {
            "reconstruction_error": mean(kind, "reconstruction_error_before"),
            "collision_rate_before": mean(kind, "collision_rate_before"),
            "collision_rate_after": mean(kind, "collision_rate_after"),
            "codebook_use": mean(kind, "codebook_use_before"),
            "perplexity_share": mean(kind, "perplexity_before") / first["codebook_size"],
        }
    before, after = (sum(mean(kind, f"distortion_{moment}") for kind in KINDS) for moment in ("before", "after"))
    return {**summary, "distortion_added": after / before - 1}
