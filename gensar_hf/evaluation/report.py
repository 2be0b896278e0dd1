"""Tables of results, in Markdown and for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.evaluation.metrics import COMPARED_METRICS, METRICS
from gensar_hf.evaluation.scorer import request_history
from gensar_hf.evaluation.significance import holm
from gensar_hf.files import atomic_path

if TYPE_CHECKING:
    from gensar_hf.pipeline import GenSARPipeline

KINDS = ("semantic", "collaborative")
SPREAD_METRICS = ("coverage@10", "Gini@10")  # of recommendations among all items, see `metrics.coverage`
TESTED_METRIC = "NDCG@5"  # the metric of the p-values in the tables; the JSON has those of all metrics
SHOWN_METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@10")  # of the tables of new items
QUERY_KINDS = ("title", "part", "misspelled", "attributes", "description", "log")
QUERY_KIND_METRICS = ("HR@1", "HR@10")
NUM_SHOWN_EVENTS = 8


@dataclass(frozen=True)
class Table:
    """Text cells under a header, with a caption above and a note below. `**text**` in a cell is bold.

    The first column is aligned left, the others right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    note: str = ""

    def markdown(self) -> str:
        """Caption, table and note in Markdown, without a line feed at the end.

        >>> print(Table(["System", "HR@1"], [["BM25", "**.5**"]]).markdown())
        | System | HR@1 |
        | --- | ---: |
        | BM25 | **.5** |
        """
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join(block for block in (self.caption and f"**{self.caption}**", table, self.note) if block)

    def terminal(self) -> RichTable:
        """A table for `rich.console.Console().print`, caption on top and note below."""
        caption, note = (Text(text) if text else None for text in (self.caption, self.note))
        table = RichTable(title=caption, title_justify="left", caption=note, caption_justify="left")
        for number, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if number else "left", max_width=None if number else 40)
        for row in self.rows:
            # Text rather than markup, since titles and names may hold brackets. Every second part is between asterisks.
            parts = (re.split(r"\*\*(.+?)\*\*", cell) for cell in row)
            table.add_row(*(Text.assemble(*zip(part, cycle(("", "bold")))) for part in parts))
        return table


def markdown(tables: Iterable[Table]) -> str:
    """Tables in Markdown, ending with a line feed."""
    return "\n\n".join(table.markdown() for table in tables) + "\n"


def write_markdown(path: Path, tables: Iterable[Table]) -> None:
    """Write tables to a Markdown file, atomically."""
    with atomic_path(path) as aside:
        aside.write_text(markdown(tables), encoding="utf-8")


def terminal(tables: Iterable[Table]) -> Group:
    """Tables for `rich.console.Console().print`."""
    return Group(*(table.terminal() for table in tables))


# ---- cells


def short_number(value: float, digits: int = 3) -> str:
    """A metric without the leading zero, as in the paper's tables: `.575`, `1.000`."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 1 else text


def _plus_minus(value: Mapping[str, float], digits: int = 3) -> str:
    """A value with half the width of its interval, if it has one."""
    half_width = f" ± {short_number((value['high'] - value['low']) / 2, digits)}" if "low" in value else ""
    return short_number(value["value"], digits) + half_width


def _difference(difference: Mapping[str, float], name: str = "value", digits: int = 3) -> str:
    if not difference:
        return ""
    mean, low, high = (f"{difference[key]:+.{digits}f}" for key in (name, "low", "high"))
    return f"{mean} ({low} … {high})"


def _bold_best(systems: Mapping[str, Sequence[str]], with_spread: bool = False) -> list[list[str]]:
    """One row per system, the best of a column bold, with what follows ± or without. A cell is a value or "–"."""
    rows = [[name, *cells] for name, cells in systems.items()]
    for column in range(1, max(map(len, rows), default=0)):
        numbers = [row[column].partition(" ± ")[0] for row in rows]
        best = max((number for number in numbers if number != "–"), key=float, default="")
        for row, number in zip(rows, numbers, strict=True):
            if number == best:  # values printed alike are equally good
                row[column] = f"**{row[column]}**" if with_spread else row[column].replace(best, f"**{best}**", 1)
    return rows


# ---- protocols


def describe_protocol(protocol: str) -> str:
    """A protocol's name in words.

    >>> describe_protocol("bm25-hard-99")
    'the target against the 99 best BM25 hits for the query that are not the target'
    """
    if protocol == "full-ranking":
        return "the target among all items"
    if protocol == "full-ranking-unseen":
        return "the target among all items that its user's history does not hold"
    if protocol.endswith("-unseen"):
        return f"{describe_protocol(protocol.removesuffix('-unseen'))}, those clicked before by the user last"
    kind, _, num_negatives = protocol.rpartition("-")
    if kind == "random":
        return f"the target against {num_negatives} random items its user has not interacted with"
    if kind.startswith("bm25-hard"):
        columns = kind.removeprefix("bm25-hard").strip("()")
        hits = f"best BM25 hits for the query{columns and ' in the columns '}{columns} that are not the target"
        return f"the target against the {num_negatives} {hits}"
    return f"protocol {protocol}"


def _num_digits(protocol: str) -> int:
    """Metrics among all items have four digits, as in the literature: they are a tenth of the others."""
    return 4 if protocol.startswith("full-ranking") else 3


def _measured(names: Sequence[str], systems: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that all systems have; results of earlier versions have fewer."""
    values = list(systems)
    return [name for name in names if all(name in each for each in values)]


