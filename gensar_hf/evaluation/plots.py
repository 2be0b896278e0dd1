"""Plots of results as PNG files, drawn with matplotlib (an optional extra)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.evaluation.report import QUERY_KINDS, variants_in_order
from gensar_hf.files import atomic_path

logger = logging.getLogger(__name__)

Series = Mapping[str, tuple[Any, Any]]  # label → values, and their errors
Panel = Callable[[Any], None]
_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#bab0ac", "#d67195")


def plot_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw NDCG@10 of `metrics.json` with its intervals, a panel per task."""
    panels = []
    for task, facts in metrics["tasks"].items():
        names = [system for system in metrics["systems"] if system in facts["systems"]]
        values, low, high = (
            np.array([facts["systems"][name]["NDCG@10"][end] for name in names]) for end in ("value", "low", "high")
        )
        # A percentile interval of a skewed statistic may exclude its own value, and matplotlib refuses negative errors.
        errors = np.maximum(np.stack([values - low, high - values]), 0)
        title = f"{task.capitalize()}, {facts['protocol']}, {facts['num_requests']:,} requests"
        label = f"NDCG@10, {metrics['confidence']:.0%} bootstrap interval"
        panels.append(partial(_draw_bars, names, {title: (values, errors)}, label))
    _save(path, panels, (5.5 * max(1, len(panels)), 1.6 + 0.4 * len(metrics["systems"])))


def plot_query_kinds(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw HR@10 of `query_kinds.json`, a group of systems per kind; nothing without results."""
    kinds = [kind for kind in QUERY_KINDS if kind in metrics["kinds"]]
    series = {}
    for system in metrics["systems"]:
        by_kind = [metrics["kinds"][kind]["systems"].get(system, {}) for kind in kinds]
        series[system] = ([each["HR@10"]["value"] if each else np.nan for each in by_kind], None)
    if series and kinds:
        panel = partial(_draw_bars, kinds, series, "HR@10 among all items")
        _save(path, [panel], (8, 1.6 + 0.17 * len(kinds) * (len(series) + 1)))


def plot_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """Draw the plots that a comparison has the data for.

    `ndcg.png`: NDCG@10 of all tasks (cf. the paper's fig. 6 and 7). `trade_off.png`: search against recommendation
    (cf. fig. 1).
    """
    variants, tasks = variants_in_order(comparison), comparison["tasks"]
    missing = {"mean": np.nan, "sd": None}  # bars of NaN are not drawn
    series = {}
    for task in tasks:
        values = [variant["tasks"].get(task, {}).get("NDCG@10", missing) for variant in variants.values()]
        series[task] = ([value["mean"] for value in values], [value["sd"] or 0.0 for value in values])
    label = "NDCG@10, whiskers: one standard deviation over the seeds"
    _save(folder / "ndcg.png", [partial(_draw_bars, list(variants), series, label)], (8, 1.2 + 0.55 * len(variants)))
    if len(variants) > 1 and {RECOMMENDATION, SEARCH} <= set(tasks):
        _save(folder / "trade_off.png", [partial(_draw_trade_off, variants)], (7, 6))
    if "query_kinds" in comparison:
        plot_query_kinds(comparison["query_kinds"], folder / "query_kinds.png")


def _save(path: Path, panels: Sequence[Panel], size: tuple[float, float]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn, because matplotlib is not installed (`pip install matplotlib`).", path.name)
        return
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of this figure: the caller's pyplot backend is not changed
    for number, draw in enumerate(panels, start=1):
        draw(figure.add_subplot(1, len(panels), number))
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def _draw_bars(names: Sequence[str], series: Series, label: str, axes: Any) -> None:
    """Horizontal bars, grouped by name, each with its value at the end."""
    height = 0.8 / len(series)
    highest = max((value for values, _ in series.values() for value in values if not np.isnan(value)), default=0.0)
    for index, (title, (values, errors)) in enumerate(series.items()):
        positions = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
        color = _COLORS[index % len(_COLORS)]
        bars = axes.barh(positions, values, height, xerr=errors, label=title, color=color)
        axes.bar_label(bars, ["" if np.isnan(value) else f"{value:.3f}" for value in values], fontsize=7, padding=3)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()  # the first system on top, as in the tables
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.15 * highest or 1.0)  # room for the values
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(series)), frameon=False)


def _draw_trade_off(variants: Mapping[str, Any], axes: Any) -> None:
    """Systems of both tasks as points, systems of one task as lines that a joint system has to cross."""
    ends: dict[str, dict[str, float]] = {SEARCH: {}, RECOMMENDATION: {}}  # where the lines of the systems are
    for index, (name, variant) in enumerate(variants.items()):
        scores = {task: variant["tasks"][task]["NDCG@10"]["mean"] for task in ends if task in variant["tasks"]}
        if len(scores) == len(ends):
            height = 3 - index / len(variants)  # the first system is on top
            point = {"s": 45, "edgecolors": "white", "zorder": height}
            axes.scatter([scores[SEARCH]], [scores[RECOMMENDATION]], label=name, **point)
        elif scores:
            ((task, score),) = scores.items()
            ends[task][name] = score
            draw = axes.axvline if task == SEARCH else axes.axhline
            draw(score, color="0.7", linestyle="--" if task == SEARCH else ":", linewidth=1)
    axes.set_xlabel("search, NDCG@10")
    axes.set_ylabel("recommendation, NDCG@10")
    axes.margins(0.15)
    # Names stand at the ends of the lines: nobody finds one of twenty lines in a legend.
    small = {"fontsize": 7, "arrowprops": {"arrowstyle": "-", "color": "0.7", "linewidth": 0.7}}
    for task, limits in ((SEARCH, axes.get_xlim()), (RECOMMENDATION, axes.get_ylim())):
        places = _spread(list(ends[task].values()), 0.04 * (limits[1] - limits[0]))
        for (name, score), place in zip(ends[task].items(), places, strict=True):
            if task == SEARCH:
                above = {"rotation": 90, "ha": "center", "va": "bottom", **small}
                axes.annotate(name, (score, 1), (place, 1.05), axes.get_xaxis_transform(), **above)
            else:
                axes.annotate(name, (1, score), (1.03, place), axes.get_yaxis_transform(), va="center", **small)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False)


def _spread(values: Sequence[float], least: float) -> np.ndarray:
    """The places that are nearest to `values` (least squares), in their order and at least `least` apart."""
    from sklearn.isotonic import isotonic_regression  # takes longer to import than all of this package's evaluation

    order = np.argsort(values, kind="stable")
    steps = least * np.arange(len(values))
    places = np.empty(len(values))
    if len(values):  # without the steps the places only have to grow
        places[order] = isotonic_regression(np.asarray(values, dtype=float)[order] - steps) + steps
    return places
