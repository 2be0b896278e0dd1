"""Plots of results as PNG files, drawn with matplotlib (an optional extra)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.evaluation.report import KINDS, QUERY_KINDS, variants_in_order, with_identifiers
from gensar_hf.files import atomic_path

logger = logging.getLogger(__name__)

Series = Mapping[str, tuple[Any, Any]]
"""Label → values, and their errors: `(num_values,)` or `(2, num_values)` below and above."""
Panel = Callable[[Any], None]
_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#bab0ac", "#d67195")


def plot_metrics(metrics: Mapping[str, Any], path: str | Path, metric: str = "NDCG@10") -> bool:
    """Draw the bars of one metric with their intervals, a panel per task.

    Args:
        metrics: `EvaluationResult.metrics()`, or `metrics.json`.
        path: the PNG file.
        metric: one of `METRICS`.

    Returns:
        whether the plot was drawn; without matplotlib a warning is logged.
    """
    panels = []
    for task, facts in metrics["tasks"].items():
        names = [system for system in metrics["systems"] if system in facts["systems"]]
        values, low, high = (
            np.array([facts["systems"][name][metric][end] for name in names]) for end in ("value", "low", "high")
        )
        # A percentile interval of a skewed statistic may exclude its own value, and matplotlib refuses negative errors.
        errors = np.maximum(np.stack([values - low, high - values]), 0)
        title = f"{task.capitalize()}, {facts['protocol']}, {facts['num_requests']:,} requests"
        label = f"{metric}, {metrics['confidence']:.0%} bootstrap interval"
        panels.append(partial(_draw_bars, names, {title: (values, errors)}, label))
    return _save(Path(path), panels, (5.5 * max(1, len(panels)), 1.6 + 0.4 * len(metrics["systems"])))


def plot_query_kinds(metrics: Mapping[str, Any], path: str | Path, metric: str = "HR@10") -> bool:
    """Draw the bars of one metric, a group of systems per kind of query.

    Args:
        metrics: `QueryKindsResult.metrics()`, or `query_kinds.json`.
        path: the PNG file.
        metric: one of `METRICS`.

    Returns:
        whether the plot was drawn; without matplotlib a warning is logged, without results nothing is drawn.
    """
    kinds = [kind for kind in QUERY_KINDS if kind in metrics["kinds"]]
    series = {}
    for system in metrics["systems"]:
        by_kind = [metrics["kinds"][kind]["systems"].get(system, {}) for kind in kinds]
        series[system] = ([each[metric]["value"] if each else np.nan for each in by_kind], None)
    if not series or not kinds:
        return False
    panel = partial(_draw_bars, kinds, series, f"{metric} among all items")
    return _save(Path(path), [panel], (8, 1.6 + 0.17 * len(kinds) * (len(series) + 1)))


def plot_comparison(comparison: Mapping[str, Any], folder: Path, metric: str = "NDCG@10") -> list[Path]:
    """Draw the plots that a comparison has the data for, and return their files (none without matplotlib).

    `ndcg.png`: the metric of all tasks (cf. the paper's fig. 6 and 7). `collisions.png`: raw collision rates, if
    several systems have identifiers (cf. fig. 5). `trade_off.png`: search against recommendation (cf. fig. 1).
    `query_kinds.png`: the plot of `plot_query_kinds`, if the comparison has query kinds.
    """
    variants, tasks = variants_in_order(comparison), comparison["tasks"]
    height = 1.2 + 0.55 * len(variants)
    missing = {"mean": np.nan, "sd": None}  # bars of NaN are not drawn
    series = {}
    for task in tasks:
        values = [variant["tasks"].get(task, {}).get(metric, missing) for variant in variants.values()]
        series[task] = ([value["mean"] for value in values], [value["sd"] or 0.0 for value in values])
    label = f"{metric}, whiskers: one standard deviation over the seeds"
    plots: dict[str, tuple[Panel, tuple[float, float]]] = {
        "ndcg.png": (partial(_draw_bars, list(variants), series, label), (8, height))
    }
    identified = with_identifiers(comparison)
    if len(identified) > 1:
        rates = {
            kind: ([100 * each["identifiers"][kind]["collision_rate_before"] for each in identified.values()], None)
            for kind in KINDS
        }
        plots["collisions.png"] = (partial(_draw_bars, list(identified), rates, "raw collision rate, %"), (8, height))
    if len(variants) > 1 and {RECOMMENDATION, SEARCH} <= set(tasks):
        plots["trade_off.png"] = (partial(_draw_trade_off, variants, metric), (7, 5))
    drawn = [folder / name for name, (panel, size) in plots.items() if _save(folder / name, [panel], size)]
    kinds_path = folder / "query_kinds.png"
    has_kinds = "query_kinds" in comparison and plot_query_kinds(comparison["query_kinds"], kinds_path)
    return [*drawn, kinds_path] if has_kinds else drawn


def _save(path: Path, panels: Sequence[Panel], size: tuple[float, float]) -> bool:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn, because matplotlib is not installed (`pip install matplotlib`).", path)
        return False
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of this figure: the caller's pyplot backend is not changed
    for number, draw in enumerate(panels, start=1):
        draw(figure.add_subplot(1, len(panels), number))
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return True


def _draw_bars(names: Sequence[str], series: Series, label: str, axes: Any) -> None:
    """Horizontal bars, grouped by name, each with its value at the end."""
    height = 0.8 / len(series)
    highest = max((value for values, _ in series.values() for value in values if not np.isnan(value)), default=0.0)
    for index, (title, (values, errors)) in enumerate(series.items()):
        positions = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
        color = _COLORS[index % len(_COLORS)]
        bars = axes.barh(positions, values, height, xerr=errors, label=title, color=color)
        form = "{:.2f}" if highest > 1 else "{:.3f}"
        axes.bar_label(bars, ["" if np.isnan(value) else form.format(value) for value in values], fontsize=7, padding=3)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()  # the first system on top, as in the tables
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.15 * highest or 1.0)  # room for the values
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(series)), frameon=False)


def _draw_trade_off(variants: Mapping[str, Any], metric: str, axes: Any) -> None:
    """Systems of both tasks as points, systems of one task as lines that a joint system has to cross."""
    for index, (name, variant) in enumerate(variants.items()):
        color = f"C{index % 10}"
        search, recommendation = (
            variant["tasks"][task][metric]["mean"] if task in variant["tasks"] else None
            for task in (SEARCH, RECOMMENDATION)
        )
        if search is not None and recommendation is not None:
            # Names are in the legend: next to points that are close together they would overlap.
            axes.scatter([search], [recommendation], color=color, zorder=3, s=60, label=name)
        elif search is not None:
            axes.axvline(search, color=color, linestyle="--", linewidth=1, label=f"{name} (search only)")
        elif recommendation is not None:
            axes.axhline(recommendation, color=color, linestyle=":", linewidth=1, label=f"{name} (recommendation only)")
    axes.set_xlabel(f"search, {metric}")
    axes.set_ylabel(f"recommendation, {metric}")
    axes.margins(0.15)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
