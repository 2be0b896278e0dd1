"""The figures of evaluate_new_items.py as tables, for the terminal and in Markdown."""

from typing import Any

from plain_tables import PlainTable, as_markdown, as_terminal
from rich.table import Table

from gensar_hf.evaluation.report import describe_protocol

SHOWN_METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@10")


def plain_tables(result: dict[str, Any]) -> list[PlainTable]:
    """The tables of one result, as `evaluate_new_items.py` writes it."""
    tables = []
    for task, found in result["tasks"].items():
        tables += [_candidate_table(task, found, result), _catalogue_table(task, found, result)]
    return [*tables, _neighbour_table(result)]


def markdown_tables(result: dict[str, Any]) -> str:
    """All tables in Markdown; ends with a line feed."""
    return as_markdown(plain_tables(result))


def terminal_tables(result: dict[str, Any]) -> list[Table]:
    """All tables for `rich`."""
    return as_terminal(plain_tables(result))


def _candidate_table(task: str, found: dict[str, Any], result: dict[str, Any]) -> PlainTable:
    rows = [
        (system, *(_figure(by_metric[metric]) for metric in SHOWN_METRICS))
        for system, by_metric in found["systems"].items()
    ]
    note = (
        "± half the width of the 95% bootstrap interval over the new items. "
        f"Borrowed: the mean probability of the {found['num_neighbors']} known items with the nearest identifiers, a "
        "number that was chosen on validation clicks of known items."
    )
    if found["known_items"]:
        known = ", ".join(f"{metric} {_figure(found['known_items'][metric])}" for metric in SHOWN_METRICS)
        note += f" GenSAR for known items (test clicks, over users): {known}."
    caption = (
        f"{task.capitalize()} of {result['num_new_items']} new items: {describe_protocol(found['protocol'])} "
        f"({found['protocol']}, {found['num_requests']:,} requests for {found['num_items']} items)"
    )
    return PlainTable(caption, ("System", *SHOWN_METRICS), rows, note)


def _catalogue_table(task: str, found: dict[str, Any], result: dict[str, Any]) -> PlainTable:
    columns = [(what, depth) for depth in (10, 100) for what in ("requests", "items", "places")]
    header = ("Beam search", *(f"{what} @{depth}" for what, depth in columns))
    rows = [
        (name, *(f"{shares[f'{what}@{depth}']:.1%}" for what, depth in columns))
        for name, shares in found["whole_catalogue"].items()
    ]
    share = result["num_new_items"] / (result["num_known_items"] + result["num_new_items"])
    caption = f"{task.capitalize()} among all {result['num_known_items'] + result['num_new_items']:,} items"
    note = (
        "Share of the requests, and of the items asked for, that are found; and of the answers' places that new items "
        f"take, which are {share:.1%} of the catalogue."
    )
    return PlainTable(caption, header, rows, note)


def _neighbour_table(result: dict[str, Any]) -> PlainTable:
    recall = result["neighbours"]
    rows = [(name, f"{recall[key]:.3f}") for name, key in _NEIGHBOUR_ROWS]
    caption = "Predicted collaborative embeddings: share of the 10 true neighbours found"
    return PlainTable(caption, ("Prediction", "Recall@10"), rows, "Known items, each held out of the fit once.")


_NEIGHBOUR_ROWS = (
    ("Map from the text", "recall"),
    ("Mean embedding for all", "mean_embedding"),
    ("Chance", "chance"),
)


def _figure(figure: dict[str, float]) -> str:
    if "low" not in figure:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ± {(figure['high'] - figure['low']) / 2:.3f}"
