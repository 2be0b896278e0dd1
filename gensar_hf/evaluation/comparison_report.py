"""A comparison as Markdown tables and as figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.evaluation.comparison import KINDS
from gensar_hf.evaluation.metrics import METRICS
from gensar_hf.evaluation.report import describe_protocol, num_digits, short_figure
from gensar_hf.files import atomic_path

_TESTED = "NDCG@5"  # the metric whose p-values stand in the tables; all others are in the JSON


def comparison_tables(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: the identifiers where there are any, then a table a task, then what ± and Δ mean."""
    blocks = [identifier_table(comparison)] if _with_identifiers(comparison) else []
    for task in comparison["tasks"]:
        blocks.append(f"**{task_caption(comparison, task)}**\n\n{task_table(comparison, task)}")
    blocks.append(spread_note(comparison))
    blocks += [f"{run} failed: {reason}" for run, reason in comparison["failures"].items()]
    return "\n\n".join(blocks) + "\n"


def task_caption(comparison: Mapping[str, Any], task: str) -> str:
    """Task, protocol and number of requests in words."""
    facts = comparison["tasks"][task]
    return f"{task.capitalize()}: {describe_protocol(facts['protocol'])} ({facts['num_requests']:,} requests)"


def spread_note(comparison: Mapping[str, Any]) -> str:
    """What stands behind the figures."""
    num_seeds = max(len(variant["seeds"]) for variant in comparison["variants"].values())
    spread = f"± the standard deviation over {num_seeds} seeds. " if num_seeds > 1 else "One seed. "
    reference = comparison["reference"]
    note = (
        f"{spread}Δ: difference in NDCG@10 from {reference}, with its 95 % bootstrap interval over users (means over "
        "the seeds)."
    )
    if "tests" in comparison:
        note += f" p: paired t-test of {_TESTED} against {reference}."
    return note