# ---- one evaluation


def metrics_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """One table per task of `metrics.json`, the best value of a column bold; the last note is about all of them."""
    notes = [f"{task.capitalize()}: there are no requests to evaluate." for task in metrics["empty_tasks"]]
    for system, by_task in metrics["failures"].items():
        notes += [f"{system} failed in {task}: {message}" for task, message in by_task.items()]
    if metrics["tasks"]:
        interval = f"{metrics['confidence']:.0%} bootstrap interval over users ({metrics['num_resamples']:,} resamples)"
        notes.insert(0, f"± half the width of the {interval}.")
    tables = []
    for task, facts in metrics["tasks"].items():
        by_system = {system: facts["systems"][system] for system in metrics["systems"] if system in facts["systems"]}
        digits, counted = _num_digits(facts["protocol"]), "items" if "full" in facts["protocol"] else "candidates"
        names = _measured(metrics.get("metrics", METRICS), by_system.values())
        cells = {name: [_plus_minus(values[metric], digits) for metric in names] for name, values in by_system.items()}
        caption = (
            f"{task.capitalize()}: {describe_protocol(facts['protocol'])} "
            f"({facts['protocol']}, {facts['num_candidates']:,} {counted}, {facts['num_requests']:,} requests)"
        )
        tables.append(Table(["System", *names], _bold_best(cells, with_spread=True), caption))
        if spread := _measured(SPREAD_METRICS, by_system.values()) if by_system else []:
            spreads = [
                [name, *(short_number(values[metric]["value"]) for metric in spread)]
                for name, values in by_system.items()
            ]
            caption = "How the ten items recommended to each user spread over the catalogue"
            tables.append(Table(["System", *spread], spreads, caption))
    last = tables.pop() if tables else Table(["System", *METRICS], [])
    return [*tables, replace(last, note="\n\n".join(notes))]


# ---- kinds of queries


