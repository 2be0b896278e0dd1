"""The list of stages that a run prints."""

from rich.table import Table
from stages import StageReport


def stage_table(reports: list[StageReport]) -> Table:
    """One row a stage: how long it took, and what it made."""
    table = Table(title="Stages", title_justify="left")
    table.add_column("Stage")
    table.add_column("Seconds", justify="right")
    table.add_column("What was made")
    for report in reports:
        seconds = f"{report.seconds:.1f}" + (" (earlier)" if report.skipped else "")
        table.add_row(report.stage, seconds, _summary(report))
    total = sum(report.seconds for report in reports if not report.skipped)
    table.add_section()
    table.add_row("together", f"{total:.1f}", "")
    return table


def _summary(report: StageReport) -> str:
    """The plain values of a stage's details, and the identifiers' collision rates."""
    details = report.details
    plain = {name: value for name, value in details.items() if isinstance(value, (int, float, str))}
    for kind in ("semantic", "collaborative"):
        if isinstance(details.get(kind), dict):
            before, after = (details[kind].get(f"collision_rate_{moment}") for moment in ("before", "after"))
            plain[f"{kind} collisions"] = f"{before:.2%} → {after:.2%}"
    return ", ".join(f"{name} {_short(value)}" for name, value in plain.items())


def _short(value: int | float | str) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else value