def _in_order(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The variants as they were given."""
    return {name: comparison["variants"][name] for name in comparison["order"]}


def _with_identifiers(comparison: Mapping[str, Any]) -> dict[str, Any]:
    return {name: variant for name, variant in _in_order(comparison).items() if variant["identifiers"]}


def identifier_table(comparison: Mapping[str, Any]) -> str:
    """Of each system with identifiers what they are like; figures of both kinds stand as `s / c`."""
    header = [
        "Identifiers", "levels (shared)", "reconstruction error s / c", "raw collisions s / c", "after assignment",
        "added distortion", "codes used", "perplexity / K", "seconds",
    ]  # fmt: skip
    rows = []
    for name, variant in _with_identifiers(comparison).items():
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
    return f"{markdown_table(header, rows)}\n\n{note}"


def task_table(comparison: Mapping[str, Any], task: str) -> str:
    """One row a system that does the task; the best mean of a column is bold."""
    systems = {name: variant for name, variant in _in_order(comparison).items() if task in variant["tasks"]}
    digits = num_digits(comparison["tasks"][task]["protocol"])
    best = {
        metric: short_figure(max(variant["tasks"][task][metric]["mean"] for variant in systems.values()), digits)
        for metric in METRICS
    }
    has_tests, has_sizes = "tests" in comparison, any(not variant["identifiers"] for variant in systems.values())
    rows = []
    for name, variant in systems.items():
        figures = variant["tasks"][task]
        cells = [_with_sd(figures[metric], best[metric], digits) for metric in METRICS]
        row = [name, *cells, _difference(figures["NDCG@10"].get("difference"), digits)]
        if has_tests:
            row.append(_p_value(figures[_TESTED].get("difference")))
        if has_sizes:
            row += [_size(variant["parameters"]), _minutes(variant["seconds"])]
        rows.append(row)
    header = ["System", *METRICS, "Δ NDCG@10"]
    header += ["p"] * has_tests + ["parameters", "minutes"] * has_sizes
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set flush right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_sd(figure: Mapping[str, Any], best: str, digits: int) -> str:
    mean = short_figure(figure["mean"], digits)
    sd = "" if figure["sd"] is None else f" ± {short_figure(figure['sd'], digits)}"
    return f"**{mean}**{sd}" if mean == best else mean + sd


def _difference(difference: Mapping[str, float] | None, digits: int) -> str:
    if difference is None:
        return ""
    mean, low, high = (f"{difference[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} … {high})"


def _p_value(difference: Mapping[str, float] | None) -> str:
    if difference is None or "p_value" not in difference:
        return ""
    return "< .001" if difference["p_value"] < 0.001 else short_figure(difference["p_value"])


def _size(parameters: int | None) -> str:
    if not parameters:
        return "–"
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} k"


def _minutes(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    return f"{total / 60:.1f}" if total >= 3 else "< 0.1"


def save_figures(comparison: Mapping[str, Any], folder: Path, metric: str = "NDCG@10") -> list[Path]:
    """Draw the figures that the comparison has the data for.

    `ndcg.png` has bars of both tasks (cf. the paper's fig. 6 and 7); `collisions.png` the raw collision rates, where
    several systems have identifiers (cf. fig. 5); `trade_off.png` search against recommendation, where there is more
    than one system that does both (cf. fig. 1).

    Returns:
        the files written.
    """
    drawings = {"ndcg.png": lambda axes: _draw_bars(axes, *_ndcg_bars(comparison, metric))}
    if len(_with_identifiers(comparison)) > 1:
        drawings["collisions.png"] = lambda axes: _draw_bars(axes, *_collision_bars(comparison))
    points = _trade_off(comparison, metric)
    if len(points) > 1:
        drawings["trade_off.png"] = lambda axes: _draw_trade_off(axes, points, metric)
    return [_saved(folder / name, draw, len(comparison["order"])) for name, draw in drawings.items()]


def _saved(path: Path, draw: Any, num_systems: int) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_square = path.name == "trade_off.png"
    figure = Figure(figsize=(7, 5) if is_square else (8, 1.2 + 0.55 * num_systems), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return path


Series = Mapping[str, tuple[list[float], list[float]]]


def _collision_bars(comparison: Mapping[str, Any]) -> tuple[list[str], Series, str]:
    variants = _with_identifiers(comparison)
    rates = {
        kind: [100 * variant["identifiers"][kind]["collision_rate_before"] for variant in variants.values()]
        for kind in KINDS
    }
    series = {kind: (values, [0.0] * len(values)) for kind, values in rates.items()}
    return list(variants), series, "raw collision rate, %"


def _ndcg_bars(comparison: Mapping[str, Any], metric: str) -> tuple[list[str], Series, str]:
    """A system that does not do a task gets no bar there (a value that is not a number is not drawn)."""
    nothing = {"mean": np.nan, "sd": None}
    series = {}
    for task in comparison["tasks"]:
        figures = [variant["tasks"].get(task, {}).get(metric, nothing) for variant in _in_order(comparison).values()]
        series[task] = ([figure["mean"] for figure in figures], [figure["sd"] or 0.0 for figure in figures])
    return comparison["order"], series, f"{metric}, whiskers: one standard deviation over the seeds"


def _draw_bars(axes: Any, names: list[str], series: Series, label: str) -> None:
    """Horizontal bars, the series beside one another for each name, each with its value at the end."""
    height = 0.8 / len(series)
    highest = np.nanmax([values for values, _ in series.values()])
    for index, (title, (values, deviations)) in enumerate(series.items()):
        positions = np.arange(len(names)) + (index - (len(series) - 1) / 2) * height
        color = ("#4c78a8", "#f58518")[index % 2]
        bars = axes.barh(positions, values, height, xerr=deviations, label=title, color=color)
        form = "{:.2f}" if highest > 1 else "{:.3f}"
        labels = ["" if np.isnan(value) else form.format(value) for value in values]
        axes.bar_label(bars, labels=labels, fontsize=7, padding=3)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.15 * highest or 1.0)  # room for the values
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False)


def _trade_off(comparison: Mapping[str, Any], metric: str) -> dict[str, tuple[float | None, float | None]]:
    """System → its search and recommendation figure; nothing where the comparison has one task."""
    if not {RECOMMENDATION, SEARCH} <= set(comparison["tasks"]):
        return {}

    def mean(variant: Mapping[str, Any], task: str) -> float | None:
        return variant["tasks"][task][metric]["mean"] if task in variant["tasks"] else None

    return {name: (mean(each, SEARCH), mean(each, RECOMMENDATION)) for name, each in _in_order(comparison).items()}


def _draw_trade_off(axes: Any, points: Mapping[str, tuple[float | None, float | None]], metric: str) -> None:
    """Systems of both tasks as points, those of one task as lines that a joint system has to cross."""
    for index, (name, (search, recommendation)) in enumerate(points.items()):
        color = f"C{index % 10}"
        if search is not None and recommendation is not None:
            # Named in the legend: names beside points that lie close together would cover one another.
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
