"""Several trained runs side by side: their identifiers, their metrics over seeds, their differences from the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gensar_hf.artifacts import written_aside
from gensar_hf.evaluation.metrics import METRICS, contributions
from gensar_hf.evaluation.protocol import RANKS_FILE
from gensar_hf.evaluation.report import describe_protocol, short_figure
from gensar_hf.evaluation.significance import bootstrap_interval

SYSTEM = "GenSAR"
KINDS = ("semantic", "collaborative")
Outcome = Mapping[str, Any]


def compare(outcomes: Sequence[Outcome], failures: Mapping[str, str], results_dir: str = "results") -> dict[str, Any]:
    """Bring finished runs together, variant by variant; differences are those from the first variant.

    Args:
        outcomes: one a run: `variant`, `seed`, `folder`, `seconds` (stage → seconds), `details` (stage → what its
            `stage.json` says), `metrics` (the content of its `metrics.json`).
        failures: run → why it has no outcome.
        results_dir: of a run's folder, where `ranks.parquet` is.

    Returns:
        plain values: `order` (of the variants), `variants` (name → `seeds`, `seconds`, `parameters`, `identifiers`, and
        per task each metric's `mean`, `sd` and `values` over the seeds, with the `difference` from the first variant:
        `mean`, and `low` and `high` of the 95 % bootstrap interval over users), `tasks` (protocol and counts) and
        `failures`.
    """
    by_variant: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_variant.setdefault(outcome["variant"], []).append(outcome)
    reference = next(iter(by_variant))
    shares = {name: _shares(runs, results_dir) for name, runs in by_variant.items()}
    tasks = by_variant[reference][0]["metrics"]["tasks"]
    return {
        "format_version": 1,
        "reference": reference,
        "order": list(by_variant),  # a JSON file sorts its keys
        "tasks": {
            task: {name: figures[name] for name in ("protocol", "num_requests", "num_users", "num_candidates")}
            for task, figures in tasks.items()
        },
        "variants": {
            name: {
                "seeds": [run["seed"] for run in runs],
                "seconds": {stage: _mean(runs, "seconds", stage) for stage in runs[0]["seconds"]},
                "parameters": runs[0]["details"]["model"].get("parameters"),
                "identifiers": _identifiers(runs),
                "tasks": {
                    task: _task_figures(runs, task, shares[name][task], shares[reference].get(task))
                    for task in shares[name]
                },
            }
            for name, runs in by_variant.items()
        },
        "failures": dict(failures),
    }


def _shares(runs: Sequence[Outcome], results_dir: str) -> dict[str, pd.DataFrame]:
    """Per task every request's share in every metric, mean over the seeds; rows are named by user and target."""
    parts = []
    for run in runs:
        ranks = pd.read_parquet(Path(run["folder"]) / results_dir / RANKS_FILE)
        ranks = ranks[ranks["system"] == SYSTEM]
        shares = pd.DataFrame(contributions(ranks["rank"].to_numpy()), index=ranks.index)
        parts.append(pd.concat([ranks[["task", "user_id", "item_id"]], shares], axis=1))
    mean = pd.concat(parts).groupby(["task", "user_id", "item_id"], sort=True)[list(METRICS)].mean()
    return {str(task): mean.loc[task] for task in mean.index.get_level_values("task").unique()}


def _task_figures(
    runs: Sequence[Outcome], task: str, shares: pd.DataFrame, reference: pd.DataFrame | None
) -> dict[str, Any]:
    by_seed = {
        metric: [run["metrics"]["tasks"][task]["systems"][SYSTEM][metric]["value"] for run in runs]
        for metric in METRICS
    }
    figures: dict[str, Any] = {
        metric: {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "values": values,
        }
        for metric, values in by_seed.items()
    }
    if reference is not None and reference is not shares and reference.index.equals(shares.index):
        differences = (shares - reference).to_numpy()
        low, high = bootstrap_interval(differences, groups=shares.index.get_level_values("user_id").to_numpy())
        for metric, mean, lower, upper in zip(METRICS, differences.mean(axis=0), low, high, strict=True):
            figures[metric]["difference"] = {"mean": float(mean), "low": float(lower), "high": float(upper)}
    return figures


def _identifiers(runs: Sequence[Outcome]) -> dict[str, Any]:
    """Means over the seeds of what the identifier stage reports; use and perplexity of the worst level."""
    reports = [run["details"]["rqvae"] for run in runs]
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


def _mean(runs: Sequence[Outcome], part: str, name: str) -> float:
    return float(np.mean([run[part][name] for run in runs]))