def query_kinds_table(metrics: Mapping[str, Any], systems: Sequence[str] = ()) -> Table:
    """HR@1 and HR@10 of every system for every kind of query, from `query_kinds.json` or means over seeds.

    `systems`: only these rows.
    """
    metrics = {**metrics, "systems": [name for name in metrics["systems"] if name in systems or not systems]}
    kinds = {kind: metrics["kinds"][kind] for kind in QUERY_KINDS if kind in metrics["kinds"]}
    values = {
        system: {kind: facts["systems"][system] for kind, facts in kinds.items() if system in facts["systems"]}
        for system in metrics["systems"]
    }
    halves = []
    for metric in QUERY_KIND_METRICS:
        cells = {
            system: [short_number(each[kind][metric]["value"]) if kind in each else "–" for kind in kinds]
            for system, each in values.items()
        }
        halves.append(_bold_best(cells))
    rows = [
        [left[0], *(" / ".join(pair) if pair[0] != "–" else "–" for pair in zip(left[1:], right[1:], strict=True))]
        for left, right in zip(*halves, strict=True)
    ]
    num_items = max((facts["num_candidates"] for facts in kinds.values()), default=0)
    num_requests = {facts["num_requests"] for facts in kinds.values()}
    counts = f"{max(num_requests, default=0):,} requests each" if len(num_requests) < 2 else "requests: " + ", ".join(
        f"{kind} {facts['num_requests']:,}" for kind, facts in kinds.items()
    )  # fmt: skip
    caption = f"Search among all {num_items:,} items by kind of query: {' / '.join(QUERY_KIND_METRICS)} ({counts})"
    notes, measured = (
        [],
        [each[kind][metric] for each in values.values() for kind in each for metric in QUERY_KIND_METRICS],
    )
    if examples := [f"{kind} “{facts['example']['query']}”" for kind, facts in kinds.items()]:
        notes.append(f"Such as: {', '.join(examples)}.")
    if widths := [(value["high"] - value["low"]) / 2 for value in measured if "low" in value]:
        notes.append(f"± at most {short_number(max(widths))} (half a {metrics['confidence']:.0%} bootstrap interval).")
    elif num_seeds := metrics.get("num_seeds"):
        notes.append(f"Means over {num_seeds} seeds." if num_seeds > 1 else "One seed.")
    for system, by_kind in metrics["failures"].items():
        notes += [f"{system} failed in {kind}: {message}" for kind, message in by_kind.items()]
    return Table(["System", *kinds], rows, caption, "\n\n".join(notes))


# ---- comparisons of runs


def comparison_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """The tables of `comparison.json`: query kinds and identifiers, if there are any, then one per task."""
    *tables, last = [task_table(comparison, task) for task in comparison["tasks"]]
    failures = [f"{run} failed: {reason}" for run, reason in comparison["failures"].items()]
    tables.append(replace(last, note="\n\n".join([comparison_note(comparison), *failures])))
    identifiers = [identifier_table(comparison)] if with_identifiers(comparison) else []
    kinds = [query_kinds_table(comparison["query_kinds"])] if "query_kinds" in comparison else []
    return [*kinds, *identifiers, *tables]


def comparison_note(comparison: Mapping[str, Any]) -> str:
    """The meaning of ±, Δ and p in the tables of a comparison."""
    num_seeds = max(len(variant["seeds"]) for variant in comparison["variants"].values())
    spread = f"± the standard deviation over {num_seeds} seeds." if num_seeds > 1 else "One seed."
    reference = comparison["reference"]
    note = (
        f"{spread} Δ: difference in NDCG@10 from {reference}, with its 95 % bootstrap interval over users (means over "
        "the seeds)."
    )
    test = f"p: paired t-test of {TESTED_METRIC} against {reference}, corrected for the tests of the table (Holm)."
    return f"{note} {test}" if "tests" in comparison else note


