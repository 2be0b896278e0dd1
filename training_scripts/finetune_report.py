"""The figures of finetune_lora.py as tables, for the terminal and in Markdown."""

from typing import Any

from plain_tables import PlainTable, as_markdown, as_terminal
from rich.table import Table

from gensar_hf.evaluation.report import describe_protocol, short_figure

SHOWN_METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@10")
NOTE = (
    "± half the width of the 95% bootstrap interval over users; of a difference the interval itself. New items: first "
    "seen in the newer interactions, and clicked in those that were trained on. Before, they borrow the scores of "
    "known items, as add_items.py leaves them; after, they are one of their own neighbors."
)


def plain_tables(result: dict[str, Any]) -> list[PlainTable]:
    """One table a task."""
    return [_task_table(task, found, result) for task, found in result["tasks"].items() if found]


def markdown_tables(result: dict[str, Any]) -> str:
    """All tables in Markdown; ends with a line feed."""
    return f"{_trained(result)}\n\n{as_markdown(plain_tables(result))}"


def terminal_tables(result: dict[str, Any]) -> list[Table]:
    """All tables for `rich`."""
    return as_terminal(plain_tables(result))


def _trained(result: dict[str, Any]) -> str:
    return (
        f"{result['trained_parameters']:,} numbers trained beside the model's {result['parameters']:,}, for "
        f"{result['steps']:,} steps; {result['known_items']:,} known items, {result['new_items']:,} new ones."
    )


def _task_table(task: str, by_group: dict[str, Any], result: dict[str, Any]) -> PlainTable:
    rows = []
    for group in [name for name in result["groups"] if name in by_group]:
        found = by_group[group]
        counts = f"{found['num_requests']:,} requests, {found['num_items']:,} items, {found['num_users']:,} users"
        rows.append((f"{group} ({counts})", *[""] * len(SHOWN_METRICS)))
        for system in result["systems"]:
            rows.append((system, *(_with_spread(found["systems"][system][metric]) for metric in SHOWN_METRICS)))
        rows.append(("difference", *(_with_interval(found["difference"][metric]) for metric in SHOWN_METRICS)))
    protocol = next(iter(by_group.values()))["protocol"]
    part = "" if result["part"] == "test" else f", {result['part']}"
    caption = f"{task.capitalize()} of still newer clicks: {describe_protocol(protocol)} ({protocol}{part})"
    return PlainTable(caption, ("", *SHOWN_METRICS), rows, NOTE)


def _with_spread(figure: dict[str, float]) -> str:
    return f"{short_figure(figure['value'])} ± {short_figure((figure['high'] - figure['low']) / 2)}"


def _with_interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:+.3f} ({figure['low']:+.3f} … {figure['high']:+.3f})"