def _in_order(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The variants as they were given."""
    return {name: comparison["variants"][name] for name in comparison["order"]}


def comparison_tables(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: the identifiers, then a table a task; figures of both kinds stand as `s / c`."""
    blocks = [_identifier_table(comparison)]
    for task, facts in comparison["tasks"].items():
        caption = f"{task.capitalize()}: {describe_protocol(facts['protocol'])} ({facts['num_requests']:,} requests)"
        blocks.append(f"**{caption}**\n\n{_task_table(comparison, task)}")
    num_seeds = max(len(variant["seeds"]) for variant in comparison["variants"].values())
    spread = f"± the standard deviation over {num_seeds} seeds. " if num_seeds > 1 else "One seed. "
    blocks.append(
        f"{spread}Δ: difference in NDCG@10 from {comparison['reference']}, with its 95 % bootstrap interval over users "
        "(means over the seeds)."
    )
    blocks += [f"{run} failed: {reason}" for run, reason in comparison["failures"].items()]
    return "\n\n".join(blocks) + "\n"


def _identifier_table(comparison: Mapping[str, Any]) -> str:
    header = [
        "Identifiers", "levels (shared)", "reconstruction error s / c", "raw collisions s / c", "after assignment",
        "added distortion", "codes used", "perplexity / K", "seconds",
    ]  # fmt: skip
    rows = []
    for name, variant in _in_order(comparison).items():
        figures = variant["identifiers"]
        semantic, collaborative = (figures[kind] for kind in KINDS)

        def both(column: str, form: str, left: dict = semantic, right: dict = collaborative) -> str:
            return f"{left[column]:{form}} / {right[column]:{form}}"

        rows.append(
            [
                name,
                f"{figures['num_levels']} ({figures['num_shared_levels']})",
                both("reconstruction_error", ".3f"),
                both("collision_rate_before", ".2%"),
                f"{max(semantic['collision_rate_after'], collaborative['collision_rate_after']):.0%}",
                f"{figures['distortion_added']:.2%}",
                f"{min(semantic['codebook_use'], collaborative['codebook_use']):.0%}",
                f"{min(semantic['perplexity_share'], collaborative['perplexity_share']):.0%}",
                f"{variant['seconds']['rqvae']:.1f}",
            ]
        )
    note = "Reconstruction error: share of the variance that is lost. Codes used and perplexity: of the worst level."
    return f"{_markdown(header, rows)}\n\n{note}"


def _task_table(comparison: Mapping[str, Any], task: str) -> str:
    rows = []
    for name, variant in _in_order(comparison).items():
        figures = variant["tasks"].get(task)
        if figures is not None:
            cells = [_with_sd(figures[metric]) for metric in METRICS]
            rows.append([name, *cells, _difference(figures["NDCG@10"].get("difference"))])
    return _markdown(["Identifiers", *METRICS, "Δ NDCG@10"], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_sd(figure: Mapping[str, Any]) -> str:
    sd = "" if figure["sd"] is None else f" ± {short_figure(figure['sd'])}"
    return short_figure(figure["mean"]) + sd


def _difference(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return ""
    return f"{difference['mean']:+.3f} ({difference['low']:+.3f} … {difference['high']:+.3f})"


def save_figures(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `collisions.png` (raw collision rates, cf. the paper's fig. 5) and `ndcg.png` (both tasks, cf. fig. 6, 7).

    Returns:
        the files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = comparison["order"]
    panels = {
        "collisions.png": ("raw collision rate, %", _collision_bars(comparison)),
        "ndcg.png": ("NDCG@10, whiskers: one standard deviation over the seeds", _ndcg_bars(comparison)),
    }
    paths = []
    for file_name, (label, series) in panels.items():
        figure = Figure(figsize=(8, 1.2 + 0.55 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.add_subplot(), names, series, label)
        with written_aside(folder / file_name) as aside:
            figure.savefig(aside, format="png", dpi=150)
        paths.append(folder / file_name)
    return paths


def _collision_bars(comparison: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    variants = _in_order(comparison).values()
    return {
        kind: (
            [100 * variant["identifiers"][kind]["collision_rate_before"] for variant in variants],
            [0.0] * len(variants),
        )
        for kind in KINDS
    }


def _ndcg_bars(comparison: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    figures = {
        task: [variant["tasks"][task]["NDCG@10"] for variant in _in_order(comparison).values()]
        for task in comparison["tasks"]
    }
    return {
        task: ([figure["mean"] for figure in column], [figure["sd"] or 0.0 for figure in column])
        for task, column in figures.items()
    }


def _draw(axes: Any, names: list[str], series: Mapping[str, tuple[list[float], list[float]]], label: str) -> None:
    """Horizontal bars, the series beside one another for each name, each with its value at the end."""
    height = 0.8 / len(series)
    for index, (title, (values, deviations)) in enumerate(series.items()):
        positions = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
        bars = axes.barh(
            positions, values, height, xerr=deviations, label=title, color=("#4c78a8", "#f58518")[index % 2]
        )
        axes.bar_label(bars, fmt="%.2f" if max(values) > 1 else "%.3f", fontsize=7, padding=3)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.15 * max(max(values) for values, _ in series.values()) or 1.0)  # room for the values
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False)