def variants_in_order(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The compared systems in their order (the keys of the JSON file are sorted)."""
    return {name: comparison["variants"][name] for name in comparison["order"]}


def with_identifiers(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The compared systems that have identifiers."""
    return {name: variant for name, variant in variants_in_order(comparison).items() if variant["identifiers"]}


def identifier_table(comparison: Mapping[str, Any]) -> Table:
    """Quality of the identifiers of each system; semantic and collaborative values as `s / c`."""
    header = [
        "Identifiers", "levels (shared)", "reconstruction error s / c", "raw collisions s / c", "after assignment",
        "added distortion", "codes used", "perplexity / K", "seconds",
    ]  # fmt: skip
    rows = []
    for name, variant in with_identifiers(comparison).items():
        measured = variant["identifiers"]
        both = [measured[kind] for kind in KINDS]
        row = [name, f"{measured['num_levels']} ({measured['num_shared_levels']})"]
        row.append(" / ".join(f"{each['reconstruction_error']:.3f}" for each in both))
        row.append(" / ".join(f"{each['collision_rate_before']:.2%}" for each in both))
        row.append(f"{max(each['collision_rate_after'] for each in both):.0%}")
        row.append(f"{measured['distortion_added']:.2%}")
        row += [f"{min(each[name] for each in both):.0%}" for name in ("codebook_use", "perplexity_share")]
        row.append(f"{variant['seconds']['rqvae']:.1f}" if "rqvae" in variant["seconds"] else "–")
        rows.append(row)
    note = "Reconstruction error: share of the variance that is lost. Codes used and perplexity: of the worst level."
    return Table(header, rows, note=note)


def task_table(comparison: Mapping[str, Any], task: str) -> Table:
    """One row per system that supports the task, the best mean of a column bold."""
    systems = {name: each for name, each in variants_in_order(comparison).items() if task in each["tasks"]}
    facts = comparison["tasks"][task]
    digits = _num_digits(facts["protocol"])
    measured = [each["tasks"][task] for each in systems.values()]
    names, spread = _measured(COMPARED_METRICS, measured), _measured(SPREAD_METRICS, measured)
    cells = {
        name: [_mean_cell(values[metric], digits) for metric in names]
        for name, values in zip(systems, measured, strict=True)
    }
    p_values = {
        name: values[TESTED_METRIC]["difference"]["p_value"]
        for name, values in zip(systems, measured, strict=True)
        if "p_value" in values[TESTED_METRIC].get("difference", {})
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    has_tests, has_sizes = "tests" in comparison, any(not each["identifiers"] for each in systems.values())
    has_memory = has_sizes and all(each.get("memory") for each in systems.values())  # older runs do not know it
    rows = _bold_best(cells)
    for row, (name, each) in zip(rows, systems.items(), strict=True):
        row += [short_number(each["tasks"][task][metric]["mean"]) for metric in spread]
        row.append(_difference(each["tasks"][task]["NDCG@10"].get("difference", {}), "mean", digits))
        if has_tests:
            p_value = corrected.get(name, np.nan)
            row.append("< .001" if p_value < 0.001 else "" if np.isnan(p_value) else short_number(p_value))
        if has_sizes:
            seconds, size = sum(each["seconds"].values()), each["parameters"] or 0
            row.append("–" if not size else f"{size / 1e6:.2f} M" if size >= 1e5 else f"{size / 1e3:.1f} k")
            row.append(f"{seconds / 60:.1f}" if seconds >= 3 else "< 0.1")
        if has_memory:
            row.append(f"{each['memory'] / 2**30:.1f} GiB")
    sizes = [*["parameters", "minutes"] * has_sizes, *["memory"] * has_memory]
    header = ["System", *names, *spread, "Δ NDCG@10", *["p"] * has_tests, *sizes]
    caption = f"{task.capitalize()}: {describe_protocol(facts['protocol'])} ({facts['num_requests']:,} requests)"
    return Table(header, rows, caption)


def _mean_cell(value: Mapping[str, float], digits: int) -> str:
    spread = "" if value["sd"] is None else f" ± {short_number(value['sd'], digits)}"
    return short_number(value["mean"], digits) + spread


# ---- new items


def group_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table per task of `evaluate_groups(…)`, a block of rows per group: the systems, and last minus first."""
    tables = []
    for task, by_group in result["tasks"].items():
        rows: list[list[str]] = []
        for group in [name for name in result["groups"] if name in by_group]:
            measured = by_group[group]
            counts = ", ".join(f"{measured[f'num_{what}']:,} {what}" for what in ("requests", "items", "users"))
            rows.append([f"{group} ({counts})", *[""] * len(SHOWN_METRICS)])
            for system in result["systems"]:
                values = measured["systems"][system]
                rows.append([system, *(_plus_minus(values[metric]) for metric in SHOWN_METRICS)])
            if len(result["systems"]) > 1:
                rows.append(["difference", *(_difference(measured["difference"][name]) for name in SHOWN_METRICS)])
        if rows:
            protocol = next(iter(by_group.values()))["protocol"]
            caption = f"{task.capitalize()}: {describe_protocol(protocol)} ({protocol})"
            note = "± half the width of the 95% bootstrap interval over users; of a difference the interval itself."
            tables.append(Table(["", *SHOWN_METRICS], rows, caption, note))
    return tables


def cold_start_tables(result: Mapping[str, Any]) -> list[Table]:
    """Of `new_items.json` the titles, and for each task the systems among candidates and the answers of all items."""
    num_new = result["num_new_items"]
    num_items = result["num_known_items"] + num_new
    caption = f"Each of {num_new} new items by its title, without a history, among all {num_items:,} items"
    titles = result.get("titles", {})
    tables = [Table(list(titles), [[short_number(value) for value in titles.values()]], caption)] if titles else []
    for task, measured in result["tasks"].items():
        rows = [
            [system, *(_plus_minus(values[metric]) for metric in SHOWN_METRICS)]
            for system, values in measured["systems"].items()
        ]
        note = "± half the width of the 95% bootstrap interval over the new items."
        if measured.get("known_items"):
            known = ", ".join(f"{name} {_plus_minus(measured['known_items'][name])}" for name in SHOWN_METRICS)
            note += f" GenSAR for known items (test clicks, over users): {known}."
        caption = (
            f"{task.capitalize()} of {num_new} new items: {describe_protocol(measured['protocol'])} "
            f"({measured['protocol']}, {measured['num_requests']:,} requests for {measured['num_items']} items)"
        )
        tables.append(Table(["System", *SHOWN_METRICS], rows, caption, note))
        columns = [f"{what}@{depth}" for depth in (10, 100) for what in ("requests", "items", "places")]
        reach = measured["whole_catalogue"].items()
        rows = [[name, *(f"{reached[column]:.1%}" for column in columns)] for name, reached in reach]
        note = (
            "Requests: fraction of requests whose target is found. Items: fraction of target items found at least "
            f"once. Places: fraction of the results that are new items, which are {num_new / num_items:.1%} of the "
            "catalogue."
        )
        header = ["Answers", *(column.replace("@", " @") for column in columns)]
        tables.append(Table(header, rows, f"{task.capitalize()} among all {num_items:,} items", note))
    return tables


# ---- training runs


def stage_table(stages: Mapping[str, tuple[float, bool, Mapping[str, Any]]]) -> Table:
    """The stages of a run: seconds, whether finished earlier, and details (plain values, identifiers' reports)."""
    rows = []
    for stage, (seconds, is_earlier, details) in stages.items():
        shown = {
            name: value
            for name, value in details.items()
            if isinstance(value, int | float | str) and not name.endswith("fingerprint")
        }
        for kind in KINDS:
            if isinstance(report := details.get(kind), Mapping):
                before, after = (report[f"collision_rate_{moment}"] for moment in ("before", "after"))
                shown[f"{kind} collisions"] = f"{before:.2%} → {after:.2%}"
        forms = {float: ".3f", int: ","}
        results = ", ".join(f"{name} {value:{forms.get(type(value), '')}}" for name, value in shown.items())
        rows.append([stage, f"{seconds:.1f}" + (" (earlier)" if is_earlier else ""), results])
    total = sum(seconds for seconds, is_earlier, _ in stages.values() if not is_earlier)
    return Table(["Stage", "Seconds", "Result"], [*rows, ["total", f"{total:.1f}", ""]], "Stages")


def example_tables(pipe: GenSARPipeline, requests: Requests) -> list[Table]:
    """The first request: the user's last events in titles, and the model's answers to it."""
    identifiers, history = pipe.tokenizer.identifiers, request_history(requests, 0)
    titles = identifiers.titles or identifiers.item_ids
    rows_of = identifiers.rows()
    events = [
        [titles[rows_of[event["item_id"]]] if "item_id" in event else "(search)", event.get("query", "")]
        for event in history[-NUM_SHOWN_EVENTS:]
    ]
    user = requests.events.user_ids[int(requests.users[0])]
    caption = f"User {user}, the last {len(events)} of {len(history)} events"
    tables = [Table(["Item", "Query"], events, caption)]

    def show(answers: Any, call: str, note: str = "") -> None:
        texts = [answer.get("title") or answer.get("item_id") or answer["query"] for answer in answers]
        rows = [[text, f"{answer['score']:.2f}"] for text, answer in zip(texts, answers, strict=True)]
        tables.append(Table(["Result", "Score"], rows, call, note))

    show(pipe.recommend(history, top_k=5, exclude_seen=True), "recommend(history, top_k=5, exclude_seen=True)")
    if requests.task == SEARCH:
        query = requests.query_texts[0]
        clicked = titles[rows_of[requests.events.item_ids[int(requests.target_items[0])]]]
        call = f'search("{query}", history, top_k=5)'
        show(pipe.search(query, history, top_k=5), call, f"The user clicked: {clicked}")
        show(pipe.suggest_queries(history, top_k=3), "suggest_queries(history, top_k=3)")
    return tables
