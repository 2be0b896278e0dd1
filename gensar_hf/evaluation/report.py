"""The content of `metrics.json` as Markdown, as a table for the terminal, and as a figure."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gensar_hf.evaluation.full_ranking import FULL_RANKING, FULL_RANKING_UNSEEN
from gensar_hf.evaluation.metrics import METRICS
from gensar_hf.files import atomic_path

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

_PROTOCOLS = {
    "random": "the target against {} random items its user has not interacted with",
    "bm25-hard": "the target against the {} best BM25 hits for the query that are not the target",
}


def describe_protocol(protocol: str) -> str:
    """A protocol's name in words.

    >>> describe_protocol("bm25-hard-99")
    'the target against the 99 best BM25 hits for the query that are not the target'
    """
    if protocol == FULL_RANKING:
        return "the target among all items"
    if protocol == FULL_RANKING_UNSEEN:
        return "the target among all items that its user's history does not hold"
    if protocol.endswith("-unseen"):
        return f"{describe_protocol(protocol.removesuffix('-unseen'))}, those clicked before by the user last"
    kind, _, num_negatives = protocol.rpartition("-")
    return _PROTOCOLS.get(kind, f"protocol {protocol}").format(num_negatives)


def markdown_report(metrics: Mapping[str, Any]) -> str:
    """One Markdown table per task, each under a caption that names its protocol; the best value of a column is bold.

    Args:
        metrics: `EvaluationResult.metrics()`, or `metrics.json` read back.

    Returns:
        text that ends with a line feed.
    """
    blocks = []
    for task, figures in metrics["tasks"].items():
        header = ["System", *METRICS]
        rows = [
            [system, *(f"**{cell}**" if is_best else cell for cell, is_best in cells)]
            for system, cells in _cells(metrics["systems"], figures).items()
        ]
        lines = [header, ["---"] + ["---:"] * len(METRICS), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        blocks.append(f"**{_task_caption(task, figures)}**\n\n{table}")
    blocks.extend(_notes(metrics))
    return "\n\n".join(blocks) + "\n"


def terminal_table(metrics: Mapping[str, Any]) -> "Table":
    """One table for `rich`, a block of rows per task, at most 120 columns wide; the best value of a block is bold.

    Args:
        metrics: `EvaluationResult.metrics()`, or `metrics.json` read back.

    Returns:
        a table for `rich.console.Console().print`; its caption names the protocols and what went wrong.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(caption_justify="left", width=None)
    table.add_column("System", max_width=34)
    for name in METRICS:
        table.add_column(name, justify="right", no_wrap=True)
    for task, figures in metrics["tasks"].items():
        table.add_row(f"[italic]{task.capitalize()}[/italic]")
        for system, cells in _cells(metrics["systems"], figures).items():
            values = [f"[bold]{cell}[/bold]" if is_best else cell for cell, is_best in cells]
            table.add_row(f"  {escape(system)}", *values)
        table.add_section()
    captions = [_task_caption(task, figures) for task, figures in metrics["tasks"].items()]
    table.caption = escape("\n".join([*captions, *_notes(metrics)]))
    return table


def save_figure(metrics: Mapping[str, Any], path: str | Path, metric: str = "NDCG@10") -> bool:
    """Draw one metric's bars with their intervals, a panel per task, as a PNG file.

    Args:
        metrics: `EvaluationResult.metrics()`, or `metrics.json` read back.
        path: the PNG file to write.
        metric: one of `METRICS`.

    Returns:
        whether the figure was drawn: without matplotlib, an optional extra, it is left out with a log message.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn, because matplotlib is not installed (`pip install matplotlib`).", path)
        return False
    tasks = metrics["tasks"]
    figure = Figure(figsize=(5.5 * max(1, len(tasks)), 0.6 + 0.4 * (2 + len(metrics["systems"]))), layout="constrained")
    FigureCanvasAgg(figure)  # this figure's own canvas: the caller's pyplot backend stays as it is
    for panel, (task, figures) in enumerate(tasks.items(), start=1):
        axes = figure.add_subplot(1, len(tasks), panel)
        _draw_bars(axes, metrics["systems"], figures, metric)
        axes.set_title(f"{task.capitalize()}, {figures['protocol']}, {figures['num_requests']:,} requests", fontsize=10)
        axes.set_xlabel(f"{metric}, {metrics['confidence']:.0%} bootstrap interval")
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return True


def _draw_bars(axes: Any, systems: list[str], figures: Mapping[str, Any], metric: str) -> None:
    names = [system for system in systems if system in figures["systems"]]
    chosen = [figures["systems"][name][metric] for name in names]
    values = np.array([figure["value"] for figure in chosen])
    # A percentile interval of a skewed statistic may leave its own value out; a bar's whisker cannot be negative.
    below = np.maximum(values - [figure["low"] for figure in chosen], 0)
    above = np.maximum([figure["high"] for figure in chosen] - values, 0)
    axes.barh(names, values, xerr=np.stack([below, above]), capsize=3, color="#4c78a8")
    axes.invert_yaxis()  # the first system on top, as in the tables
    axes.set_xlim(left=0)


def _cells(systems: list[str], figures: Mapping[str, Any]) -> dict[str, list[tuple[str, bool]]]:
    """Per system its cells, each with whether it is the best of its column, as printed: what looks equal is equal."""
    names = [system for system in systems if system in figures["systems"]]
    best = {
        metric: short_figure(max((figures["systems"][name][metric]["value"] for name in names), default=0.0))
        for metric in METRICS
    }
    cells: dict[str, list[tuple[str, bool]]] = {}
    for name in names:
        by_metric = figures["systems"][name]
        cells[name] = [
            (_with_interval(by_metric[metric]), short_figure(by_metric[metric]["value"]) == best[metric])
            for metric in METRICS
        ]
    return cells


def _with_interval(figure: Mapping[str, float]) -> str:
    return f"{short_figure(figure['value'])} ± {short_figure((figure['high'] - figure['low']) / 2)}"


def short_figure(value: float, digits: int = 3) -> str:
    """Without the leading zero, as in the paper's tables: `.575`, `1.000`."""
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.{digits}f}"


def num_digits(protocol: str) -> int:
    """Of a table's figures: among all items the literature gives four, since they are a tenth of the others."""
    return 4 if protocol in (FULL_RANKING, FULL_RANKING_UNSEEN) else 3


def _task_caption(task: str, figures: Mapping[str, Any]) -> str:
    protocol = figures["protocol"]
    counted = "items" if protocol in (FULL_RANKING, FULL_RANKING_UNSEEN) else "candidates"
    return (
        f"{task.capitalize()}: {describe_protocol(protocol)} "
        f"({protocol}, {figures['num_candidates']:,} {counted}, {figures['num_requests']:,} requests)"
    )


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader must know besides the figures: the interval, and what is missing from the tables."""
    notes = []
    if metrics["tasks"]:
        notes.append(
            f"± half the width of the {metrics['confidence']:.0%} bootstrap interval over users "
            f"({metrics['num_resamples']:,} resamples)."
        )
    notes.extend(f"{task.capitalize()}: there are no requests to evaluate." for task in metrics["empty_tasks"])
    for system, by_task in metrics["failures"].items():
        notes.extend(f"{system} failed in {task}: {message}" for task, message in by_task.items())
    return notes
