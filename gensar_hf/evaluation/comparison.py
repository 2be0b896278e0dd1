"""Several systems, each with one or more seeds, on the same requests: means, spreads, differences, tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gensar_hf.evaluation.metrics import METRICS, contributions
from gensar_hf.evaluation.protocol import METRICS_FILE, RANKS_FILE
from gensar_hf.evaluation.significance import bootstrap_interval, paired_t_test
from gensar_hf.files import read_json

KINDS = ("semantic", "collaborative")
TASK_FACTS = ("protocol", "num_requests", "num_users", "num_candidates")


@dataclass(frozen=True)
class Outcome:
    """A finished run of one system with one seed.

    Attributes:
        system: name of the system (or of the variant), its row in the tables.
        seed: of its training.
        results: folder with the run's `metrics.json` and `ranks.parquet`.
        row: the system's name in these two files.
        seconds: what was done → how long it took.
        parameters: numbers that scoring needs; None where nobody counted.
        identifiers: the identifier stage's report, of systems that have identifiers.
        settings: chosen for this system.
    """

    system: str
    seed: int
    results: Path
    row: str = "GenSAR"
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    identifiers: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def compare(outcomes: Sequence[Outcome], failures: Mapping[str, str], full_ranking: bool = False) -> dict[str, Any]:
    """Bring finished runs together, system by system; differences are those from the first system.

    Args:
        outcomes: every run; at least one.
        failures: run → why it has no outcome.
        full_ranking: compare the ranks in the whole catalogue, in the folder `full_ranking` of the results; systems
            without it are left out.

    Returns:
        plain values: `reference`, `order` (of the systems), `tasks` (protocol and counts), `failures`, `variants` (name
        → `seeds`, `seconds`, `parameters`, `settings`, `identifiers`, and per task each metric's `mean`, `sd` and
        `values` over the seeds, with the `difference` from the first system: `mean`, `low` and `high` of the 95 %
        bootstrap interval over users, and `p_value` of the paired t-test over requests), and `tests`: that test for any
        two systems. Several seeds of a system count as one: each request's share in a metric is their mean.
    """
    by_system: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        folder = outcome.results / "full_ranking" if full_ranking else outcome.results
        if not full_ranking or folder.is_dir():
            by_system.setdefault(outcome.system, []).append(Outcome(**{**outcome.__dict__, "results": folder}))
    metrics = {name: [read_json(run.results / METRICS_FILE) for run in runs] for name, runs in by_system.items()}
    shares = {name: _shares(runs) for name, runs in by_system.items()}
    reference = next(iter(by_system))
    tasks = {
        task: {name: figures[name] for name in TASK_FACTS}
        for reports in metrics.values()
        for task, figures in reports[0]["tasks"].items()
        if figures["systems"]
    }
    return {
        "format_version": 1,
        "reference": reference,
        "order": list(by_system),  # a JSON file sorts its keys
        "tasks": tasks,
        "variants": {
            name: _figures(runs, metrics[name], shares[name], shares[reference]) for name, runs in by_system.items()
        },
        "tests": _tests(shares),
        "failures": dict(failures),
    }


def _figures(
    runs: Sequence[Outcome],
    metrics: Sequence[Mapping[str, Any]],
    shares: Mapping[str, pd.DataFrame],
    reference: Mapping[str, pd.DataFrame],
) -> dict[str, Any]:
    return {
        "seeds": [run.seed for run in runs],
        "seconds": {part: float(np.mean([run.seconds[part] for run in runs])) for part in runs[0].seconds},
        "parameters": runs[0].parameters,
        "settings": dict(runs[0].settings),
        "identifiers": None if runs[0].identifiers is None else identifier_figures([run.identifiers for run in runs]),
        "tasks": {
            task: _task_figures(
                [report["tasks"][task]["systems"][run.row] for run, report in zip(runs, metrics, strict=True)],
                task_shares,
                reference.get(task),
            )
            for task, task_shares in shares.items()
        },
    }


def _shares(runs: Sequence[Outcome]) -> dict[str, pd.DataFrame]:
    """Per task every request's share in every metric, mean over the seeds; rows are named by user and target."""
    parts = []
    for run in runs:
        ranks = pd.read_parquet(run.results / RANKS_FILE)
        ranks = ranks[ranks["system"] == run.row]
        shares = pd.DataFrame(contributions(ranks["rank"].to_numpy()), index=ranks.index)
        parts.append(pd.concat([ranks[["task", "user_id", "item_id"]], shares], axis=1))
    mean = pd.concat(parts).groupby(["task", "user_id", "item_id"], sort=True)[list(METRICS)].mean()
    return {str(task): mean.loc[task] for task in mean.index.get_level_values("task").unique()}


def _task_figures(
    by_seed: Sequence[Mapping[str, Mapping[str, float]]], shares: pd.DataFrame, reference: pd.DataFrame | None
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for metric in METRICS:
        values = [figure[metric]["value"] for figure in by_seed]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        figures[metric] = {"mean": float(np.mean(values)), "sd": sd, "values": values}
    if reference is not None and reference is not shares and reference.index.equals(shares.index):
        differences = (shares - reference).to_numpy()
        low, high = bootstrap_interval(differences, groups=shares.index.get_level_values("user_id").to_numpy())
        for metric, mean, lower, upper in zip(METRICS, differences.mean(axis=0), low, high, strict=True):
            p_value = paired_t_test(shares[metric].to_numpy(), reference[metric].to_numpy()).p_value
            interval = {"mean": float(mean), "low": float(lower), "high": float(upper)}
            figures[metric]["difference"] = {**interval, "p_value": p_value}
    return figures


def _tests(shares: Mapping[str, Mapping[str, pd.DataFrame]]) -> list[dict[str, Any]]:
    """The paired t-test of any two systems that answered the same requests, metric by metric."""
    tests = []
    for (first, left), (second, right) in combinations(shares.items(), 2):
        for task in left:
            if task not in right or not left[task].index.equals(right[task].index) or len(left[task]) < 2:
                continue
            for metric in METRICS:
                test = paired_t_test(left[task][metric].to_numpy(), right[task][metric].to_numpy())
                names = {"task": task, "metric": metric, "first": first, "second": second}
                # An infinite t is no JSON number; it comes with p = 0.
                statistic = test.statistic if np.isfinite(test.statistic) else None
                tests.append({**names, "difference": test.mean_difference, "t": statistic, "p_value": test.p_value})
    return tests


def identifier_figures(reports: Sequence[Any]) -> dict[str, Any]:
    """Means over the seeds of what the identifier stage reports; use and perplexity of the worst level."""
    size = reports[0]["codebook_size"]

    def mean(kind: str, name: str) -> float:
        return float(np.mean([report[kind][name] for report in reports]))

    def worst(kind: str, name: str) -> float:
        return float(np.mean([min(report[kind][f"{name}_before"]) for report in reports]))

    figures: dict[str, Any] = {
        name: reports[0][name] for name in ("num_items", "codebook_size", "num_levels", "num_shared_levels")
    }
    for kind in KINDS:
        figures[kind] = {
            "reconstruction_error": mean(kind, "reconstruction_error_before"),
            "collision_rate_before": mean(kind, "collision_rate_before"),
            "collision_rate_after": mean(kind, "collision_rate_after"),
            "codebook_use": worst(kind, "codebook_use"),
            "perplexity_share": worst(kind, "perplexity") / size,
        }
    before, after = (sum(mean(kind, f"distortion_{moment}") for kind in KINDS) for moment in ("before", "after"))
    figures["distortion_added"] = after / before - 1
    return figures
